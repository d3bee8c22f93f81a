-- What analysts read, and the application too: the same numbers everywhere. These views carry and complete stored rows
-- (docs/numbers.md, 'The day row'); what an event means is decided before it is stored.

-- The days up to `last_day`, `days` of them, as they stand at the instant `at`: one row per element and date.
-- entitlement, element: '' is all of them.
--
--     SELECT * FROM usage(entitlement = 'ent-1001', element = 'seats', last_day = '2026-11-24', days = 30, at = now64(3))
--
-- A date with a stored row is that row, with the closing level and terms held from as_of to the day's end. A date without
-- one carries the closing level and terms of the latest row before it, and before the first row the level is 0. The day
-- that holds `at` ends at `at`, or at as_of when that is later.
-- state: provisional (it holds `at` or is still to come, or a mark is newer than the day's restatement) or final.
-- elapsed_seconds: how much of the day the row covers; unit_seconds divided by it is the average level.
CREATE VIEW IF NOT EXISTS usage AS
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
    stored AS
    (
        SELECT
            entitlement, element, day, day_start, day_end, opening, closing, `min`, `max`, `limit`, hard_limit, terms_known,
            overdraft_ms, unit_ms, peak_overage, activations, deactivations, refreshes, denials, units_used, as_of,
            closing_limit, closing_hard_limit, closing_terms_known, position, restated, true AS found
        FROM days FINAL
        WHERE ({entitlement:String} = '' OR entitlement = {entitlement:String})
            AND ({element:String} = '' OR element = {element:String})
            AND day > {last_day:Date32} - {days:UInt16} AND day <= {last_day:Date32}
        UNION ALL
        SELECT
            entitlement, element, day, day_start, day_end, opening, closing, `min`, `max`, `limit`, hard_limit, terms_known,
            overdraft_ms, unit_ms, peak_overage, activations, deactivations, refreshes, denials, units_used, as_of,
            closing_limit, closing_hard_limit, closing_terms_known, position, restated, true AS found
        FROM days FINAL
        WHERE ({entitlement:String} = '' OR entitlement = {entitlement:String})
            AND ({element:String} = '' OR element = {element:String})
            AND day <= {last_day:Date32} - {days:UInt16}
        ORDER BY entitlement, element, day DESC
        LIMIT 1 BY entitlement, element
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
    ifNull(greatest(stored.closing - stored.closing_limit, 0), 0) AS closing_overage
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
    if(
        asked.day >= today OR arrayExists(
            mark -> mark.1 <= asked.day AND asked.day <= mark.2
                AND (NOT (own AND stored.restated) OR mark.3 > stored.position),
            marked.ranges
        ),
        'provisional',
        'final'
    ) AS state
FROM (SELECT * FROM known CROSS JOIN dates) AS asked
ASOF LEFT JOIN stored
    ON asked.entitlement = stored.entitlement AND asked.element = stored.element AND asked.day >= stored.day
LEFT JOIN marked
    ON asked.entitlement = marked.entitlement AND asked.element = marked.element;

-- The last 30 days of every element: today, in the reporting time zone, and the 29 before it.
CREATE VIEW IF NOT EXISTS usage_by_day AS
SELECT *
FROM usage(
    entitlement = '',
    element = '',
    last_day = (SELECT max(day) FROM calendar FINAL WHERE starts_at <= now64(3) AND ends_at > starts_at),
    days = 30,
    at = now64(3)
);

-- How every element stands. level: units in use, or used; limit NULL: not limited, or no terms known.
CREATE VIEW IF NOT EXISTS live_levels AS
SELECT
    entitlement,
    element,
    customer,
    product,
    name,
    kind,
    level,
    `limit`,
    hard_limit,
    terms_known,
    state,
    entered_at,
    peak,
    as_of
FROM elements FINAL;

-- Who is using more than was bought: since when, how much, and the most since then.
CREATE VIEW IF NOT EXISTS overdrawn_now AS
SELECT
    entitlement,
    element,
    customer,
    product,
    name,
    kind,
    entered_at AS since,
    level,
    `limit`,
    hard_limit,
    level - assumeNotNull(`limit`) AS overage,
    peak,
    state,
    as_of
FROM elements FINAL
WHERE state IN ('overdraft', 'at_hard_limit', 'over_hard_limit');
