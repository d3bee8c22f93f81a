-- The days up to last_day of one element, oldest first, as they stand at the instant `at`.
SELECT
    toString(day) AS day,
    opening,
    closing,
    `min`,
    `max`,
    `limit`,
    hard_limit,
    terms_known,
    overdraft_seconds,
    unit_seconds,
    elapsed_seconds,
    peak_overage,
    activations,
    deactivations,
    refreshes,
    denials,
    units_used,
    state
FROM usage(
    entitlement = {entitlement:String},
    element = {element:String},
    last_day = {last_day:Date32},
    days = {days:UInt16},
    at = {at:DateTime64(3, 'UTC')}
)
WHERE (entitlement, element) IN
(
    SELECT entitlement, element
    FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
    WHERE entitlement = {entitlement:String}
)
ORDER BY day;
