-- The days of some elements that have a row, from `first_day` to before `until`.
SELECT entitlement, element, groupArray(toString(day)) AS days
FROM (
    SELECT DISTINCT entitlement, element, day
    FROM days
    WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
        AND day >= {first_day:Date32} AND day < {until:Date32}
)
GROUP BY entitlement, element;
