"""The web's metrics: a list of its own, because views know nothing of `processors` but the domain.

Seconds; the route is a pattern, so no entitlement is a label. Served on a port of their own: here anybody could read them.
"""

from prometheus_client import Counter, Histogram

# Requests by route pattern and status. Statuses of 500 and above are ours to explain.
REQUESTS = Counter("seatmark_http_requests_total", "HTTP requests answered", ["route", "status"])
# From a request's arrival to its answer's last byte.
REQUEST_SECONDS = Histogram("seatmark_http_request_seconds", "Seconds per HTTP request", ["route"])
