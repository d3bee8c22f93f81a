-- The raw log and what is read from it.

-- One row per event and element that it touches; the columns are those of schemas/activity.py, which says what they mean.
--
-- Sort key. Every reader asks for one entitlement, most for a range of time: `entitlement, time` first keeps that to a few
-- granules, and a page of history is read in order. `element` comes after `time`, because a history without a filter on the
-- element is the usual one. `source, id` complete the identity of a row: its duplicates have the same key, the one with the
-- highest version stays (docs/numbers.md, 'Storage'), and FINAL shows it before the merge does.
-- Partitions by month: by week or day, a page of one entitlement touches too many parts.
-- The deduplication window is what makes `insert_deduplication_token` count; it is needed on every target of a view too.
CREATE TABLE IF NOT EXISTS activity
(
    entitlement String CODEC(ZSTD(1)),
    element LowCardinality(String),
    time DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    source LowCardinality(String),
    id String CODEC(ZSTD(1)),
    type LowCardinality(String),
    customer Nullable(String) CODEC(ZSTD(1)),
    product LowCardinality(Nullable(String)),
    seat_id Nullable(String) CODEC(ZSTD(1)),
    user Nullable(String) CODEC(ZSTD(1)),
    ip Nullable(String) CODEC(ZSTD(1)),
    host Nullable(String) CODEC(ZSTD(1)),
    credential LowCardinality(Nullable(String)),
    quantity Nullable(Int64) CODEC(ZSTD(1)),
    lease_expires_at Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    reason Nullable(String) CODEC(ZSTD(1)),
    incarnation LowCardinality(String),
    epoch UInt32 CODEC(Delta, ZSTD(1)),
    `partition` Int32 CODEC(Delta, ZSTD(1)),
    `offset` Int64 CODEC(Delta, ZSTD(1)),
    appended_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    t DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    version UInt64 CODEC(Delta, ZSTD(1)),
    late Bool CODEC(ZSTD(1)),
    delta Int64 CODEC(ZSTD(1)),
    level Int64 CODEC(Delta, ZSTD(1)),
    `limit` Nullable(Int64) CODEC(ZSTD(1)),
    hard_limit Nullable(Int64) CODEC(ZSTD(1)),
    terms_known Bool CODEC(ZSTD(1)),
    state LowCardinality(String),
    event String CODEC(ZSTD(3))
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(time)
ORDER BY (entitlement, time, element, source, id)
SETTINGS non_replicated_deduplication_window = 10000;

-- Every set of terms that was sent for an element, in force or not: `version` 0 had no effect when it came.
-- Here the element comes before the time: the usual question is how the terms of one element changed.
-- overdraft_value: units for `absolute`, percent for `percentage`; events carry at most 4 decimals.
CREATE TABLE IF NOT EXISTS terms
(
    entitlement String CODEC(ZSTD(1)),
    element LowCardinality(String),
    time DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    source LowCardinality(String),
    id String CODEC(ZSTD(1)),
    customer Nullable(String) CODEC(ZSTD(1)),
    product LowCardinality(Nullable(String)),
    name Nullable(String) CODEC(ZSTD(1)),
    lease_policy LowCardinality(Nullable(String)),
    kind LowCardinality(Nullable(String)),
    `limit` Nullable(Int64) CODEC(ZSTD(1)),
    overdraft_type LowCardinality(String),
    overdraft_value Nullable(Decimal(18, 4)) CODEC(ZSTD(1)),
    epoch UInt32 CODEC(ZSTD(1)),
    `offset` Int64 CODEC(ZSTD(1)),
    version UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (entitlement, element, time, source, id)
SETTINGS non_replicated_deduplication_window = 10000;

-- The limits of an activity row are those in force after the event; what the event itself says is in its JSON.
CREATE MATERIALIZED VIEW IF NOT EXISTS terms_from_activity TO terms AS
WITH JSONExtractString(event, 'data', 'elements', element, 'overdraft', 'type') AS overdraft
SELECT
    entitlement,
    element,
    time,
    source,
    id,
    customer,
    product,
    JSONExtract(event, 'data', 'name', 'Nullable(String)') AS name,
    JSONExtract(event, 'data', 'lease_policy', 'Nullable(String)') AS lease_policy,
    JSONExtract(event, 'data', 'elements', element, 'kind', 'Nullable(String)') AS kind,
    JSONExtract(event, 'data', 'elements', element, 'limit', 'Nullable(Int64)') AS `limit`,
    if(overdraft = '', 'none', overdraft) AS overdraft_type,
    JSONExtract(event, 'data', 'elements', element, 'overdraft', 'value', 'Nullable(Decimal(18, 4))') AS overdraft_value,
    epoch,
    `offset`,
    version
FROM activity
WHERE type = 'entitlement.changed';

-- The raw log to read, each event once, newest first.
-- FINAL leaves out repeats with the same time. A repeat that came with another time has made a row of its own: of these the
-- one that arrived first counts. A condition on the entitlement reaches the sort key from outside; one on the time is only
-- applied afterwards, because an event's first arrival may lie outside of it.
CREATE VIEW IF NOT EXISTS activity_history AS
SELECT
    time,
    entitlement,
    element,
    type,
    user,
    seat_id,
    host,
    ip,
    credential,
    quantity,
    delta,
    level,
    `limit`,
    hard_limit,
    terms_known,
    state,
    late,
    reason,
    lease_expires_at,
    customer,
    product,
    source,
    id,
    t AS placed_at,
    appended_at,
    epoch,
    `partition`,
    `offset`,
    event
FROM
(
    SELECT *
    FROM activity FINAL
    ORDER BY epoch, `offset`
    LIMIT 1 BY entitlement, element, source, id
)
ORDER BY time DESC, epoch DESC, `offset` DESC;
