-- Whether an event came again, at any time, is asked for each page of a history (views/queries/arrivals.sql). Without an index the ids
-- of all events of the entitlement are read for that. It is about 2 bytes for an event, of 57.
--
-- Parts from before get it in the background, from their ids alone; until then they are read as before.
ALTER TABLE activity ADD INDEX IF NOT EXISTS by_id id TYPE bloom_filter(0.001) GRANULARITY 1;

ALTER TABLE activity MATERIALIZE INDEX by_id SETTINGS mutations_sync = 0;
