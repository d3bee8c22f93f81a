-- The months (such as 202603) before `before` that have personal data on the disk: in columns, or in events as they came.
SELECT DISTINCT toYYYYMM(time) AS month
FROM activity
WHERE time < {before:DateTime64(3, 'UTC')}
    AND (isNotNull(user) OR isNotNull(ip) OR isNotNull(host) OR isNotNull(reason) OR NOT startsWith(event, {rewritten:String}))
ORDER BY month;
