-- For how long the given elements (`visible`, a list of entitlement and element) held which level under which limit, from their first
-- event at or after `from` to the instant `at`: each level from the event that made it to the next one. first_ms: when that began.
SELECT entitlement, element, level, `limit`, sum(held) AS held_ms, min(t_ms) AS first_ms
FROM
(
    SELECT
        entitlement,
        element,
        level,
        `limit`,
        toUnixTimestamp64Milli(t) AS t_ms,
        greatest(0, leadInFrame(t_ms, 1, toUnixTimestamp64Milli({at:DateTime64(3, 'UTC')})) OVER following - t_ms) AS held
    FROM activity FINAL
    -- An event can be placed later than its own time, so a little more is looked at than the days.
    WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {visible:Array(Tuple(String, String))}
        AND time >= {from:DateTime64(3, 'UTC')} - INTERVAL 2 DAY
        AND t >= {from:DateTime64(3, 'UTC')} AND t <= {at:DateTime64(3, 'UTC')} AND NOT late
    WINDOW following AS
    (
        PARTITION BY entitlement, element ORDER BY t, epoch, `offset`
        ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING
    )
)
GROUP BY entitlement, element, level, `limit`;
