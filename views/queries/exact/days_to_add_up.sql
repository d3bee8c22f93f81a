-- The day rows, from first_day to last_day, of elements that the overdraft report shows, whose levels were not added up yet as they are
-- now (views/migrations/0009_levels_held.sql); and the generation that counts.
WITH (SELECT max(value) FROM settings FINAL WHERE name = 'generation') AS present
SELECT entitlement, element, day, version, present AS generation
FROM days FINAL
WHERE day >= {first_day:Date32} AND day <= {last_day:Date32}
    AND (entitlement, element) IN
    (
        SELECT entitlement, element FROM days FINAL WHERE day >= {first_day:Date32} AND day <= {last_day:Date32} AND peak_overage > 0
        UNION DISTINCT
        SELECT entitlement, element FROM elements FINAL WHERE state IN ('overdraft', 'at_hard_limit', 'over_hard_limit')
    )
    AND (entitlement, element, day, version) NOT IN
    (
        SELECT entitlement, element, day, version
        FROM levels_held FINAL
        WHERE day >= {first_day:Date32} AND day <= {last_day:Date32} AND generation = present
    )
ORDER BY entitlement, element, day;
