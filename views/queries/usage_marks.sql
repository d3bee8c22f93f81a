-- The marks of one element; there may be some before there is a day row.
SELECT first_day, last_day, position
FROM marks FINAL
WHERE entitlement = {entitlement:String} AND element = {element:String}
    AND element IN {visible:Array(String)};
