-- The elements of one entitlement that the reader may see, as they stand. Every request about an entitlement asks this first, and
-- planning the view `visible_elements` costs three times the answer: so its condition stands here once more.
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
FROM elements FINAL
WHERE entitlement = {entitlement:String}
    AND ({everyone:Bool} OR has({customers:Array(String)}, assumeNotNull(customer)) AND isNotNull(customer))
ORDER BY element;
