-- The elements of one entitlement, as they stand.
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
    toUnixTimestamp64Milli(as_of) AS as_of
FROM live_levels
WHERE entitlement = {entitlement:String}
ORDER BY element;
