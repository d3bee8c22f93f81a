"""Random logs of one entitlement, for properties."""

from typing import Any

from hypothesis import strategies as st

from schemas.events import format_time

HOUR = 3_600_000
DAY = 24 * HOUR
# 2026-03-28 to 30 in Europe/Paris holds the spring change of the clock.
START = 1_774_600_000_000 // DAY * DAY

moments = st.one_of(
    st.integers(0, 4 * DAY),
    # Ties, midnights and the edge of the late rule are where mistakes live.
    st.integers(0, 12).map(lambda n: n * 8 * HOUR),
    st.integers(0, 40).map(lambda n: n * 15 * 60_000),
)
seats = st.sampled_from(["a", "b", "c"])
quantities = st.one_of(st.none(), st.integers(1, 4))
leases = st.one_of(st.none(), st.integers(1, 6 * HOUR))
customers = st.one_of(st.none(), st.sampled_from(["c1", "c2"]))
overdrafts = st.one_of(
    st.none(),
    st.just({"type": "none"}),
    st.builds(lambda n: {"type": "absolute", "value": n}, st.integers(0, 3)),
    st.builds(lambda p: {"type": "percentage", "value": p}, st.sampled_from([0, 12.5, 33.3333, 50, 100])),
    st.just({"type": "unlimited"}),
)
HOLD_TYPES = [
    "seat.activated", "seat.refreshed", "seat.deactivated", "seat.expired", "seat.denied",
    "feature.checked_out", "feature.returned", "feature.refreshed", "feature.expired", "feature.denied",
]  # fmt: skip


def _lease(data: dict[str, Any], time: int, length: int | None) -> None:
    if length is not None:
        data["lease_expires_at"] = format_time(time + length)


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    time = START + draw(moments)
    kind = draw(st.sampled_from([*HOLD_TYPES, *HOLD_TYPES, "feature.used", "feature.reset", "entitlement.changed",
                                 "entitlement.snapshot"]))  # fmt: skip
    data: dict[str, Any] = {}
    if (customer := draw(customers)) is not None and kind not in ("seat.expired", "feature.expired"):
        data["customer"] = customer
    if kind in HOLD_TYPES:
        data["seat_id"] = draw(seats)
        if kind.startswith("feature."):
            data["element"] = draw(st.sampled_from(["seats", "render"]))
            if (quantity := draw(quantities)) is not None:
                data["quantity"] = quantity
        if kind.endswith(("activated", "checked_out", "refreshed")):
            _lease(data, time, draw(leases))
    elif kind in ("feature.used", "feature.reset"):
        data["element"] = draw(st.sampled_from(["count", "render"]))
        if kind == "feature.used" and (quantity := draw(quantities)) is not None:
            data["quantity"] = quantity
    elif kind == "entitlement.changed":
        data["elements"] = {
            name: {"limit": draw(st.one_of(st.none(), st.integers(0, 4))), "overdraft": draw(overdrafts)}
            for name in draw(st.sets(st.sampled_from(["seats", "render", "count"]), min_size=1))
        }
    elif draw(st.booleans()):
        data |= {"element": draw(st.sampled_from(["seats", "render"])), "holds": []}
        for seat in draw(st.sets(seats)):
            hold = {"seat_id": seat, "quantity": draw(st.integers(0, 3))}
            _lease(hold, time, draw(leases))
            data["holds"].append(hold)
    else:
        data |= {"element": "count", "level": draw(st.integers(0, 5))}
    return {
        "specversion": "1.0", "id": "", "source": "/s", "type": kind, "subject": "e", "time": format_time(time),
        "data": data,
    }  # fmt: skip


@st.composite
def logs(draw: st.DrawFn) -> list[dict[str, Any]]:
    drawn = draw(st.lists(events(), min_size=1, max_size=40))
    if draw(st.booleans()):
        drawn.sort(key=lambda event: event["time"])
    log: list[dict[str, Any]] = []
    for number, event in enumerate(drawn):
        event["id"] = str(number)
        log.append(event)
        # A producer's retry: the same event again, a little later in the log.
        if draw(st.integers(0, 9)) == 0:
            log.append(log[max(0, len(log) - draw(st.integers(1, 6)))])
    return log
