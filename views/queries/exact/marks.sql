-- All marks of some elements.
SELECT entitlement, element, toString(first_day) AS first_day, toString(last_day) AS last_day, position, since
FROM marks FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))};
