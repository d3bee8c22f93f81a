-- Of the latest stored day of one element before first_day: what is carried from it into the days after it.
SELECT toString(day) AS date, closing, closing_limit, closing_hard_limit, closing_terms_known, position, restated
FROM days FINAL
WHERE entitlement = {entitlement:String} AND element = {element:String} AND day =
    (
        SELECT max(day)
        FROM days
        WHERE entitlement = {entitlement:String} AND element = {element:String} AND day < {first_day:Date32}
    )
    AND element IN {visible:Array(String)};
