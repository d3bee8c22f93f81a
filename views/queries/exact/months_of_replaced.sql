-- The months (such as 202603) in which more rows are on the disk that have one of these texts in them than a reader sees.
SELECT month
FROM
(
    SELECT toYYYYMM(time) AS month, count() AS rows
    FROM activity
    WHERE user IN {texts:Array(String)} OR seat_id IN {texts:Array(String)} OR multiSearchAny(event, {escaped:Array(String)})
    GROUP BY month
) AS stored
LEFT JOIN
(
    SELECT toYYYYMM(time) AS month, count() AS rows
    FROM activity FINAL
    WHERE user IN {texts:Array(String)} OR seat_id IN {texts:Array(String)} OR multiSearchAny(event, {escaped:Array(String)})
    GROUP BY month
) AS seen
    ON stored.month = seen.month
WHERE stored.rows > seen.rows
ORDER BY month;
