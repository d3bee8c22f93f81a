"""The JSON Schema and the decoder are two statements of one rule: what fits the schema can be read, and the other way round.

Events are made at random, then damaged in one or two places, and shown to both. Where they differ, it must be by one of the
rules that a schema cannot state, and those are worked out here once more, in another way.
"""

import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.events import EVENT_TYPES, RESTATE_SOURCE, Refused
from tests.schemas.contract import EVENT, complaints, read

Document = dict[str, Any]

# --- Valid events.

names = st.sampled_from(["a", "seats", "wks-12", "64300ACD_F", " ", "é", "\u0000", "x" * 300, "é" * 1024]) | st.text(
    min_size=1, max_size=5
)
texts = st.none() | st.just("") | names


def written(moment: datetime, offset: int, fraction: str, utc: str) -> str:
    """A moment as RFC 3339. offset: of the zone, in minutes."""
    local = (moment + timedelta(minutes=offset)).strftime("%Y-%m-%dT%H:%M:%S")
    sign = "-" if offset < 0 else "+"
    zone = utc if offset == 0 else f"{sign}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    return local + fraction + zone


times = st.builds(
    written,
    st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)),
    st.sampled_from([0, 0, 60, -210, 1439, -1439]),
    st.sampled_from(["", ".1", ".123", ".999999999", ".0000000000000001"]),
    st.sampled_from(["Z", "+00:00", "-00:00"]),
)
# Most leases end long after the event; some do not, and that is for the decoder to find.
late_times = st.sampled_from(["2300-01-01T00:00:00Z", "2400-02-29T12:00:00.5+05:45"])
lease_ends = st.none() | late_times | late_times | times


def whole(low: int, high: int) -> st.SearchStrategy[int | float]:
    """Whole numbers in a range, its ends often, some of them as 3.0."""
    numbers = st.sampled_from([low, high]) | st.integers(low, high) | st.integers(low, low + 10)
    return numbers | numbers.map(float)


quantities = whole(1, 10**9)
levels = whole(0, 10**12)
percentages = st.integers(0, 10_000_000).map(lambda n: n / 10_000) | whole(0, 10**6) | st.just(12.34567)
overdrafts = (
    st.none()
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["none", "unlimited"])},
        optional={"value": st.none() | st.floats(allow_nan=False, allow_infinity=False)},
    )
    | st.fixed_dictionaries({"type": st.just("absolute"), "value": levels})
    | st.fixed_dictionaries({"type": st.just("percentage"), "value": percentages})
)
element_terms = st.fixed_dictionaries(
    {"limit": st.none() | levels}, optional={"kind": st.sampled_from(["pool", "counter", None]), "overdraft": overdrafts}
)
holds = st.lists(
    st.fixed_dictionaries({"seat_id": names}, optional={"quantity": whole(0, 10**9), "lease_expires_at": lease_ends}),
    max_size=3,
)

SEAT_ID = {"seat_id": names}
LEASE = {"lease_expires_at": lease_ends}
QUANTITY = {"quantity": st.none() | quantities}
FEATURE = {"element": names, "seat_id": names}
REQUIRED_AND_OPTIONAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "seat.activated": (SEAT_ID, LEASE),
    "seat.refreshed": (SEAT_ID, LEASE),
    "seat.deactivated": (SEAT_ID, {}),
    "seat.expired": (SEAT_ID, {}),
    "seat.denied": ({}, {"seat_id": st.none() | names}),
    "feature.checked_out": (FEATURE, QUANTITY | LEASE),
    "feature.returned": (FEATURE, QUANTITY),
    "feature.refreshed": (FEATURE, QUANTITY | LEASE),
    "feature.expired": (FEATURE, QUANTITY),
    "feature.used": ({"element": names}, QUANTITY | {"seat_id": st.none() | names}),
    "feature.reset": ({"element": names}, QUANTITY | {"seat_id": st.none() | names}),
    "feature.denied": ({"element": names}, QUANTITY | {"seat_id": st.none() | names}),
    "entitlement.changed": (
        {"elements": st.dictionaries(names, element_terms, min_size=1, max_size=3)},
        {"name": texts, "lease_policy": st.sampled_from(["release", "keep", None])},
    ),
    "entitlement.snapshot": ({"element": names}, {}),
}
CORRECTION = {
    "element": names,
    "basis": whole(0, 2**53) | st.just(2**63 - 1),
    "part": whole(0, 1),
    "parts": whole(2, 1_000_000),
}
corrected_holds = st.lists(
    st.fixed_dictionaries(
        {"seat_id": names, "quantity": whole(0, 10**9), "changed_at": times}, optional={"lease_expires_at": lease_ends}
    ),
    max_size=3,
)
corrected_terms = st.fixed_dictionaries(
    {"limit": st.none() | levels, "changed_at": times},
    optional={
        "kind": st.sampled_from(["pool", "counter", None]),
        "overdraft": overdrafts,
        "lease_policy": st.sampled_from(["release", "keep", None]),
        **dict.fromkeys(("customer", "product", "name"), texts),
    },
)
CORRECTED = {
    "holds": st.none() | corrected_holds,
    "difference": st.none() | whole(-(10**12), 10**12),
    "terms": st.none() | corrected_terms,
}
COMMON: dict[str, Any] = dict.fromkeys(("customer", "product", "user", "ip", "host", "reason"), texts)
COMMON |= {"credential": st.sampled_from(["code", "user", None]), "note": texts}


