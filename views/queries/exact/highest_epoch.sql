-- The highest epoch of all positions that are stored: what comes next must be newer than all of them.
-- `progress` has epochs of which no row is left, because only repeats of earlier events came in them.
SELECT greatest(
    (SELECT max(epoch) FROM activity),
    (SELECT max(bitShiftRight(position, 48)) FROM days),
    (SELECT max(bitShiftRight(position, 48)) FROM marks),
    (SELECT max(bitShiftRight(position, 48)) FROM settled),
    (SELECT max(epoch) FROM progress)
) AS epoch;
