-- What was added up already of the given elements (`visible`, a list of entitlement and element) and the days from first_day to
-- last_day. Each row is good beside the day row of its `version` only.
SELECT entitlement, element, day, version, first_at, last_at, last_level, last_limit, over_unit_ms, levels, held_ms
FROM levels_held FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {visible:Array(Tuple(String, String))}
    AND day >= {first_day:Date32} AND day <= {last_day:Date32}
    AND generation = (SELECT max(value) FROM settings FINAL WHERE name = 'generation');
