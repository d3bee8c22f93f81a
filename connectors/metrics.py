"""The collector's metrics: a list of its own, because connectors know nothing of `processors` but the domain."""

from prometheus_client import Counter

# Events that came over HTTP, by what became of them: sent; refused, together with all of their request; not_sent, because the
# brokers did not acknowledge them in time. Who sent those must send them again, so they count again.
COLLECTED = Counter("seatmark_collect_events_total", "Events that came over HTTP", ["outcome"])
for _outcome in ("sent", "refused", "not_sent"):
    # From the start, so that the first of a kind is a rise.
    COLLECTED.labels(_outcome)
