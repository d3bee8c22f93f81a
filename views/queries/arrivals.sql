-- All raw-log rows of events of one entitlement, by their ids. An event that came again has more than one: with the same time until
-- ClickHouse has merged them, with another time for good.
SELECT element, source, id, time, epoch, `offset`, rank
FROM activity
WHERE entitlement = {entitlement:String} AND id IN {ids:Array(String)} AND element IN {visible:Array(String)};
