-- The place in the log (epoch, offset) of what arrived last for one entitlement; (0, -1) where nothing did.
SELECT if(count() = 0, (toUInt32(0), toInt64(-1)), max((epoch, `offset`))) AS place
FROM activity
WHERE entitlement = {entitlement:String}
    AND element IN
    (
        SELECT element
        FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
        WHERE entitlement = {entitlement:String}
    );
