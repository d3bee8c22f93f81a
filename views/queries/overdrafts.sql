-- Who is in overdraft now, the longest first; and how often each went into it in the 30 days before the instant `at`.
SELECT
    now.entitlement AS entitlement,
    now.element AS element,
    now.customer AS customer,
    now.product AS product,
    now.name AS name,
    now.kind AS kind,
    toUnixTimestamp64Milli(now.since) AS since,
    now.level AS level,
    now.`limit` AS `limit`,
    now.hard_limit AS hard_limit,
    now.overage AS overage,
    now.peak AS peak,
    now.state AS state,
    toUnixTimestamp64Milli(now.as_of) AS as_of,
    entered.episodes AS episodes_in_30_days
FROM overdrawn_now AS now
LEFT JOIN
(
    SELECT entitlement, element, uniqExact(id) AS episodes
    FROM alerts
    WHERE type = 'overdraft.entered'
        AND at > {at:DateTime64(3, 'UTC')} - INTERVAL 30 DAY
        AND at <= {at:DateTime64(3, 'UTC')}
    GROUP BY entitlement, element
) AS entered
    ON entered.entitlement = now.entitlement AND entered.element = now.element
ORDER BY since, entitlement, element;
