"""Every metric of worker and sink, in one list. Seconds and bytes; labels are bounded: no customers, entitlements or seats.

deploy/prometheus/rules.yml says which of them should wake somebody; docs/runbooks.md what to do then.
"""

from prometheus_client import Counter, Gauge, Histogram

from schemas.dead_letters import REASONS

# --- Worker and sink

# The checks of /readyz (docs/delivery.md, 'Health') as 1 or 0. `loop` is not among them: a loop that hangs cannot set this, and
# ends the process.
CHECKS = Gauge("seatmark_check_ok", "Whether a check of /readyz is in order", ["check"])
# How far a process is behind in a partition that it reads: a worker in entitlement-events, a sink in what workers put out.
LAG_RECORDS = Gauge("seatmark_lag_records", "Offsets between the last record done and the end", ["topic", "partition"])
# The same as time. 0: nothing is to be done. While a backlog is worked off it is an upper bound, some seconds old.
LAG_SECONDS = Gauge("seatmark_lag_seconds", "Age of the oldest record that is not done yet", ["topic", "partition"])

# --- Worker

# Records of entitlement-events that were processed: applied, repeats, late ones and dead letters.
EVENTS = Counter("seatmark_events_processed_total", "Records of entitlement-events processed")
# Events of these that the fold took: neither repeats nor refused. Late ones are among them.
APPLIED = Counter("seatmark_events_applied_total", "Events applied")
# Events that were known already. A steady trickle is retries; a flood is a producer that sends everything twice.
DUPLICATES = Counter("seatmark_events_duplicate_total", "Events that were repeats of one known already")
# Events without live effect because they came too late; they are in the raw log.
LATE = Counter("seatmark_events_late_total", "Events too late for the live numbers, per element")
# Records that could not be applied, by the reason in their dead letter's header.
DEAD_LETTERS = Counter("seatmark_events_dead_lettered_total", "Records sent to the dead-letter topic", ["reason"])
for _reason in REASONS:
    # From the start, so that the first of a kind is a rise.
    DEAD_LETTERS.labels(_reason)
# How much of the dead-letter limit a partition has used up. Above 1 the worker stops: be told at a half.
DEAD_LETTER_LIMIT_USED = Gauge(
    "seatmark_dead_letter_limit_used_ratio", "Share of the dead-letter limit that a partition has used up", ["partition"]
)
# Transitions sent to overdraft-alerts.
ALERTS = Counter("seatmark_alerts_sent_total", "Transitions sent to overdraft-alerts", ["type"])
# Records that the brokers acknowledged, by topic, its name without the deployment's prefix. Sent again after a crash they count
# again. (The state is not among them: seatmark_chunk_seconds has its time.)
OUTPUTS = Counter("seatmark_outputs_total", "Records put out", ["topic"])
# How many records a chunk has: small when traffic is light, thousands when a backlog is worked off.
CHUNK_RECORDS = Histogram("seatmark_chunk_records", "Records in one chunk", buckets=(1, 10, 100, 500, 1000, 2000, 5000))
# Where the time of a chunk goes: fold (decode and fold), outputs (sent and acknowledged), state (changelog written).
CHUNK_SECONDS = Histogram("seatmark_chunk_seconds", "Seconds per chunk, by stage", ["stage"])
# Records of state read at assignments, ever; while it grows, a recovery goes on.
RECOVERY_RECORDS = Counter("seatmark_recovery_records_total", "Records of state read from the changelog")
# What the recovery that is under way has still to read, in offsets: compaction has taken some away, so it may go faster.
RECOVERY_REMAINING = Gauge("seatmark_recovery_remaining_records", "Offsets of the changelog still to be read")
# From the moment at which partitions were handed out until their state was in memory.
RECOVERY_SECONDS = Histogram(
    "seatmark_recovery_seconds", "Seconds per recovery", buckets=(0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800)
)
# Open holds with a lease that may run out, in this worker's partitions. Not those that ended under the policy `keep`.
LEASES_WATCHED = Gauge("seatmark_leases_watched", "Open holds with a lease that is watched")
# How long the lease that ran out first has been waiting for its release, beyond the grace; 0: none is due.
LEASES_DUE_SECONDS = Gauge("seatmark_leases_due_seconds", "Seconds that the longest due lease has been waiting")
# Events that Seatmark produced because a lease ran out. After a crash some may be produced again; they are known as repeats.
LEASES_EXPIRED = Counter("seatmark_leases_expired_total", "Expiries of leases produced")
# Rounds in which not every lease that ran out could be dealt with. More than a few: its holds stay open, and levels too high.
LEASE_FAILURES = Counter("seatmark_lease_failures_total", "Rounds in which expiries could not be produced, and are tried again")

# How old what readers see is, as the worker sees it: the sink cannot tell while it is away. 0: all is stored.
UNSTORED_SECONDS = Gauge(
    "seatmark_unstored_seconds", "Age of the oldest record of entitlement-activity that no sink has stored", ["partition"]
)

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

# What failed in the sink's upkeep and is tried again: brokers or ClickHouse are away, or there is a defect; the log says.
UPKEEP_FAILURES = Counter("seatmark_upkeep_failures_total", "Restatements, audits and passes over levels that failed", ["what"])
for _what in ("restatement", "audit", "adding up of levels"):
    UPKEEP_FAILURES.labels(_what)

# --- Audit

# One audit of all elements that a process looks after: the whole raw log is folded.
AUDIT_SECONDS = Histogram("seatmark_audit_seconds", "Seconds per audit", buckets=(1, 10, 60, 600, 3600, 36000))
# Values that the last audit found different from the exact ones. Anything but 0 is a defect: look at `seatmark audit`.
AUDIT_DIFFERENCES = Gauge("seatmark_audit_differences", "Differences that the last audit found")
