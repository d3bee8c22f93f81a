-- The raw rows of some elements that have personal data in them, of one month.
SELECT *
FROM activity FINAL
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
    AND toYYYYMM(time) = {month:UInt32}
    AND (isNotNull(user) OR isNotNull(ip) OR isNotNull(host) OR isNotNull(reason) OR NOT startsWith(event, {rewritten:String}));
