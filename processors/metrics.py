"""Every metric, in one list. Seconds and bytes; labels are bounded: no customers, entitlements or seats."""

from prometheus_client import Counter, Histogram

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
CHUNK_RECORDS = Histogram(
    "seatmark_chunk_records", "Records in one chunk", buckets=(1, 10, 100, 500, 1000, 2000, 5000)
)
# Where the time of a chunk goes: fold (decode and fold), outputs (sent and acknowledged), state (changelog written).
CHUNK_SECONDS = Histogram("seatmark_chunk_seconds", "Seconds per chunk, by stage", ["stage"])
