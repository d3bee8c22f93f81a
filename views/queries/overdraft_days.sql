-- The stored days from first_day to last_day of the given elements (`visible`, a list of entitlement and element), the oldest first.
SELECT entitlement, element, day, `max`, `limit`, overdraft_ms, peak_overage, denials, as_of, day_end, closing, closing_limit, version
FROM days FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {visible:Array(Tuple(String, String))}
    AND day >= {first_day:Date32} AND day <= {last_day:Date32}
ORDER BY entitlement, element, day;
