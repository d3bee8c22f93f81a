-- What restatement needs: which elements are unsettled, up to where the raw log is stored, and what was restated up to where.
-- A position is epoch * 2^48 + offset, as in `days`.

-- Since which position the element has been unsettled, 0 if it is settled: DayMark in schemas/days.py.
-- Marks that were stored before there was this column say nothing of it. Nobody had compared the element with the exact
-- numbers then, so each of these marks counts as the first of an unsettled time; a correction that finds nothing ends it.
ALTER TABLE marks ADD COLUMN IF NOT EXISTS since UInt64 DEFAULT position CODEC(Delta, ZSTD(1));

-- The latest position at which a correction found that an element's live state is the exact one: Settled in schemas/days.py.
-- An element is unsettled if its newest mark has a `since`, and is newer than this.
--
-- Sort key. One row per element, asked for beside its marks.
CREATE TABLE IF NOT EXISTS settled
(
    entitlement String CODEC(ZSTD(1)),
    element LowCardinality(String),
    position UInt64 CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(position)
ORDER BY (entitlement, element)
SETTINGS non_replicated_deduplication_window = 10000;

-- Per partition of entitlement-events: all rows that `activity` gets of it, up to this offset, are stored.
-- An insert into `activity` that touches several months makes several parts, and readers see these one by one. So a row may
-- be there while an earlier one of the same insert is not. Who folds the raw log must not take such a hole for the truth,
-- and reads up to `position` only. The sink writes it after the insert was acknowledged and before it commits its offsets.
-- Offsets whose events made no rows (dead letters, repeats) count when the next one with rows is stored.
--
-- Sort key. One row per partition; the highest position stays, so what comes again after a restart moves nothing back.
CREATE TABLE IF NOT EXISTS progress
(
    topic LowCardinality(String),
    `partition` Int32,
    epoch UInt32,
    `offset` Int64,
    incarnation String,
    written_at DateTime64(3, 'UTC') DEFAULT now64(3),
    position UInt64 MATERIALIZED bitOr(bitShiftLeft(toUInt64(epoch), 48), toUInt64(`offset`))
)
ENGINE = ReplacingMergeTree(position)
ORDER BY (topic, `partition`)
SETTINGS non_replicated_deduplication_window = 10000;

-- Per element: all its marks up to `position` are restated, on the days before `through`.
--
-- Sort key. One row per element; the latest restatement stays, as `through` and `position` need not grow together.
CREATE TABLE IF NOT EXISTS restatements
(
    entitlement String CODEC(ZSTD(1)),
    element LowCardinality(String),
    position UInt64 CODEC(Delta, ZSTD(1)),
    through Date32 CODEC(Delta, ZSTD(1)),
    written_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(written_at)
ORDER BY (entitlement, element)
SETTINGS non_replicated_deduplication_window = 10000;

-- The exact fold of an element at the first instant of `day`, over the events up to `position`: from here a restatement goes
-- on, instead of from the first event. Any of these can be deleted; that costs time, never a number. After 40 days they go:
-- disorder is nearly always younger.
--
-- Sort key. A restatement looks for the latest day before the first marked one of an element. A state of a day that was made
-- of more events replaces the earlier one.
CREATE TABLE IF NOT EXISTS exact_states
(
    entitlement String CODEC(ZSTD(1)),
    element LowCardinality(String),
    day Date32 CODEC(Delta, ZSTD(1)),
    position UInt64 CODEC(Delta, ZSTD(1)),
    state String CODEC(ZSTD(3)),
    written_at DateTime DEFAULT now() CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(position)
ORDER BY (entitlement, element, day)
TTL written_at + INTERVAL 40 DAY
SETTINGS non_replicated_deduplication_window = 10000;

-- The view of 0005, with another rule for `state`.
--
-- The days up to `last_day`, `days` of them, as they stand at the instant `at`: one row per element and date.
-- entitlement, element: '' is all of them.
--
--     SELECT * FROM usage(entitlement = 'ent-1001', element = 'seats', last_day = '2026-11-24', days = 30, at = now64(3))
--
-- A date with a stored row is that row, with the closing level and terms held from as_of to the day's end. A date without
-- one carries the closing level and terms of the latest row before it, and before the first row the level is 0. The day
-- that holds `at` ends at `at`, or at as_of when that is later.
-- state: provisional or final. Provisional is a day that holds `at` or is still to come; and one where a mark covers it, or
-- covers the day of the stored row that it is or is carried from, unless that row is restated and at least as new as the mark.
-- elapsed_seconds: how much of the day the row covers; unit_seconds divided by it is the average level.
CREATE OR REPLACE VIEW usage AS
WITH
    toUnixTimestamp64Milli({at:DateTime64(3, 'UTC')}) AS at_ms,
    (
        SELECT max(day) FROM calendar FINAL WHERE starts_at <= {at:DateTime64(3, 'UTC')} AND ends_at > starts_at
    ) AS today,
    known AS
    (
        SELECT entitlement, element, customer, product, name, kind
        FROM elements FINAL
        WHERE ({entitlement:String} = '' OR entitlement = {entitlement:String})
            AND ({element:String} = '' OR element = {element:String})
    ),
    dates AS
    (
        SELECT day, toUnixTimestamp64Milli(starts_at) AS starts_ms, toUnixTimestamp64Milli(ends_at) AS ends_ms
        FROM calendar FINAL
        WHERE day > {last_day:Date32} - {days:UInt16} AND day <= {last_day:Date32} AND ends_at > starts_at
    ),
    -- newest_mark: the position of the newest mark on the row's own day, 0 without one. Only of the row before the window:
    -- those that reach into the window are in `marked`.
    stored AS
    (
        SELECT
            entitlement, element, day, day_start, day_end, opening, closing, `min`, `max`, `limit`, hard_limit, terms_known,
            overdraft_ms, unit_ms, peak_overage, activations, deactivations, refreshes, denials, units_used, as_of,
            closing_limit, closing_hard_limit, closing_terms_known, position, restated, true AS found, 0 AS newest_mark
        FROM days FINAL
        WHERE ({entitlement:String} = '' OR entitlement = {entitlement:String})
            AND ({element:String} = '' OR element = {element:String})
            AND day > {last_day:Date32} - {days:UInt16} AND day <= {last_day:Date32}
        UNION ALL
        SELECT
            latest.entitlement, latest.element, day, day_start, day_end, opening, closing, `min`, `max`, `limit`, hard_limit,
            terms_known, overdraft_ms, unit_ms, peak_overage, activations, deactivations, refreshes, denials, units_used, as_of,
            closing_limit, closing_hard_limit, closing_terms_known, position, restated, true AS found,
            arrayMax(mark -> if(mark.1 <= day AND day <= mark.2, mark.3, 0), ranges) AS newest_mark
        FROM
        (
            SELECT *
            FROM days FINAL
            WHERE ({entitlement:String} = '' OR entitlement = {entitlement:String})
                AND ({element:String} = '' OR element = {element:String})
                AND day <= {last_day:Date32} - {days:UInt16}
            ORDER BY entitlement, element, day DESC
            LIMIT 1 BY entitlement, element
        ) AS latest
        LEFT JOIN
        (
            SELECT entitlement, element, groupArray((first_day, last_day, position)) AS ranges
            FROM marks FINAL
            WHERE ({entitlement:String} = '' OR entitlement = {entitlement:String})
                AND ({element:String} = '' OR element = {element:String})
                AND first_day <= {last_day:Date32} - {days:UInt16}
            GROUP BY entitlement, element
        ) AS earlier
            ON latest.entitlement = earlier.entitlement AND latest.element = earlier.element
    ),
    marked AS
    (
        SELECT entitlement, element, groupArray((first_day, last_day, position)) AS ranges
        FROM marks FINAL
        WHERE ({entitlement:String} = '' OR entitlement = {entitlement:String})
            AND ({element:String} = '' OR element = {element:String})
            AND last_day > {last_day:Date32} - {days:UInt16} AND first_day <= {last_day:Date32}
        GROUP BY entitlement, element
    ),
    stored.found AND stored.day = asked.day AS own,
    if(own, toUnixTimestamp64Milli(stored.day_start), asked.starts_ms) AS starts_ms,
    if(own, toUnixTimestamp64Milli(stored.as_of), starts_ms) AS known_to_ms,
    multiIf(
        asked.day >= today, greatest(at_ms, known_to_ms),
        own, toUnixTimestamp64Milli(stored.day_end),
        asked.ends_ms
    ) AS ends_ms,
    ends_ms - known_to_ms AS rest_ms,
    ifNull(greatest(stored.closing - stored.closing_limit, 0), 0) AS closing_overage,
    greatest(
        stored.newest_mark,
        arrayMax(
            mark -> if(
                (mark.1 <= asked.day AND asked.day <= mark.2)
                    OR (stored.found AND mark.1 <= stored.day AND stored.day <= mark.2),
                mark.3,
                0
            ),
            marked.ranges
        )
    ) AS newest_mark
SELECT
    asked.entitlement AS entitlement,
    asked.element AS element,
    asked.customer AS customer,
    asked.product AS product,
    asked.name AS name,
    asked.kind AS kind,
    asked.day AS day,
    if(own, stored.opening, stored.closing) AS opening,
    stored.closing AS closing,
    if(own, stored.`min`, stored.closing) AS `min`,
    if(own, stored.`max`, stored.closing) AS `max`,
    if(own, stored.`limit`, stored.closing_limit) AS `limit`,
    if(own, stored.hard_limit, stored.closing_hard_limit) AS hard_limit,
    if(own, stored.terms_known, stored.closing_terms_known) AS terms_known,
    toDecimal64(if(own, stored.overdraft_ms, 0) + if(closing_overage > 0, rest_ms, 0), 3) / 1000 AS overdraft_seconds,
    toDecimal128(if(own, stored.unit_ms, 0) + toInt128(stored.closing) * rest_ms, 3) / 1000 AS unit_seconds,
    if(own, stored.peak_overage, closing_overage) AS peak_overage,
    if(own, stored.activations, 0) AS activations,
    if(own, stored.deactivations, 0) AS deactivations,
    if(own, stored.refreshes, 0) AS refreshes,
    if(own, stored.denials, 0) AS denials,
    if(own, stored.units_used, 0) AS units_used,
    toDecimal64(ends_ms - starts_ms, 3) / 1000 AS elapsed_seconds,
    -- A row that is not restated answers for no mark. Positions are above 0.
    if(asked.day >= today OR newest_mark > if(stored.restated, stored.position, 0), 'provisional', 'final') AS state
FROM (SELECT * FROM known CROSS JOIN dates) AS asked
ASOF LEFT JOIN stored
    ON asked.entitlement = stored.entitlement AND asked.element = stored.element AND asked.day >= stored.day
LEFT JOIN marked
    ON asked.entitlement = marked.entitlement AND asked.element = marked.element;
