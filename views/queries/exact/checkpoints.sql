-- Which checkpoints of the exact fold there are.
SELECT entitlement, element, toString(day) AS day, position
FROM exact_states FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))};
