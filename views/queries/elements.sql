-- The elements that the reader may see, with the most that was used in the 30 days up to the instant `at`: those after the
-- place (after_key, after_entitlement, after_element) in the order asked for.
-- search: in the id, the customer, the product or the name. standing: a state, or overdrawn, or idle, or hitting.
-- key: what is sorted by, the highest first; 0 where only the names count.
-- utilisation: level by limit in ten-thousandths; -1 without a limit, and where the limit is 0 as if it were 1.
WITH
    (
        SELECT max(day) FROM calendar FINAL WHERE starts_at <= {at:DateTime64(3, 'UTC')} AND ends_at > starts_at
    ) AS today,
    recent AS
    (
        SELECT entitlement, element, max(`max`) AS most, sum(denials) AS denied
        FROM days FINAL
        WHERE day > today - 30 AND day <= today
        GROUP BY entitlement, element
    ),
    standings AS
    (
        SELECT
            now.entitlement AS entitlement,
            now.element AS element,
            now.customer AS customer,
            now.product AS product,
            now.name AS name,
            now.kind AS kind,
            now.level AS level,
            now.`limit` AS `limit`,
            now.hard_limit AS hard_limit,
            now.terms_known AS terms_known,
            now.state AS state,
            now.as_of AS as_of,
            greatest(recent.most, now.level) AS peak_30_days,
            recent.denied AS denials_30_days,
            if(isNull(now.`limit`), -1, intDiv(now.level * 10000, greatest(assumeNotNull(now.`limit`), 1))) AS utilisation,
            ifNull(now.`limit` > 0 AND now.kind = 'pool' AND peak_30_days * 10 <= now.`limit`, false) AS idle
        FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)}) AS now
        LEFT JOIN recent ON recent.entitlement = now.entitlement AND recent.element = now.element
    )
SELECT
    entitlement,
    element,
    customer,
    product,
    name,
    kind,
    level,
    `limit`,
    hard_limit,
    terms_known,
    state,
    as_of,
    peak_30_days,
    denials_30_days,
    idle,
    if({sort:String} = 'utilisation', utilisation, 0) AS key
FROM standings
WHERE (-key, entitlement, element) > (-{after_key:Int64}, {after_entitlement:String}, {after_element:String})
    AND positionCaseInsensitiveUTF8( -- if search
        concat(entitlement, '\n', ifNull(customer, ''), '\n', ifNull(product, ''), '\n', ifNull(name, '')), -- if search
        {search:String}) > 0 -- if search
    AND customer = {customer:String} -- if customer
    AND product = {product:String} -- if product
    AND multiIf( -- if standing
        {standing:String} = 'idle', idle, -- if standing
        {standing:String} = 'overdrawn', state IN ('overdraft', 'at_hard_limit', 'over_hard_limit'), -- if standing
        {standing:String} = 'denied', denials_30_days > 0, -- if standing
        state = {standing:String}) -- if standing
ORDER BY key DESC, entitlement, element
LIMIT {rows:UInt32};
