-- The raw log of one element, for a fold: each event once, of its arrivals the first; ordered by time,
-- then arrival. Seatmark's own corrections are left out: they belong to the live numbers.
SELECT happened_at, epoch, `offset`, event
FROM
(
    SELECT toUnixTimestamp64Milli(time) AS happened_at, epoch, `offset`, event, source, id
    FROM activity FINAL
    WHERE entitlement = {entitlement:String} AND element = {element:String} AND source != '/seatmark/restate'
        AND (entitlement, element) IN
        (
            SELECT entitlement, element
            FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
            WHERE entitlement = {entitlement:String}
        )
    ORDER BY epoch, `offset`
    LIMIT 1 BY source, id
)
ORDER BY happened_at, epoch, `offset`
LIMIT {rows:UInt32};
