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
    toUnixTimestamp64Milli(entered_at) AS since,
    toUnixTimestamp64Milli(as_of) AS as_of
FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
WHERE entitlement = {entitlement:String}
ORDER BY element;
