-- How long each level was held on a day, of elements that the overdraft report shows: added up from the raw log by the sink's process
-- (views/levels.py), because the report would read 30 days of it for each of them.
--
-- A row tells of the events of an element that were placed on `day`, from the first (first_at) to the last (last_at): levels[i] was
-- held for held_ms[i] in all. over_unit_ms: units above the limit, summed over that time. It is only good beside the day row with
-- this `version` (days.version), and if `generation` is the one in the table settings: `seatmark rebuild` changes that. Any row can
-- be deleted; that costs the report time, never a number.
--
-- Sort key. The days of the report's elements are read in one go; of a day, what was added up last stays.
CREATE TABLE IF NOT EXISTS levels_held
(
    entitlement String CODEC(ZSTD(1)),
    element LowCardinality(String),
    day Date32 CODEC(Delta, ZSTD(1)),
    version UInt64 CODEC(ZSTD(1)),
    generation LowCardinality(String),
    first_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    last_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    last_level Int64 CODEC(ZSTD(1)),
    last_limit Nullable(Int64) CODEC(ZSTD(1)),
    over_unit_ms Int128 CODEC(ZSTD(1)),
    levels Array(Int64) CODEC(ZSTD(1)),
    held_ms Array(Int64) CODEC(ZSTD(1)),
    written_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(written_at)
PARTITION BY toYYYYMM(day)
ORDER BY (entitlement, element, day)
TTL toDateTime(written_at) + INTERVAL 40 DAY
SETTINGS non_replicated_deduplication_window = 10000;
