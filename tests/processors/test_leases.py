"""Leases that run out, without Kafka: which are due, under which policy, and what the event that closes the hold does."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors import leases as module
from processors.domain.days import Calendar
from processors.domain.ledger import Ledger, Outcome, position_of
from processors.leases import Lease, LeasePolicy, LeaseWatch, expiry_of
from schemas.events import LEASES_SOURCE, RESTATE_SOURCE, CorrectedHold, Correction, Event, decode, format_time
from tests.processors.domain.test_ledger import (
    HOUR,
    MINUTE,
    Document,
    Fold,
    activated,
    changed,
    checked_out,
    deactivated,
    feature_refreshed,
    limited,
    ms,
    refreshed,
    returned,
    snapshot,
)
from tests.processors.test_rebuild import raw_log, rebuilt
from tests.processors.test_rebuild import recovered as recovered_from_rebuild
from tests.processors.test_state import PARTITION, new_worker, recovered, sources

GRACE = MINUTE


def lease(seat: str, end: str, element: str = "seats", entitlement: str = "ent-1") -> Lease:
    return Lease(ms(end), entitlement, element, seat)


class Watched:
    """A ledger and the watch over its leases, as a worker keeps them: each call of `apply` is a chunk."""

    def __init__(self) -> None:
        self.fold = Fold()
        self.watch = LeaseWatch(self.fold.ledger)

    def apply(self, *documents: Document) -> list[Outcome]:
        outcomes = self.fold.apply(*documents)
        self.changes = self.fold.take()
        self.watch.note(self.changes)
        return outcomes

    def take(self, by: str, default: LeasePolicy = "release", most: int = 100) -> list[Lease]:
        return self.watch.take(ms(by), default, most)


@pytest.fixture
def watched() -> Watched:
    return Watched()


# --- Which are due


def test_a_lease_is_due_from_its_end_on_and_given_once(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    assert not watched.watch.any_ended(ms("10:59:59.999"))
    assert watched.watch.any_ended(ms("11:00"))
    assert watched.take("11:00") == [lease("a", "11:00")]
    assert not watched.watch.any_ended(ms("23:00"))
    assert watched.take("23:00") == []


def test_leases_are_given_in_the_order_of_their_ends(watched: Watched) -> None:
    watched.apply(
        activated("late", "10:00", lease="12:00"),
        checked_out("tool", "10:00", lease="11:00"),
        activated("early", "10:00", lease="10:30", subject="ent-2"),
        activated("none", "10:00"),
    )
    assert len(watched.watch) == 3
    assert watched.take("23:00", most=2) == [
        lease("early", "10:30", entitlement="ent-2"),
        lease("tool", "11:00", element="render"),
    ]
    assert watched.take("23:00") == [lease("late", "12:00")]
    assert len(watched.watch) == 0


@pytest.mark.parametrize(
    "end_of_it",
    [
        deactivated("a", "10:30"),
        refreshed("a", "10:30"),
        snapshot("10:30", {"b": 1}),
        snapshot("10:30", {"a": 1}),
        snapshot("10:30", {"a": 0}),
    ],
    ids=["deactivated", "refreshed without a lease", "not in a snapshot", "no lease in a snapshot", "0 in a snapshot"],
)
def test_a_hold_that_is_closed_or_has_no_lease_any_more_is_not_due(watched: Watched, end_of_it: Document) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    watched.apply(end_of_it)
    assert len(watched.watch) == 0
    assert watched.take("23:00") == []


def test_a_hold_that_was_closed_in_the_chunk_that_opened_it_is_not_due(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"), deactivated("a", "10:10"))
    assert watched.take("23:00") == []


def test_a_refresh_moves_the_end(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    watched.apply(refreshed("a", "10:50", lease="12:00"))
    assert not watched.watch.any_ended(ms("11:59"))
    assert watched.take("12:00") == [lease("a", "12:00")]


def test_a_shorter_lease_counts_from_its_own_end(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="20:00"))
    watched.apply(refreshed("a", "10:10", lease="11:00"))
    assert watched.take("11:00") == [lease("a", "11:00")]
    assert watched.take("23:00") == []


def test_a_refresh_that_is_in_the_ledger_and_not_yet_noted_counts(watched: Watched) -> None:
    """The ledger is ahead of the watch while a chunk's outputs and state are being written."""
    watched.apply(activated("a", "10:00", lease="11:00"), activated("b", "10:00", lease="11:00"))
    watched.fold.apply(refreshed("a", "10:50", lease="12:00"), deactivated("b", "10:50"))
    assert watched.take("11:00") == []
    watched.watch.note(watched.fold.ledger.take_changes())
    assert watched.take("12:00") == [lease("a", "12:00")]
    assert watched.take("23:00") == []


