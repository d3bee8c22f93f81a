"""Every metric, in one list. Seconds and bytes; labels are bounded: no customers, entitlements or seats."""

from prometheus_client import Counter, Gauge, Histogram

# --- Worker

# Records of entitlement-events that were processed: applied, repeats, late ones and dead letters.
EVENTS = Counter("seatmark_events_processed_total", "Records of entitlement-events processed")
# Events that were known already. A steady trickle is retries; a flood is a producer that sends everything twice.
DUPLICATES = Counter("seatmark_events_duplicate_total", "Events that were repeats of one known already")
# Events without live effect because they came too late; they are in the raw log.
LATE = Counter("seatmark_events_late_total", "Events too late for the live numbers, per element")
# Records that could not be applied, by the reason in their dead letter's header.
DEAD_LETTERS = Counter("seatmark_events_dead_lettered_total", "Records sent to the dead-letter topic", ["reason"])
# Transitions sent to overdraft-alerts.
ALERTS = Counter("seatmark_alerts_sent_total", "Transitions sent to overdraft-alerts", ["type"])
# How many records a chunk has: small when traffic is light, thousands when a backlog is worked off.
CHUNK_RECORDS = Histogram("seatmark_chunk_records", "Records in one chunk", buckets=(1, 10, 100, 500, 1000, 2000, 5000))
# Where the time of a chunk goes: fold (decode and fold), outputs (sent and acknowledged), state (changelog written).
CHUNK_SECONDS = Histogram("seatmark_chunk_seconds", "Seconds per chunk, by stage", ["stage"])
# Open holds with a lease that may run out, in this worker's partitions. Not those that ended under the policy `keep`.
LEASES_WATCHED = Gauge("seatmark_leases_watched", "Open holds with a lease that is watched")
# Events that Seatmark produced because a lease ran out. After a crash some may be produced again; they are known as repeats.
LEASES_EXPIRED = Counter("seatmark_leases_expired_total", "Expiries of leases produced")
# Rounds in which not every lease that ran out could be dealt with. More than a few: its holds stay open, and levels too high.
LEASE_FAILURES = Counter("seatmark_lease_failures_total", "Rounds in which expiries could not be produced, and are tried again")

# --- Sink

# Rows that ClickHouse has acknowledged, by table. Rows sent again after a crash count again.
SINK_ROWS = Counter("seatmark_sink_rows_total", "Rows stored in ClickHouse", ["table"])
# Batches of records that were stored and whose offsets were then committed.
SINK_BATCHES = Counter("seatmark_sink_batches_total", "Batches of records stored")
# One insert, as it was at last successful. Rising towards a second: the server is short of something.
SINK_INSERT_SECONDS = Histogram("seatmark_sink_insert_seconds", "Seconds per insert", ["table"])
# Inserts that failed and are tried again. More than a few: ClickHouse is away, and only the sink waits for it.
SINK_INSERT_FAILURES = Counter("seatmark_sink_insert_failures_total", "Inserts that failed and are tried again")
# How old what readers see is: from the arrival of a batch's oldest record on its topic to its being stored.
SINK_FRESHNESS_SECONDS = Histogram(
    "seatmark_sink_freshness_seconds",
    "Seconds from a record's arrival on its topic until it is stored, for the oldest record of each batch",
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
)
