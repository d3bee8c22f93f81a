-- Up to which record of the source topic everything is stored, by partition.
SELECT `partition`, incarnation, `offset`
FROM progress FINAL
WHERE topic = {topic:String};
