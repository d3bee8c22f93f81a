-- The position of the event that came last of those with a time before `before`.
SELECT entitlement, element, max(bitOr(bitShiftLeft(toUInt64(epoch), 48), toUInt64(`offset`))) AS position
FROM activity
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
    AND time < {before:DateTime64(3, 'UTC')}
GROUP BY entitlement, element;
