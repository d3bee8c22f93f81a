-- How many overdrafts of the given elements (`visible`, a list of entitlement and element) ended from `from` up to `at`.
SELECT entitlement, element, uniqExact(id) AS ended
FROM alerts
WHERE entitlement IN {entitlements:Array(String)} AND (entitlement, element) IN {visible:Array(Tuple(String, String))}
    AND type = 'overdraft.left' AND at >= {from:DateTime64(3, 'UTC')} AND at <= {at:DateTime64(3, 'UTC')}
GROUP BY entitlement, element;
