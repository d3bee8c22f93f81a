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
# How much of the dead-letter limit a partition has used up. Above 1 the worker stops: be told at a half.
DEAD_LETTER_LIMIT_USED = Gauge(
    "seatmark_dead_letter_limit_used_ratio", "Share of the dead-letter limit that a partition has used up", ["partition"]
)
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

# --- Restatement

# One pass. Longer than the interval between passes: many elements see disorder, or one has a long history and no checkpoint.
RESTATE_SECONDS = Histogram(
    "seatmark_restate_seconds", "Seconds per pass of the restatement", buckets=(0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800)
)
# Elements that the last pass found unsettled or with days to restate.
RESTATE_WAITING = Gauge("seatmark_restate_waiting", "Elements that the last pass of the restatement looked at")
# Day rows written with exact values.
RESTATED_DAYS = Counter("seatmark_restated_days_total", "Day rows restated")
# Corrections that change something: live levels or holds that disorder had left wrong.
CORRECTIONS = Counter("seatmark_corrections_total", "Corrections sent that change something")
# Elements whose live level does not follow from their raw log. Any is a defect, or state that was tampered with.
RESTATE_UNEXPLAINED = Counter("seatmark_restate_unexplained_total", "Live levels that do not follow from the raw log")

# Passes and audits that failed and are tried again: brokers or ClickHouse are away, or there is a defect; the log says.
UPKEEP_FAILURES = Counter("seatmark_upkeep_failures_total", "Restatements and audits that failed", ["what"])

# --- Audit

# One audit of all elements that a process looks after: the whole raw log is folded.
AUDIT_SECONDS = Histogram("seatmark_audit_seconds", "Seconds per audit", buckets=(1, 10, 60, 600, 3600, 36000))
# Values that the last audit found different from the exact ones. Anything but 0 is a defect: look at `seatmark audit`.
AUDIT_DIFFERENCES = Gauge("seatmark_audit_differences", "Differences that the last audit found")
