-- The elements that have personal data on the disk in one month.
SELECT DISTINCT entitlement, element
FROM activity
WHERE toYYYYMM(time) = {month:UInt32}
    AND (isNotNull(user) OR isNotNull(ip) OR isNotNull(host) OR isNotNull(reason) OR NOT startsWith(event, {rewritten:String}))
ORDER BY entitlement, element;
