-- The stored days of some elements, in the fields of DayRow (schemas/days.py), from `since` on.
SELECT
    entitlement, element, toString(day) AS day, opening, closing, `min`, `max`, `limit`, hard_limit, terms_known, overdraft_ms,
    unit_ms, peak_overage, activations, deactivations, refreshes, denials, units_used, toUnixTimestamp64Milli(as_of) AS as_of,
    closing_limit, closing_hard_limit, closing_terms_known, position, restated, version
FROM days FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
    AND days.day >= {since:Date32};
