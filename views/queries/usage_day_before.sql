-- The latest day of one element before first_day that has a row; nothing where there is none. Looks into every month there is.
SELECT max(day) AS latest
FROM days
WHERE entitlement = {entitlement:String} AND element = {element:String} AND day < {first_day:Date32}
    AND element IN {visible:Array(String)}
HAVING count() > 0;
