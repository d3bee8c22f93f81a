-- The marks of one element; there may be some before there is a day row.
SELECT toString(first_day) AS first_date, toString(last_day) AS last_date, position
FROM marks FINAL
WHERE entitlement = {entitlement:String} AND element = {element:String}
    AND element IN {visible:Array(String)};
