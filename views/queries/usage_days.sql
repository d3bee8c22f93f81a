-- The stored days of one element from first_day to last_day, oldest first.
SELECT
    day, day_start, day_end, as_of, opening, closing, `min`, `max`, `limit`, hard_limit, terms_known, overdraft_ms, unit_ms,
    peak_overage, activations, deactivations, refreshes, denials, units_used, closing_limit, closing_hard_limit,
    closing_terms_known, position, restated
FROM days FINAL
WHERE entitlement = {entitlement:String} AND element = {element:String} AND day >= {first_day:Date32} AND day <= {last_day:Date32}
    AND element IN {visible:Array(String)}
ORDER BY day;
