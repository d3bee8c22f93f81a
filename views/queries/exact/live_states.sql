-- How some elements stand, as the worker told it last.
SELECT entitlement, element, level, `limit`, hard_limit, terms_known, state, position,
    toUnixTimestamp64Milli(entered_at) AS entered_at, peak
FROM elements FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))};
