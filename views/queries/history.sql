-- Raw-log rows of one entitlement, newest first: those before a place (before, before_epoch, before_offset, before_element) and not
-- older than `from`, at most `rows` of them.
-- Reads the sort key backwards and stops, so that a page costs the same wherever it is, and however long the log is. So an event may
-- be here in several versions: of those of one place the one that counts comes first; `arrivals` tells of the rest.
SELECT
    time, element, type, seat_id, user, ip, host, credential, quantity, delta, level, `limit`, hard_limit, terms_known, state, late,
    reason, lease_expires_at, t AS placed_at, source, id, epoch, `offset`, rank
FROM activity
WHERE entitlement = {entitlement:String}
    AND time <= {before:DateTime64(3, 'UTC')} AND time >= {from:DateTime64(3, 'UTC')}
    AND (time, epoch, `offset`, element)
        < ({before:DateTime64(3, 'UTC')}, {before_epoch:UInt32}, {before_offset:Int64}, {before_element:String})
    AND element IN {visible:Array(String)}
    AND element = {element:String} -- if element
    AND type IN {types:Array(String)} -- if types
    AND seat_id = {seat:String} -- if seat
    AND user = {user:String} -- if user
ORDER BY time DESC, epoch DESC, `offset` DESC, element DESC, rank DESC
LIMIT {rows:UInt32};
