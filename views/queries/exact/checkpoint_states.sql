-- The checkpoints of some elements at one day.
SELECT entitlement, element, state
FROM exact_states FINAL
WHERE day = {day:Date32}
    AND entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))};
