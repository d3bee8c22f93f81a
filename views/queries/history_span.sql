-- How far back from a place in the history of one entitlement `rows` raw-log rows reach: the time of the oldest of them, and how many
-- there are. Reads the sort key backwards and stops, so that a page costs the same wherever it is, and however long the log is.
-- An empty filter lets everything through.
SELECT toUnixTimestamp64Milli(min(time)) AS oldest, count() AS found
FROM
(
    SELECT time
    FROM activity
    WHERE entitlement = {entitlement:String}
        AND time <= fromUnixTimestamp64Milli({before_ms:Int64}, 'UTC') AND time >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
        AND (time, epoch, `offset`, element)
                < (fromUnixTimestamp64Milli({before_ms:Int64}, 'UTC'), {before_epoch:UInt32}, {before_offset:Int64}, {before_element:String})
        AND element IN {visible:Array(String)} AND ({element:String} = '' OR element = {element:String})
        AND (empty({types:Array(String)}) OR type IN {types:Array(String)})
        AND ({seat:String} = '' OR seat_id = {seat:String})
        AND ({user:String} = '' OR user = {user:String})
    ORDER BY time DESC
    LIMIT {rows:UInt32}
);
