-- Overdrafts from entering to leaving, the latest first, of the elements that the reader may see: those that ended, and those
-- that go on at the instant `at`. Only what touches the time from the first instant of first_day on.
-- The end of one carries all that is known of it, so one whose beginning is older than the log of alerts is here too.
WITH
    assumeNotNull((SELECT starts_at FROM calendar FINAL WHERE day = {first_day:Date32})) AS window_start,
    shown AS
    (
        SELECT entitlement, element, customer, product, state, entered_at, peak, level, `limit`
        FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
        WHERE true
            AND entitlement = {entitlement:String} -- if entitlement
            AND element = {element:String} -- if element
    )
SELECT entitlement, element, customer, product, start, end, seconds, peak, peak_overage
FROM
(
    SELECT
        entitlement,
        element,
        shown.customer AS customer,
        shown.product AS product,
        toUnixTimestamp64Milli(ended.entered_at) AS start,
        toNullable(toUnixTimestamp64Milli(ended.at)) AS end,
        toFloat64(ended.duration_seconds) AS seconds,
        ended.peak AS peak,
        ended.peak_overage AS peak_overage
    FROM (SELECT * FROM alerts FINAL WHERE type = 'overdraft.left' AND at >= window_start) AS ended
    INNER JOIN shown USING (entitlement, element)
    UNION ALL
    SELECT
        entitlement,
        element,
        customer,
        product,
        toUnixTimestamp64Milli(entered_at) AS start,
        NULL AS end,
        greatest(0, toUnixTimestamp64Milli({at:DateTime64(3, 'UTC')}) - start) / 1000 AS seconds,
        peak,
        peak - `limit` AS peak_overage
    FROM shown
    WHERE state IN ('overdraft', 'at_hard_limit', 'over_hard_limit')
)
WHERE start IS NOT NULL
    AND (-start, entitlement, element) > (-{before_ms:Int64}, {before_entitlement:String}, {before_element:String})
ORDER BY start DESC, entitlement, element
LIMIT {rows:UInt32};
