-- Events of which the raw log has more than one arrival, one of them with a time from `from` on: the positions of the first
-- two. They came with different times, or for different elements: of repeats with the same time and element it has one row.
-- An `entitlement.changed` has a row for each element that it names, all at one position.
WITH arraySort(groupUniqArray(bitOr(bitShiftLeft(toUInt64(epoch), 48), toUInt64(`offset`)))) AS positions
SELECT entitlement, source, id, positions[1] AS first, positions[2] AS second
FROM activity FINAL
WHERE entitlement IN {entitlements:Array(String)}
    AND ({from:DateTime64(3, 'UTC')} = toDateTime64(0, 3, 'UTC') OR (entitlement, source, id) IN
    (
        SELECT entitlement, source, id
        FROM activity
        WHERE entitlement IN {entitlements:Array(String)}
            AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
            AND time >= {from:DateTime64(3, 'UTC')}
    ))
GROUP BY entitlement, source, id
HAVING length(positions) > 1;
