-- How many elements the reader may see, and how many of them stand how. The filters are those of
-- elements.sql.
WITH
    (
        SELECT max(day) FROM calendar FINAL WHERE starts_at <= {at:DateTime64(3, 'UTC')} AND ends_at > starts_at
    ) AS today,
    recent AS
    (
        SELECT entitlement, element, max(`max`) AS most, sum(denials) AS denied
        FROM days FINAL
        WHERE day > today - 30 AND day <= today
        GROUP BY entitlement, element
    )
SELECT
    count() AS elements,
    uniqExact(now.entitlement) AS entitlements,
    uniqExact(now.customer) AS customers,
    countIf(now.state IN ('overdraft', 'at_hard_limit', 'over_hard_limit')) AS overdrawn,
    countIf(now.state = 'at_limit') AS at_limit,
    countIf(recent.denied > 0) AS denied,
    countIf(ifNull(now.`limit` > 0 AND now.kind = 'pool' AND greatest(recent.most, now.level) * 10 <= now.`limit`, false)) AS idle
FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)}) AS now
LEFT JOIN recent ON recent.entitlement = now.entitlement AND recent.element = now.element
WHERE true
    AND positionCaseInsensitiveUTF8( -- if search
        concat(now.entitlement, '\n', ifNull(customer, ''), '\n', ifNull(product, ''), '\n', ifNull(name, '')), -- if search
        {search:String}) > 0 -- if search
    AND customer = {customer:String} -- if customer
    AND product = {product:String} -- if product
;
