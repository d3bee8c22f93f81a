-- How far some elements are settled and restated, and how their live levels were when last told. 0 and '' where nothing is.
SELECT
    asked.1 AS entitlement,
    asked.2 AS element,
    settled.position AS settled,
    restated.position AS restated,
    if(restated.position > 0, toString(restated.through), '') AS through,
    live.position AS live_position,
    live.level AS live_level
FROM (SELECT arrayJoin({elements:Array(Tuple(String, String))}) AS asked) AS wanted
LEFT JOIN
(
    SELECT entitlement, element, position FROM settled FINAL WHERE entitlement IN {entitlements:Array(String)}
) AS settled
    ON settled.entitlement = asked.1 AND settled.element = asked.2
LEFT JOIN
(
    SELECT entitlement, element, position, through FROM restatements FINAL WHERE entitlement IN {entitlements:Array(String)}
) AS restated
    ON restated.entitlement = asked.1 AND restated.element = asked.2
LEFT JOIN
(
    SELECT entitlement, element, position, level FROM elements FINAL WHERE entitlement IN {entitlements:Array(String)}
) AS live
    ON live.entitlement = asked.1 AND live.element = asked.2;
