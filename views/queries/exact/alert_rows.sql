-- The alerts of some elements, in order of time.
SELECT
    entitlement, element, id, type, from_state, to_state, level, `limit`, hard_limit, toUnixTimestamp64Milli(at) AS at,
    toUnixTimestamp64Milli(entered_at) AS entered_at, toInt64(duration_seconds * 1000) AS duration_ms, peak, peak_overage
FROM alerts FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
ORDER BY entitlement, element, at;
