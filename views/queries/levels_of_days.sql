-- How long the given elements (`visible`, a list of entitlement and element) held which level under which limit, day by day: of the
-- events that were placed on a day, from the first to the last, each level from the event that made it to the next one.
-- starts: the first instants (ms) of all days from the first one on; those of days that are not asked for do no harm. to: up to and
-- with this instant.
-- An event that is placed more than 31 days after its own time is left out.
SELECT
    entitlement,
    element,
    start_ms,
    min(earliest) AS first_at,
    max(latest).1 AS last_at,
    argMax((level, `limit`), latest) AS last,
    last.1 AS last_level,
    last.2 AS last_limit,
    groupArray(level) AS levels,
    groupArray(tuple(`limit`)).1 AS limits,
    groupArray(held) AS held_ms
FROM
(
    SELECT
        entitlement,
        element,
        start_ms,
        level,
        `limit`,
        sum(until_ms - t_ms) AS held,
        min(t_ms) AS earliest,
        max((t_ms, epoch, `offset`)) AS latest
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
        WINDOW following AS
        (
            PARTITION BY entitlement, element, start_ms ORDER BY t_ms, epoch, `offset`
            ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING
        )
    )
    GROUP BY entitlement, element, start_ms, level, `limit`
)
GROUP BY entitlement, element, start_ms;
