-- The elements with events that have one of these texts in them: of one entitlement, of one customer; '': of all. `escaped`: the texts as
-- they may be written in JSON. Rows that were replaced and not merged yet are looked at too.
SELECT DISTINCT entitlement, element
FROM activity
WHERE (user IN {texts:Array(String)} OR seat_id IN {texts:Array(String)} OR multiSearchAny(event, {escaped:Array(String)}))
    AND ({entitlement:String} = '' OR entitlement = {entitlement:String})
    AND ({customer:String} = '' OR (entitlement, element) IN
    (
        SELECT entitlement, element FROM elements FINAL WHERE customer = {customer:String}
    ))
ORDER BY entitlement, element;
