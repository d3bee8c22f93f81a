-- The elements of one entitlement that the reader may see, as they stand.
SELECT
    element,
    customer,
    product,
    name,
    kind,
    level,
    `limit`,
    hard_limit,
    terms_known,
    state,
    entered_at AS since,
    as_of
FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
WHERE entitlement = {entitlement:String}
ORDER BY element;
