-- Elements that were above their limit in the days from first_day to `today`, or are now; with `entitlement` not empty: that
-- entitlement's elements, whether they were or not. Only those that the reader may see.
SELECT
    entitlement,
    element,
    customer,
    product,
    name,
    kind,
    state,
    state IN ('overdraft', 'at_hard_limit', 'over_hard_limit') AS overdrawn,
    if(overdrawn, entered_at, NULL) AS since,
    level,
    `limit`,
    hard_limit,
    ifNull(greatest(level - `limit`, 0), 0) AS overage,
    if(overdrawn, peak, NULL) AS peak,
    as_of
FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
WHERE (
        {entitlement:String} != ''
        OR overdrawn
        OR (entitlement, element) IN
        (
            SELECT entitlement, element
            FROM days FINAL
            WHERE day >= {first_day:Date32} AND day <= {today:Date32} AND peak_overage > 0
        )
    )
    AND entitlement = {entitlement:String} -- if entitlement
    AND element = {element:String} -- if element
    AND customer = {customer:String} -- if customer
    AND product = {product:String} -- if product
ORDER BY entitlement, element;
