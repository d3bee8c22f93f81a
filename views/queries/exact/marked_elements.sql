-- The elements that have something to restate: unsettled ones, and those with a marked day before `today` that was not
-- restated since its mark.
SELECT marked.entitlement AS entitlement, marked.element AS element
FROM
(
    SELECT
        entitlement,
        element,
        argMax(since, position) AS since,
        max(position) AS newest,
        groupArray((first_day, last_day, position)) AS ranges
    FROM marks FINAL
    WHERE {entitlement:String} = '' OR entitlement = {entitlement:String}
    GROUP BY entitlement, element
) AS marked
LEFT JOIN (SELECT entitlement, element, position FROM settled FINAL) AS settled
    ON settled.entitlement = marked.entitlement AND settled.element = marked.element
LEFT JOIN (SELECT entitlement, element, position, through FROM restatements FINAL) AS restated
    ON restated.entitlement = marked.entitlement AND restated.element = marked.element
WHERE (marked.since > 0 AND marked.newest > settled.position)
    OR arrayExists(
        mark -> if(mark.3 > restated.position, mark.1, greatest(mark.1, restated.through)) < {today:Date32}
            AND if(mark.3 > restated.position, mark.1, greatest(mark.1, restated.through)) <= mark.2,
        marked.ranges
    )
ORDER BY entitlement, element;
