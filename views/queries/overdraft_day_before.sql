-- The latest stored day before first_day of the given elements (`visible`, a list of entitlement and element). Looks into every month
-- there is.
SELECT entitlement, element, day, `max`, `limit`, overdraft_ms, peak_overage, denials, as_of, day_end, closing, closing_limit
FROM days FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element, day) IN
(
    SELECT entitlement, element, max(day)
    FROM days
    WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {visible:Array(Tuple(String, String))}
        AND day < {first_day:Date32}
    GROUP BY entitlement, element
);
