-- Events that arrived more than once with different times, one of them from `from` on: the positions of their first two
-- arrivals. (Of repeats with the same time the raw log has one row.)
WITH arraySort(groupArray(bitOr(bitShiftLeft(toUInt64(epoch), 48), toUInt64(`offset`)))) AS positions
SELECT entitlement, element, source, id, positions[1] AS first, positions[2] AS second
FROM activity FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
    AND ({from:DateTime64(3, 'UTC')} = toDateTime64(0, 3, 'UTC') OR (entitlement, element, source, id) IN
    (
        SELECT entitlement, element, source, id
        FROM activity
        WHERE entitlement IN {entitlements:Array(String)}
            AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
            AND time >= {from:DateTime64(3, 'UTC')}
    ))
GROUP BY entitlement, element, source, id
HAVING count() > 1;
