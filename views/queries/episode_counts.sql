-- How many overdrafts of the given elements (a list of entitlement and element) ended from the first instant of first_day on, up to
-- the instant `at`.
SELECT entitlement, element, uniqExact(id) AS ended
FROM alerts
WHERE type = 'overdraft.left' AND at <= {at:DateTime64(3, 'UTC')}
    AND at >= assumeNotNull((SELECT starts_at FROM calendar FINAL WHERE day = {first_day:Date32}))
    AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
    AND (entitlement, element) IN
    (
        SELECT entitlement, element FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
    )
GROUP BY entitlement, element;
