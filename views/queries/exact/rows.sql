-- The raw log of some elements, from an instant on, in exact order.
SELECT *
FROM activity FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
    AND time >= {from:DateTime64(3, 'UTC')}
ORDER BY entitlement, element, time, epoch, `offset`;
