-- What arrived for one entitlement after a place in the log (epoch, offset), in order of arrival, at most `rows` rows. One entitlement's events are in one partition, so its places are in one order.
SELECT
    time, element, type, seat_id, user, ip, host, credential, quantity, delta, level, `limit`, hard_limit, terms_known, state, late,
    reason, lease_expires_at, t AS placed_at, source, id, epoch, `offset`, rank
FROM activity
WHERE entitlement = {entitlement:String} AND (epoch, `offset`) > ({epoch:UInt32}, {offset:Int64})
    AND element IN
    (
        SELECT element
        FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
        WHERE entitlement = {entitlement:String}
    )
ORDER BY epoch, `offset`, element, version DESC
LIMIT 1 BY epoch, `offset`, element
LIMIT {rows:UInt32};
