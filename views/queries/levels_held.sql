-- How long the given elements (a list of entitlement and element) held which level, from the first instant of first_day to the
-- instant `at`: each level from the event that made it to the next one, the first one carried from the day before.
-- unit_seconds_over: units above the limit, summed over time. covers_95, covers_99: the fewest seats that would have been enough for
-- 95 and 99 % of that time, or of the time since the element's first event if that is later; covers_100: for all of it, every
-- instant included.
WITH
    assumeNotNull((SELECT starts_at FROM calendar FINAL WHERE day = {first_day:Date32})) AS window_start,
    toUnixTimestamp64Milli({at:DateTime64(3, 'UTC')}) AS at_ms
SELECT
    entitlement,
    element,
    toDecimal128(sum(toInt128(held_ms) * ifNull(greatest(level - `limit`, 0), 0)), 3) / 1000 AS unit_seconds_over,
    quantileExactWeighted(0.95)(level, held_ms) AS covers_95,
    quantileExactWeighted(0.99)(level, held_ms) AS covers_99,
    max(level) AS covers_100
FROM
(
    SELECT
        entitlement,
        element,
        level,
        `limit`,
        toUInt64(greatest(0, leadInFrame(t_ms, 1, at_ms) OVER following - t_ms)) AS held_ms
    FROM
    (
        SELECT entitlement, element, toUnixTimestamp64Milli(t) AS t_ms, epoch, `offset`, level, `limit`
        FROM activity FINAL
        -- An event can be placed later than its own time, so a little more is looked at than the days.
        WHERE time >= window_start - INTERVAL 2 DAY AND t >= window_start AND t <= {at:DateTime64(3, 'UTC')} AND NOT late
            AND entitlement IN {entitlements:Array(String)}
            AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
        UNION ALL
        SELECT entitlement, element, toUnixTimestamp64Milli(window_start) AS t_ms, 0 AS epoch, -1 AS `offset`,
            closing AS level, closing_limit AS `limit`
        FROM days FINAL
        WHERE (entitlement, element, day) IN
        (
            SELECT entitlement, element, max(day)
            FROM days
            WHERE day < {first_day:Date32} AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
            GROUP BY entitlement, element
        )
    )
    WHERE (entitlement, element) IN
    (
        SELECT entitlement, element FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
    )
    WINDOW following AS
    (
        PARTITION BY entitlement, element ORDER BY t_ms, epoch, `offset`
        ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING
    )
)
GROUP BY entitlement, element;
