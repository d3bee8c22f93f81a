-- The dates from first_day to last_day that happen in the reporting time zone, in order.
SELECT toString(day) AS date, toUnixTimestamp64Milli(starts_at) AS starts_ms, toUnixTimestamp64Milli(ends_at) AS ends_ms
FROM calendar FINAL
WHERE day >= {first_day:Date32} AND day <= {last_day:Date32} AND ends_at > starts_at
ORDER BY day;
