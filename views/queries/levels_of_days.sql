-- How long the given elements (`visible`, a list of entitlement and element) held which level, day by day: of the events that were
-- placed on a day, from the first to the last, each level from the event that made it to the next one.
-- over_unit_ms: units above the limit, summed over that time.
-- starts: the first instants (ms) of all days from the first one to today; those of days that are not asked for do no harm. to: up to
-- and with this instant.
-- Corrections count today only. They put the live level right, on days that are restated once they are over: then the rows of the
-- events say how it was, and a correction that was made from less than all of them does not.
-- An event that is placed more than 31 days after its own time is left out.
SELECT
    entitlement,
    element,
    start_ms,
    min(earliest) AS first_at,
    max(latest).1 AS last_at,
    argMax(level, latest) AS last_level,
    argMax(latest_limit, latest).1 AS last_limit,
    sum(over) AS over_unit_ms,
    groupArray(level) AS levels,
    groupArray(held) AS held_ms
FROM
(
    SELECT
        entitlement,
        element,
        start_ms,
        level,
        sum(until_ms - t_ms) AS held,
        sum(toInt128(until_ms - t_ms) * ifNull(greatest(level - `limit`, 0), 0)) AS over,
        min(t_ms) AS earliest,
        max((t_ms, epoch, `offset`)) AS latest,
        argMax(tuple(`limit`), (t_ms, epoch, `offset`)) AS latest_limit
    FROM
    (
        SELECT
            entitlement,
            element,
            level,
            `limit`,
            epoch,
            `offset`,
            toUnixTimestamp64Milli(t) AS t_ms,
            roundDown(t_ms, {starts:Array(Int64)}) AS start_ms,
            leadInFrame(t_ms, 1, t_ms) OVER following AS until_ms
        FROM activity FINAL
        WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {visible:Array(Tuple(String, String))}
            AND time >= {from:DateTime64(3, 'UTC')} - INTERVAL 31 DAY AND time >= t - INTERVAL 31 DAY
            AND t >= {from:DateTime64(3, 'UTC')} AND t <= {to:DateTime64(3, 'UTC')} AND NOT late
            AND NOT (source = '/seatmark/restate' AND t_ms < arrayMax({starts:Array(Int64)}))
        WINDOW following AS
        (
            PARTITION BY entitlement, element, start_ms ORDER BY t_ms, epoch, `offset`
            ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING
        )
    )
    GROUP BY entitlement, element, start_ms, level
)
GROUP BY entitlement, element, start_ms;
