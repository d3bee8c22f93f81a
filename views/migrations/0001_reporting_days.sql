-- The reporting time zone and its days. `views/migrate.py` fills both tables.

-- What must not change under existing data: `timezone`, the IANA name of the reporting time zone.
CREATE TABLE IF NOT EXISTS settings
(
    name String,
    value String,
    written_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(written_at)
ORDER BY name
SETTINGS non_replicated_deduplication_window = 10000;

-- The bounds of each local date in the reporting time zone: from starts_at, up to but without ends_at. Both are equal for
-- a date that no instant has. Days are looked up here, never worked out by a date function: the server's time zone
-- database is often older than the worker's, and where a clock was put back over midnight it takes another midnight.
CREATE TABLE IF NOT EXISTS calendar
(
    day Date32,
    starts_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    ends_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    written_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(written_at)
ORDER BY day
SETTINGS non_replicated_deduplication_window = 10000;
