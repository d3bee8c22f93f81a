-- Events of one entitlement, newest first: those before a place (before_ms, before_epoch, before_offset, before_element) and not older
-- than `from_ms`, at most `rows` of them. An empty filter lets everything through.
SELECT
    toUnixTimestamp64Milli(time) AS happened_at,
    element,
    type,
    seat_id,
    user,
    ip,
    host,
    credential,
    quantity,
    delta,
    level,
    `limit`,
    hard_limit,
    terms_known,
    state,
    late,
    reason,
    toUnixTimestamp64Milli(lease_expires_at) AS lease_expires_at,
    toUnixTimestamp64Milli(t) AS placed_at,
    source,
    id,
    epoch,
    `offset`
FROM activity FINAL
WHERE entitlement = {entitlement:String}
    AND time <= fromUnixTimestamp64Milli({before_ms:Int64}, 'UTC') AND time >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
    AND (time, epoch, `offset`, element)
        < (fromUnixTimestamp64Milli({before_ms:Int64}, 'UTC'), {before_epoch:UInt32}, {before_offset:Int64}, {before_element:String})
    AND element IN {visible:Array(String)} AND ({element:String} = '' OR element = {element:String})
    AND (empty({types:Array(String)}) OR type IN {types:Array(String)})
    AND ({seat:String} = '' OR seat_id = {seat:String})
    AND ({user:String} = '' OR user = {user:String})
ORDER BY time DESC, epoch DESC, `offset` DESC, element DESC
LIMIT {rows:UInt32};