@st.composite
def events(draw: st.DrawFn) -> Document:
    """An event that fits the schema."""
    type = draw(st.sampled_from(sorted(EVENT_TYPES)))
    required, optional = REQUIRED_AND_OPTIONAL[type]
    data = draw(st.fixed_dictionaries(required, optional=optional | COMMON))
    if type == "entitlement.snapshot":
        data |= draw(
            st.fixed_dictionaries({"holds": holds}, optional={"level": st.none()})
            | st.fixed_dictionaries({"level": levels}, optional={"holds": st.none()})
        )
    envelope = {"specversion": "1.0", "id": draw(names), "source": draw(names), "type": type, "subject": draw(names)}
    return envelope | {"time": draw(times), "data": data}


@st.composite
def corrections(draw: st.DrawFn) -> Document:
    """A correction that fits the schema, with fields of an ordinary snapshot and of other events, which mean nothing."""
    envelope = {"specversion": "1.0", "id": draw(names), "source": RESTATE_SOURCE, "type": "entitlement.snapshot"}
    meaningless = dict.fromkeys(("level", "customer", "credential", "seat_id"), anything)
    data = draw(st.fixed_dictionaries(CORRECTION, optional=CORRECTED | meaningless))
    return envelope | {"subject": draw(names), "time": draw(times), "data": data}


# --- Damage.

SCALARS: list[Any] = [
    None, "", "x", "x" * 1024, "x" * 1025, "😀" * 1024,
    "1.0", "none", "absolute", "percentage", "pool", "code", "2026-11-24T02:14:54Z", "2026-02-30T00:00:00Z",
    True, False, -1, 0, 1, 2, 10**9, 10**9 + 1, 10**12, 10**12 + 1, 2**63, 2**64, 10**30,
    -1.0, -0.0, 0.0, 1.0, 0.5, 0.00001, 1e9, 1e12, 1e13, 1e30, 1e300, 5e-324,
]  # fmt: skip
anything = (
    st.sampled_from(SCALARS)
    | st.sampled_from(sorted(EVENT_TYPES))
    | st.recursive(
        st.sampled_from(SCALARS),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["", "type", "value", "limit", "seat_id"]), inner)
        ),
        max_leaves=4,
    )
)
FIELDS = [
    "specversion", "id", "source", "type", "subject", "time", "data", "seat_id", "element", "quantity", "lease_expires_at",
    "holds", "level", "elements", "limit", "overdraft", "value", "kind", "credential", "customer", "", "basis", "part",
    "parts", "difference", "terms", "changed_at",
]  # fmt: skip


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a document, but not its own."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield (*path, name)
        yield from places(child, (*path, name))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        document = document[name]
    return document


@st.composite
def slightly_broken(draw: st.DrawFn) -> Document:
    """An event with one or two values replaced, removed, added, or altered by a character."""
    document = copy.deepcopy(draw(events() | corrections()))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(document)) or [("id",)]))
        parent, name = at(document, path[:-1]), path[-1]
        action = draw(st.sampled_from(["replace", "remove", "add", "alter"]))
        value = parent[name] if action == "alter" else None
        if action == "remove":
            del parent[name]
        elif action == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(FIELDS))] = draw(anything)
        elif isinstance(value, str):
            start = draw(st.integers(0, len(value)))
            end = draw(st.integers(start, min(start + 2, len(value))))
            parent[name] = (
                value[:start] + draw(st.sampled_from(["", "0", "9", "T", "z", "Z", ":", "-", "+", "\n", "é"])) + value[end:]
            )
        else:
            parent[name] = draw(anything)
    return document


# --- The rules that a schema cannot state, of a document that fits it.

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def milliseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(milliseconds=1)


