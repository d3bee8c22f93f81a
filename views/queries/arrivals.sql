-- Of events of one entitlement, by their ids: where each arrived first. An event that came again with another time has more rows.
SELECT element, source, id, min((epoch, `offset`)) AS first_arrival
FROM activity
WHERE entitlement = {entitlement:String} AND id IN {ids:Array(String)}
    AND element IN {visible:Array(String)}
GROUP BY element, source, id;
