-- By source partition: all raw rows up to this position are stored, and can be seen.
SELECT `partition`, max(bitOr(bitShiftLeft(toUInt64(epoch), 48), toUInt64(`offset`))) AS position
FROM progress
GROUP BY `partition`;
