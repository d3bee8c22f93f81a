-- Of an event's arrivals the first counts (docs/numbers.md, 'Duplicates').
--
-- Repeats of an event that have its time, and were not recognised as such, have the key of its row and often its version: of
-- these the engine kept the one that was inserted last. Now it keeps the one with the highest `rank`, which is in this order:
--
--   1. restated rows, version 2 and up: of these the one with the highest version;
--   2. rows with an effect, version 1: of these the one with the lowest position;
--   3. rows without, version 0: of these, too, the one with the lowest position.
--
-- The highest two bits say which of the three it is: 1., 01, 00. The rest holds a version (a position and 2: below 2^63), or
-- how far a position is below 2^62. 2^62 is 16,384 epochs, far more than there will be. Positions from there on rank alike,
-- and below all others: of two such rows the one that was inserted last stays, as before.
--
-- A table's engine cannot be altered. So each table is made anew around the same parts, which costs no copying, and exchanged
-- with the old one. Views find both by their names; those on `activity` do not see the parts that are attached.
-- In parts from before, `rank` is worked out when it is read, and stored when they are merged.
--
-- Nothing may insert meanwhile: what a running sink has under way when the tables are exchanged would go with the old one.
-- Ended in the middle, it can be run again: up to the exchange the old table has all rows, from then on the new one has.
-- A server that refuses to drop large tables is told that this one may go: the new one has its parts.

ALTER TABLE activity ADD COLUMN IF NOT EXISTS rank UInt64 MATERIALIZED
    if(
        version > 1,
        bitOr(0x8000000000000000, version),
        bitOr(
            bitShiftLeft(version, 62),
            bitXor(
                0x3FFFFFFFFFFFFFFF,
                least(bitOr(bitShiftLeft(toUInt64(epoch), 48), toUInt64(`offset`)), 0x3FFFFFFFFFFFFFFF)
            )
        )
    )
    CODEC(Delta, ZSTD(1));

DROP TABLE IF EXISTS activity_ranked SYNC SETTINGS max_table_size_to_drop = 0;

CREATE TABLE activity_ranked AS activity
ENGINE = ReplacingMergeTree(rank)
PARTITION BY toYYYYMM(time)
ORDER BY (entitlement, time, element, source, id)
SETTINGS non_replicated_deduplication_window = 10000;

ALTER TABLE activity_ranked ATTACH PARTITION ALL FROM activity;

EXCHANGE TABLES activity AND activity_ranked;

DROP TABLE activity_ranked SYNC SETTINGS max_table_size_to_drop = 0;

-- What an event says of the terms is in `terms` by the same key, and was replaced in the same way.

ALTER TABLE terms ADD COLUMN IF NOT EXISTS rank UInt64 MATERIALIZED
    if(
        version > 1,
        bitOr(0x8000000000000000, version),
        bitOr(
            bitShiftLeft(version, 62),
            bitXor(
                0x3FFFFFFFFFFFFFFF,
                least(bitOr(bitShiftLeft(toUInt64(epoch), 48), toUInt64(`offset`)), 0x3FFFFFFFFFFFFFFF)
            )
        )
    )
    CODEC(ZSTD(1));

DROP TABLE IF EXISTS terms_ranked SYNC;

CREATE TABLE terms_ranked AS terms
ENGINE = ReplacingMergeTree(rank)
ORDER BY (entitlement, element, time, source, id)
SETTINGS non_replicated_deduplication_window = 10000;

ALTER TABLE terms_ranked ATTACH PARTITION ALL FROM terms;

EXCHANGE TABLES terms AND terms_ranked;

DROP TABLE terms_ranked SYNC;
