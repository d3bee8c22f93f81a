-- Day rows, marks of disordered days, and how each element stands.

-- One row per entitlement, element and local date that had events; the columns are those of DayRow in schemas/days.py.
-- Times are instants, overdraft_ms and unit_ms exact milliseconds: a level of a million million held for a day is more
-- unit-milliseconds than an Int64 holds.
--
-- Sort key. The window of one element is read in one go, and `day` is the rest of the row's identity: a later row of the
-- same day replaces the earlier one. The highest position stays, and at the same position the restated row.
CREATE TABLE IF NOT EXISTS days
(
    entitlement String CODEC(ZSTD(1)),
    element LowCardinality(String),
    day Date32 CODEC(Delta, ZSTD(1)),
    timezone LowCardinality(String),
    day_start DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    day_end DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    customer Nullable(String) CODEC(ZSTD(1)),
    product LowCardinality(Nullable(String)),
    name Nullable(String) CODEC(ZSTD(1)),
    kind LowCardinality(String),
    opening Int64 CODEC(Delta, ZSTD(1)),
    closing Int64 CODEC(Delta, ZSTD(1)),
    `min` Int64 CODEC(Delta, ZSTD(1)),
    `max` Int64 CODEC(Delta, ZSTD(1)),
    `limit` Nullable(Int64) CODEC(ZSTD(1)),
    hard_limit Nullable(Int64) CODEC(ZSTD(1)),
    terms_known Bool CODEC(ZSTD(1)),
    overdraft_ms Int64 CODEC(ZSTD(1)),
    unit_ms Int128 CODEC(ZSTD(1)),
    peak_overage Int64 CODEC(ZSTD(1)),
    activations Int64 CODEC(ZSTD(1)),
    deactivations Int64 CODEC(ZSTD(1)),
    refreshes Int64 CODEC(ZSTD(1)),
    denials Int64 CODEC(ZSTD(1)),
    units_used Int64 CODEC(ZSTD(1)),
    as_of DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    closing_limit Nullable(Int64) CODEC(ZSTD(1)),
    closing_hard_limit Nullable(Int64) CODEC(ZSTD(1)),
    closing_terms_known Bool CODEC(ZSTD(1)),
    state LowCardinality(String),
    entered_at Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    peak Nullable(Int64) CODEC(ZSTD(1)),
    position UInt64 CODEC(Delta, ZSTD(1)),
    restated Bool DEFAULT false CODEC(ZSTD(1)),
    version UInt64 MATERIALIZED position * 2 + restated CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(day)
ORDER BY (entitlement, element, day)
SETTINGS non_replicated_deduplication_window = 10000;

-- Days that saw a disordered event, as inclusive ranges. Of the marks of one range only the latest matters, to tell
-- whether it came after the restatement of a day in it; so the range is the key and the position the version.
CREATE TABLE IF NOT EXISTS marks
(
    entitlement String CODEC(ZSTD(1)),
    element LowCardinality(String),
    first_day Date32 CODEC(Delta, ZSTD(1)),
    last_day Date32 CODEC(Delta, ZSTD(1)),
    position UInt64 CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(position)
ORDER BY (entitlement, element, first_day, last_day)
SETTINGS non_replicated_deduplication_window = 10000;

-- How each element stands: the end of its latest day row. One row per element, so that the levels of all of them, and who
-- is in overdraft, are a scan of a small table.
CREATE TABLE IF NOT EXISTS elements
(
    entitlement String CODEC(ZSTD(1)),
    element LowCardinality(String),
    customer Nullable(String) CODEC(ZSTD(1)),
    product LowCardinality(Nullable(String)),
    name Nullable(String) CODEC(ZSTD(1)),
    kind LowCardinality(String),
    level Int64 CODEC(ZSTD(1)),
    `limit` Nullable(Int64) CODEC(ZSTD(1)),
    hard_limit Nullable(Int64) CODEC(ZSTD(1)),
    terms_known Bool CODEC(ZSTD(1)),
    state LowCardinality(String),
    entered_at Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    peak Nullable(Int64) CODEC(ZSTD(1)),
    day Date32 CODEC(ZSTD(1)),
    as_of DateTime64(3, 'UTC') CODEC(ZSTD(1)),
    position UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(position)
ORDER BY (entitlement, element)
SETTINGS non_replicated_deduplication_window = 10000;

-- A restated row tells about a day that is over; how things stand now is for live rows alone to say.
CREATE MATERIALIZED VIEW IF NOT EXISTS elements_from_days TO elements AS
SELECT
    entitlement,
    element,
    customer,
    product,
    name,
    kind,
    closing AS level,
    closing_limit AS `limit`,
    closing_hard_limit AS hard_limit,
    closing_terms_known AS terms_known,
    state,
    entered_at,
    peak,
    day,
    as_of,
    position
FROM days
WHERE NOT restated;
