-- The reporting time zone, and the date in it that holds the instant `at`.
SELECT
    (SELECT value FROM settings FINAL WHERE name = 'timezone') AS timezone,
    toString(day) AS day
FROM calendar FINAL
WHERE starts_at <= {at:DateTime64(3, 'UTC')} AND ends_at > {at:DateTime64(3, 'UTC')};
