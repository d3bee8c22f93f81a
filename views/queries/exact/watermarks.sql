-- By partition of the source topic: all raw rows up to this position are stored, and can be seen.
SELECT `partition`, max(position) AS position
FROM progress
WHERE topic = {topic:String}
GROUP BY `partition`;
