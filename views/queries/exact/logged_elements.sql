-- The elements that have events, or day rows without any.
SELECT DISTINCT entitlement, element
FROM
(
    SELECT entitlement, element FROM activity WHERE {entitlement:String} = '' OR entitlement = {entitlement:String}
    UNION ALL
    SELECT entitlement, element FROM elements WHERE {entitlement:String} = '' OR entitlement = {entitlement:String}
)
ORDER BY entitlement, element;
