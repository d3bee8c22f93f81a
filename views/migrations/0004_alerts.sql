-- The transitions that were sent to overdraft-alerts; the columns are those of Alert and AlertData in schemas/alerts.py,
-- with `from` and `to` as from_state and to_state and the three parts of `cause` one by one.
--
-- Sort key. Alerts are read as the episodes of one element, in order of time. The id of a transition is always the same, and
-- so is its `at`: a repeat has the same key, and either copy may stay.
CREATE TABLE IF NOT EXISTS alerts
(
    entitlement String CODEC(ZSTD(1)),
    element LowCardinality(String),
    at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    id String CODEC(ZSTD(1)),
    source LowCardinality(String),
    type LowCardinality(String),
    time DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    customer Nullable(String) CODEC(ZSTD(1)),
    product LowCardinality(Nullable(String)),
    from_state LowCardinality(String),
    to_state LowCardinality(String),
    level Int64 CODEC(ZSTD(1)),
    `limit` Nullable(Int64) CODEC(ZSTD(1)),
    hard_limit Nullable(Int64) CODEC(ZSTD(1)),
    overage Int64 CODEC(ZSTD(1)),
    cause_source LowCardinality(String),
    cause_id String CODEC(ZSTD(1)),
    cause_type LowCardinality(String),
    entered_at Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    duration_seconds Nullable(Decimal(18, 3)) CODEC(ZSTD(1)),
    peak Nullable(Int64) CODEC(ZSTD(1)),
    peak_overage Nullable(Int64) CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (entitlement, element, at, id)
SETTINGS non_replicated_deduplication_window = 10000;
