-- What overdraft there was in the days from first_day to `today`, as they stand at the instant `at`, of the given elements (a list of
-- entitlement and element). Day rows are completed and filled as in the view `usage`; this reads them for many elements at once.
-- days: (day, max, limit, seconds over, peak overage, denials) of each date, the oldest first.
WITH
    toUnixTimestamp64Milli({at:DateTime64(3, 'UTC')}) AS at_ms,
    shown AS
    (
        SELECT entitlement, element
        FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)})
        WHERE (entitlement, element) IN {elements:Array(Tuple(String, String))}
    ),
    stored AS
    (
        SELECT entitlement, element, day, `max`, `limit`, overdraft_ms, peak_overage, denials, as_of, closing, closing_limit
        FROM days FINAL
        WHERE day >= {first_day:Date32} AND day <= {today:Date32}
            AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
        UNION ALL
        SELECT entitlement, element, day, `max`, `limit`, overdraft_ms, peak_overage, denials, as_of, closing, closing_limit
        FROM days FINAL
        WHERE (entitlement, element, day) IN
        (
            SELECT entitlement, element, max(day)
            FROM days
            WHERE day < {first_day:Date32} AND (entitlement, element) IN {elements:Array(Tuple(String, String))}
            GROUP BY entitlement, element
        )
    ),
    dates AS
    (
        SELECT day, toUnixTimestamp64Milli(starts_at) AS starts_ms, toUnixTimestamp64Milli(ends_at) AS ends_ms
        FROM calendar FINAL
        WHERE day >= {first_day:Date32} AND day <= {today:Date32} AND ends_at > starts_at
    )
SELECT
    entitlement,
    element,
    toDecimal64(sum(over_ms), 3) / 1000 AS overdraft_seconds,
    max(overage) AS peak_overage,
    sum(denied) AS denials,
    arraySort(groupArray((toString(date), most, date_limit, over_ms / 1000, overage, denied))) AS days
FROM
(
    SELECT
        dated.entitlement AS entitlement,
        dated.element AS element,
        dated.day AS date,
        stored.day = dated.day AS own,
        if(own, toUnixTimestamp64Milli(stored.as_of), dated.starts_ms) AS known_ms,
        if(dated.day >= {today:Date32}, greatest(at_ms, known_ms), dated.ends_ms) AS end_ms,
        ifNull(greatest(stored.closing - stored.closing_limit, 0), 0) AS closing_overage,
        if(own, stored.`max`, stored.closing) AS most,
        if(own, stored.`limit`, stored.closing_limit) AS date_limit,
        if(own, stored.overdraft_ms, 0) + if(closing_overage > 0, end_ms - known_ms, 0) AS over_ms,
        if(own, stored.peak_overage, closing_overage) AS overage,
        if(own, stored.denials, 0) AS denied
    FROM (SELECT * FROM shown CROSS JOIN dates) AS dated
    ASOF LEFT JOIN stored
        ON dated.entitlement = stored.entitlement AND dated.element = stored.element AND dated.day >= stored.day
)
GROUP BY entitlement, element;