def broken_rules(document: Document) -> set[str]:
    """Which of them the document breaks, by the field that is to blame."""
    data, broken = document["data"], set()
    time = milliseconds(document["time"])
    if time < 0:
        broken.add("time")
    read = {"entitlement.snapshot"} | {
        type for type, (_, optional) in REQUIRED_AND_OPTIONAL.items() if "lease_expires_at" in optional
    }
    correction = document["type"] == "entitlement.snapshot" and document["source"] == RESTATE_SOURCE
    if correction:
        return broken | broken_rules_of_a_correction(data)
    if document["type"] not in read:
        leases = []
    elif document["type"] == "entitlement.snapshot":
        leases = [hold.get("lease_expires_at") for hold in data.get("holds") or []]
    else:
        leases = [data.get("lease_expires_at")]
    if any(end is not None and milliseconds(end) <= max(time, 0) for end in leases):
        broken.add("lease_expires_at")
    if document["type"] == "entitlement.snapshot":
        seats = [hold["seat_id"] for hold in data.get("holds") or []]
        if len(set(seats)) < len(seats):
            broken.add("holds")
    if document["type"] == "entitlement.changed":
        for terms in data["elements"].values():
            if too_precise(terms):
                broken.add("value")
    return broken


def broken_rules_of_a_correction(data: Document) -> set[str]:
    broken = set()
    holds, terms = data.get("holds") or [], data.get("terms") or {}
    if data["part"] >= data["parts"]:
        broken.add("part")
    if len({hold["seat_id"] for hold in holds}) < len(holds):
        broken.add("holds")
    for field in ("changed_at", "lease_expires_at"):
        if any(milliseconds(hold[field]) < 0 for hold in holds if hold.get(field) is not None):
            broken.add(field)
    if terms and milliseconds(terms["changed_at"]) < 0:
        broken.add("changed_at")
    if too_precise(terms):
        broken.add("value")
    return broken


def too_precise(terms: Document) -> bool:
    overdraft = terms.get("overdraft") or {"type": "none"}
    return overdraft["type"] == "percentage" and round(overdraft["value"], 4) != overdraft["value"]


def check(document: Document) -> None:
    """The decoder reads a document if and only if it fits the schema and breaks none of the other rules."""
    against = complaints(EVENT, document)
    found = read(json.dumps(document).encode())
    if not isinstance(found, Refused):
        assert against == []
        assert broken_rules(document) == set()
    elif not against:
        assert [field for field in broken_rules(document) if f"{field}: expected" in found.detail] != []


@settings(max_examples=150, deadline=None)
@given(events() | corrections())
def test_an_event_that_is_made_to_fit_does(document: Document) -> None:
    assert complaints(EVENT, document) == []
    check(document)


ENVELOPE: Document = {"specversion": "1.0", "id": "1", "source": "/s", "subject": "e", "time": "2026-11-24T02:14:54Z"}
LIMIT: Document = {"limit": 1}
TOO_PRECISE: Document = {"overdraft": {"type": "percentage", "value": 12.34567}}
OVERDRAFT: Document = {"overdraft": {"type": "absolute", "value": 2.0}}
SNAPSHOT: Document = ENVELOPE | {"type": "entitlement.snapshot"}
OWN: Document = SNAPSHOT | {"source": RESTATE_SOURCE}
BASIS: Document = {"element": "a", "basis": 1, "part": 0, "parts": 1}


@settings(max_examples=600, deadline=None)
@given(slightly_broken())
@example(ENVELOPE | {"type": "entitlement.changed", "data": {"elements": {"a": LIMIT | OVERDRAFT}}})
@example(ENVELOPE | {"type": "entitlement.changed", "data": {"elements": {"a: b": LIMIT | TOO_PRECISE}}})
@example(ENVELOPE | {"type": "seat.activated", "time": "1969-12-31T23:59:59Z", "data": {"seat_id": "a"}})
@example(OWN | {"data": {"element": "a", "level": 1}})
@example(OWN | {"data": BASIS | {"level": "x"}})
@example(OWN | {"data": BASIS | {"basis": 2.0**60}})
@example(OWN | {"data": BASIS | {"basis": 2.0**63}})
@example(OWN | {"data": BASIS | {"part": 1}})
@example(OWN | {"data": BASIS | {"terms": LIMIT | TOO_PRECISE | {"changed_at": "2026-11-24T02:14:54Z"}}})
@example(OWN | {"data": BASIS | {"terms": LIMIT | {"changed_at": "1969-12-31T23:59:59Z"}}})
@example(SNAPSHOT | {"data": {"element": "a", "level": 1, "basis": "x", "terms": 1, "part": [], "difference": None}})
@example(SNAPSHOT | {"data": BASIS})
@example(OWN | {"type": "seat.activated", "data": {"seat_id": "a", "basis": "x"}})
def test_schema_and_decoder_agree_on_a_damaged_event(document: Document) -> None:
    check(document)