def test_a_seat_that_comes_back_is_watched_again(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    watched.apply(deactivated("a", "10:30"))
    watched.apply(activated("a", "10:40", lease="11:00"))
    assert watched.take("23:00") == [lease("a", "11:00")]
    assert watched.take("23:00") == []


def test_a_late_event_changes_nothing(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    [outcome] = watched.apply(refreshed("a", "09:00", lease="12:00"))
    assert outcome.late
    assert watched.take("11:00") == [lease("a", "11:00")]


def test_a_lease_that_a_correction_brings_is_watched(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    corrected = CorrectedHold("a", 1, ms("12:00"), ms("10:30"))
    correction = Correction(position_of(1, 0), 0, 1, (corrected,), 0, None)
    restated = Event("entitlement.snapshot", "ent-1", RESTATE_SOURCE, "1", ms("10:31"), "seats", correction=correction)
    watched.fold.ledger.apply(restated, position_of(1, 9))
    watched.watch.note(watched.fold.ledger.take_changes())
    assert watched.take("11:59") == []
    assert watched.take("12:00") == [lease("a", "12:00")]


# --- What was taken


def test_what_is_put_back_is_given_again(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    [taken] = watched.take("11:00")
    watched.watch.put_back(taken)
    assert watched.take("11:00") == [taken]


@pytest.mark.parametrize("meanwhile", [deactivated("a", "11:01"), refreshed("a", "11:01")], ids=["closed", "without a lease"])
def test_what_is_put_back_is_not_given_again_if_its_hold_has_changed(watched: Watched, meanwhile: Document) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    [taken] = watched.take("11:00")
    watched.apply(meanwhile)
    watched.watch.put_back(taken)
    assert watched.take("23:00") == []


def test_what_is_put_back_after_a_refresh_is_given_at_the_new_end(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    [taken] = watched.take("11:00")
    watched.apply(refreshed("a", "11:01", lease="12:00"))
    watched.watch.put_back(taken)
    assert watched.take("11:59") == []
    assert watched.take("12:00") == [lease("a", "12:00")]
    assert watched.take("23:00") == []


def test_a_lease_that_was_taken_is_not_taken_again_because_the_hold_is_touched(watched: Watched) -> None:
    watched.apply(checked_out("a", "10:00", quantity=3, lease="11:00"))
    assert watched.take("11:00") == [lease("a", "11:00", element="render")]
    # What is left keeps its lease.
    watched.apply(returned("a", "11:30", quantity=1))
    assert watched.fold.lease("a", "render") == ms("11:00")
    assert watched.take("23:00") == []


@pytest.mark.parametrize("between", [refreshed("a", "10:20", lease="13:00"), deactivated("a", "10:20")])
def test_a_lease_that_ends_as_one_that_was_taken_is_given_if_there_was_something_else_between(
    watched: Watched, between: Document
) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    assert watched.take("11:00") == [lease("a", "11:00")]
    watched.apply(between)
    watched.apply(refreshed("a", "10:30", lease="11:00"))
    assert watched.take("11:00") == [lease("a", "11:00")]


# --- Policies


def kept(at: str, *elements: str, policy: str | None = "keep", **more: Any) -> Document:
    """Terms with a lease policy."""
    named = {name: {"limit": 9} for name in elements or ("seats",)}
    return changed(at, named, **({"lease_policy": policy} if policy is not None else {}), **more)


def test_without_terms_the_deployments_policy_counts(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    assert watched.take("23:00", "keep") == []
    assert not watched.watch.any_ended(ms("23:00"))


@pytest.mark.parametrize(("own", "default"), [("keep", "release"), (None, "keep")])
def test_under_keep_nothing_is_due(watched: Watched, own: str | None, default: LeasePolicy) -> None:
    watched.apply(kept("09:00", policy=own), activated("a", "10:00", lease="11:00"))
    assert watched.take("23:00", default) == []
    assert len(watched.watch) == 0


@pytest.mark.parametrize(("own", "default"), [("release", "keep"), (None, "release")])
def test_under_release_it_is(watched: Watched, own: str | None, default: LeasePolicy) -> None:
    watched.apply(kept("09:00", policy=own), activated("a", "10:00", lease="11:00"))
    assert watched.take("23:00", default) == [lease("a", "11:00")]


def test_the_policy_is_that_of_the_entitlements_latest_terms_of_whichever_element(watched: Watched) -> None:
    watched.apply(
        kept("09:00", "seats"),
        kept("09:30", "render", policy="release"),
        # Not the latest, although the last to come.
        kept("09:10", "count"),
        kept("09:00", "seats", subject="ent-2"),
        activated("a", "10:00", lease="11:00"),
        activated("b", "10:00", lease="11:00", subject="ent-2"),
    )
    assert watched.take("23:00") == [lease("a", "11:00")]


def test_of_terms_of_the_same_time_the_last_to_come_counts(watched: Watched) -> None:
    watched.apply(kept("09:00", "seats"), kept("09:00", "render", policy="release"), activated("a", "10:00", lease="11:00"))
    assert watched.take("23:00") == [lease("a", "11:00")]


def test_latest_terms_without_a_policy_leave_it_to_the_deployment(watched: Watched) -> None:
    watched.apply(kept("09:00"), limited("09:30", 5), activated("a", "10:00", lease="11:00"))
    assert watched.take("23:00", "release") == [lease("a", "11:00")]


def test_what_was_kept_comes_back_when_the_policy_becomes_release(watched: Watched) -> None:
    watched.apply(kept("09:00"), *(activated(seat, "10:00", lease="11:00") for seat in "abcd"))
    assert watched.take("11:00") == []
    watched.apply(deactivated("b", "11:10"), refreshed("c", "11:10", lease="12:00"), refreshed("d", "11:10"))
    assert watched.take("11:30") == []
    watched.apply(kept("11:40", "render", policy="release"))
    assert watched.take("11:40") == [lease("a", "11:00")]
    assert watched.take("23:00") == [lease("c", "12:00")]


def test_what_was_kept_is_looked_at_again_when_terms_leave_it_to_the_deployment(watched: Watched) -> None:
    watched.apply(kept("09:00"), activated("a", "10:00", lease="11:00"))
    assert watched.take("11:00") == []
    watched.apply(limited("11:40", 5))
    assert watched.take("11:40", "keep") == []
    watched.apply(kept("11:50", policy="release"))
    assert watched.take("11:50", "keep") == [lease("a", "11:00")]


def test_a_kept_hold_that_is_renewed_ends_again(watched: Watched) -> None:
    watched.apply(kept("09:00"), activated("a", "10:00", lease="11:00"))
    assert watched.take("11:00") == []
    watched.apply(refreshed("a", "11:10", lease="12:00"))
    assert len(watched.watch) == 1
    watched.apply(kept("11:20", policy="release"))
    assert watched.take("11:59") == []
    assert watched.take("12:00") == [lease("a", "12:00")]


# --- What it costs


class Counting(dict[Any, Any]):
    """A ledger's elements; counts the looks."""

    looks = 0

    def get(self, *arguments: Any) -> Any:
        self.looks += 1
        return super().get(*arguments)

    def items(self) -> Any:
        raise AssertionError("looked at all elements")

    values = __iter__ = items


def test_the_next_lease_is_found_without_looking_at_the_others(watched: Watched) -> None:
    watched.apply(activated("next", "10:00", lease="11:00", subject="ent-9"))
    for number in range(500):
        watched.apply(activated("a", "10:00", lease="12:00", subject=f"ent-{number}"))
    elements = watched.fold.ledger.elements = Counting(watched.fold.ledger.elements)
    assert not watched.watch.any_ended(ms("10:59"))
    assert elements.looks == 0
    assert watched.take("11:00", most=1) == [lease("next", "11:00", entitlement="ent-9")]
    assert not watched.watch.any_ended(ms("11:59"))
    assert elements.looks <= 3


def test_refreshes_and_seats_that_come_and_go_do_not_fill_the_memory(watched: Watched) -> None:
    for number in range(3000):
        at = f"10:{number // 60:02}:{number % 60:02}"
        watched.apply(refreshed("a", at, lease="20:00"), refreshed("b", at, lease=f"11:{at[3:]}"))
        watched.apply(deactivated("a", at))
    assert len(watched.watch) == 1
    assert len(watched.watch._heap) <= 2 + module._SPARE_ENTRIES
    assert watched.take("23:00") == [lease("b", "11:49:59")]


def test_kept_holds_are_forgotten_when_they_are_closed_and_not_looked_at_again_for_nothing(watched: Watched) -> None:
    watched.apply(kept("09:00"), *(activated(f"seat-{number}", "10:00", lease="11:00") for number in range(100)))
    assert watched.take("11:00") == []
    elements = watched.fold.ledger.elements
    watched.fold.ledger.elements = counting = Counting(elements)
    watched.apply(limited("11:00", 9, lease_policy="keep"), refreshed("other", "11:10"))
    assert counting.looks <= 3
    watched.fold.ledger.elements = elements
    watched.apply(*(deactivated(f"seat-{number}", "11:30") for number in range(100)))
    assert watched.watch._kept == {}


# --- Against a scan of everything


class Model:
    """The rules by scanning all holds and all terms, each time."""

    def __init__(self) -> None:
        self.ledger = Ledger(Calendar("UTC"), HOUR)
        self.watch = LeaseWatch(self.ledger)
        self.log: list[Event] = []
        self.taken: set[Lease] = set()

    def apply(self, document: Document) -> None:
        read = decode(orjson.dumps(document), key="any", appended_at=None)
        self.ledger.apply(read, position_of(1, len(self.log)))
        self.log.append(read)

    def note(self) -> None:
        self.watch.note(self.ledger.take_changes())
        self.taken &= set(self.leases())

    def leases(self) -> list[Lease]:
        """Of all open holds, in order."""
        return sorted(
            Lease(hold.lease_end, entitlement, name, seat)
            for (entitlement, name), element in self.ledger.elements.items()
            for seat, hold in element.holds.items()
            if hold.quantity and hold.lease_end is not None
        )

    def policy(self, entitlement: str) -> str | None:
        terms = [(read.time, at) for at, read in enumerate(self.log) if read.terms and read.entitlement == entitlement]
        return self.log[max(terms)[1]].lease_policy if terms else None

    def due(self, by: int, default: str) -> list[Lease]:
        return [
            lease
            for lease in self.leases()
            if lease.end <= by and (self.policy(lease.entitlement) or default) == "release" and lease not in self.taken
        ]


# Few moments, so that ends, events and looks meet.
TICK = 10 * MINUTE
START = ms("09:00")


class Step(NamedTuple):
    """What happens, and when: moments are counted in ticks from the step before."""

    kind: str
    pause: int
    back: int
    build: Callable[..., Document]
    seat: str
    subject: str
    lease: int | None
    policy: str | None
    elements: tuple[str, ...]


CHOICES: list[list[Any]] = [
    ["apply"] * 3 + ["chunk"] * 6 + ["take"] * 3 + ["fail", "recover"],
    [0, 0, 0, 1],
    [0, 0, 0, 1, 2],
    [activated, refreshed, activated, refreshed, checked_out, feature_refreshed, deactivated, returned, kept, kept],
    ["a", "a", "a", "b"],
    ["ent-1", "ent-1", "ent-1", "ent-2"],
    [None, 1, 2, 3, 4],
    ["keep", "release", None],
    [("seats",), ("render",), ("seats", "render")],
]


def step_of(number: int) -> Step:
    """Hypothesis prefers small numbers, and is slow with nine choices: the number is a seed."""
    chance = random.Random(number)
    return Step(*(chance.choice(choices) for choices in CHOICES))


steps = st.lists(st.integers(0, 2**32).map(step_of), min_size=40, max_size=80)


def document_of(step: Step, time: int) -> Document:
    """The event of a step. A lease is in ticks; a checkout takes 2 units and a return gives 1 back."""
    at = format_time(time).removesuffix("Z")
    if step.build is kept:
        return kept(at, *step.elements, policy=step.policy, subject=step.subject)
    more: dict[str, Any] = {"subject": step.subject}
    if step.build in (checked_out, returned):
        more["quantity"] = 2 if step.build is checked_out else 1
    if step.build not in (deactivated, returned) and step.lease is not None:
        more["lease"] = format_time(time + step.lease * TICK).removesuffix("Z")
    return step.build(step.seat, at, **more)


@settings(max_examples=200, deadline=None)
@given(steps=steps, default=st.sampled_from(["release", "keep"]), most=st.integers(1, 3))
def test_the_watch_is_a_scan_of_everything(steps: list[Step], default: LeasePolicy, most: int) -> None:
    model = Model()
    now = START
    under_way: list[Lease] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_SPARE_ENTRIES", 0)
        for step in steps:
            now += step.pause * TICK
            if step.kind in ("apply", "chunk"):
                model.apply(document_of(step, now - step.back * TICK))
                if step.kind == "chunk":
                    model.note()
            elif step.kind == "recover":
                model.ledger.take_changes()
                model.watch.rebuild()
                model.taken, under_way = set(), []
            else:
                model.note()
                # A server's clock may be behind ours.
                by = now + step.back * TICK
                expected = model.due(by, default)
                taken: list[Lease] = []
                while model.watch.any_ended(by):
                    taken += model.watch.take(by, default, most)
                assert taken == expected
                model.taken |= set(taken)
                # Failures are known only later, when others may have come.
                if step.kind == "fail":
                    failed, under_way = under_way, taken
                    for lease in failed:
                        model.watch.put_back(lease)
                        model.taken.discard(lease)


# --- The event, and what the fold makes of it


def expiry(of: Lease, grace: int = GRACE) -> Document:
    document: Document = orjson.loads(expiry_of(of, grace))
    return document


def test_the_event_of_a_seat() -> None:
    # The id is uuid5(NAMESPACE_URL, 'seatmark:["lease","ent-1","seats","a",1773140400000]').
    assert expiry(lease("a", "11:00")) == {
        "specversion": "1.0",
        "id": "8571c072-e480-5ffc-8035-c6c7b241fa28",
        "source": "/seatmark/leases",
        "type": "seat.expired",
        "subject": "ent-1",
        "time": "2026-03-10T11:01:00.000Z",
        "data": {"seat_id": "a", "reason": "lease_expired"},
    }


def test_the_event_of_a_feature_names_it() -> None:
    document = expiry(lease("a", "11:00", element="render"))
    assert document["type"] == "feature.expired"
    assert document["data"] == {"seat_id": "a", "reason": "lease_expired", "element": "render"}


def test_the_event_is_one_of_the_contract() -> None:
    for of in (lease("a", "11:00"), lease("\u00e9\u0000", "11:00", element="r", entitlement="e\u20ac")):
        read = decode(expiry_of(of, GRACE), key=of.entitlement.encode(), appended_at=of.end + GRACE)
        assert (read.source, read.time) == (LEASES_SOURCE, of.end + GRACE)
        assert (read.entitlement, read.element, read.seat_id) == of[1:]


def test_one_lease_has_one_id_whatever_the_grace_and_another_lease_another() -> None:
    first = expiry(lease("a", "11:00"))["id"]
    assert expiry(lease("a", "11:00"), grace=1)["id"] == first
    others = [
        lease("b", "11:00"),
        lease("a", "11:00:00.001"),
        lease("a", "11:00", element="render"),
        lease("a", "11:00", entitlement="ent-2"),
    ]
    assert len({first, *(expiry(other)["id"] for other in others)}) == 5


@pytest.mark.parametrize("build", [activated, checked_out])
def test_it_closes_the_hold_as_of_lease_end_and_grace(watched: Watched, build: Any) -> None:
    watched.apply(build("a", "10:00", lease="11:00"))
    [due] = watched.take("11:00")
    [outcome] = watched.apply(expiry(due))
    assert (outcome.delta, outcome.level, outcome.t, outcome.effect) == (-1, 0, ms("11:01"), True)
    assert watched.fold.day(10, due.element).deactivations == 1
    # Once more, from a worker that was killed after it had sent it.
    assert watched.apply(expiry(due)) == []
    assert watched.take("23:00") == []


def test_it_takes_all_units_of_the_hold(watched: Watched) -> None:
    watched.apply(checked_out("a", "10:00", quantity=3, lease="11:00"))
    [due] = watched.take("11:00")
    [outcome] = watched.apply(expiry(due))
    assert (outcome.delta, outcome.level) == (-3, 0)


def test_a_refresh_that_is_in_the_log_before_it_wins(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    [due] = watched.take("11:00")
    watched.apply(refreshed("a", "10:55", lease="12:00"))
    [outcome] = watched.apply(expiry(due))
    assert (outcome.delta, outcome.level, outcome.effect) == (0, 1, False)
    assert watched.take("12:00") == [lease("a", "12:00")]


def test_a_refresh_from_before_it_that_comes_after_it_is_late(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    [due] = watched.take("11:00")
    watched.apply(expiry(due))
    [outcome] = watched.apply(refreshed("a", "10:55", lease="12:00"))
    assert (outcome.late, outcome.level) == (True, 0)
    assert watched.take("23:00") == []


def test_a_refresh_from_after_it_opens_the_hold_again(watched: Watched) -> None:
    watched.apply(activated("a", "10:00", lease="11:00"))
    [due] = watched.take("11:00")
    watched.apply(expiry(due))
    [outcome] = watched.apply(refreshed("a", "11:01", lease="12:00"))
    assert (outcome.late, outcome.delta, outcome.level) == (False, 1, 1)
    assert watched.take("12:00") == [lease("a", "12:00")]


def test_it_is_not_late_however_long_ago_the_lease_ended(watched: Watched) -> None:
    """As after a policy that was `keep`, or a worker that was away: others have moved the clock on."""
    watched.apply(activated("a", "10:00", lease="11:00"), activated("b", "20:00"))
    [due] = watched.take("20:00")
    [outcome] = watched.apply(expiry(due))
    assert (outcome.late, outcome.delta, outcome.t) == (False, -1, ms("20:00"))
    [mark] = watched.changes.marks
    assert (mark.first_day, mark.last_day) == ("2026-03-10", "2026-03-10")


# --- Recovery


def test_after_a_recovery_leases_and_policies_are_watched_again() -> None:
    worker = new_worker()
    worker.process(
        sources(
            [
                activated("a", "10:00", lease="11:00"),
                activated("b", "10:00", lease="11:00"),
                checked_out("c", "10:00", lease="10:30"),
                activated("d", "10:00", lease="11:00", subject="ent-4"),
                kept("10:00", subject="ent-4"),
                deactivated("b", "10:10"),
                refreshed("a", "10:20", lease="12:00"),
            ]
        )
    )
    watch = recovered(worker.changelog).of(PARTITION).leases
    assert len(watch) == 3
    assert watch.take(ms("23:00"), "release", 10) == [lease("c", "10:30", element="render"), lease("a", "12:00")]


def test_after_a_rebuild_leases_are_watched_again() -> None:
    items = rebuilt(raw_log([activated("a", "10:00", lease="11:00"), activated("b", "10:00"), kept("09:00", policy="release")]))
    states = recovered_from_rebuild(items)
    [partition] = {partition for partition, _ in items}
    assert states.of(partition).leases.take(ms("23:00"), "keep", 10) == [lease("a", "11:00")]


def test_an_expiry_that_was_applied_is_not_due_after_a_recovery() -> None:
    worker = new_worker()
    worker.process(sources([activated("a", "10:00", lease="11:00"), expiry(lease("a", "11:00"))]))
    assert len(recovered(worker.changelog).of(PARTITION).leases) == 0
