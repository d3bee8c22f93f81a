"""Corrections: what they change, what they leave alone, and that they never make a right level wrong."""

from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.domain.corrections import corrections_between
from processors.domain.days import Calendar
from processors.domain.element import Element, Head
from processors.domain.holds import Hold
from processors.domain.ledger import Ledger, Outcome, position_of
from schemas.corrections import HOLDS_PER_PART
from schemas.days import Settled
from schemas.events import (
    RESTATE_SOURCE,
    CorrectedHold,
    CorrectedTerms,
    Correction,
    ElementTerms,
    Event,
    decode,
    parse_time,
)
from tests import model
from tests.processors.domain.test_ledger import (
    Document,
    Fold,
    activated,
    checked_out,
    counted,
    deactivated,
    denied,
    limited,
    ms,
    reset,
    snapshot,
    used,
)
from tests.random_logs import DAY, HOUR, logs

# --- Rule by rule. All times are on 2026-03-10.


@pytest.fixture
def fold() -> Fold:
    return Fold()


def correct(
    fold: Fold,
    basis: int,
    holds: dict[str, int] | None = None,
    *,
    element: str = "seats",
    difference: int = 0,
    terms: CorrectedTerms | None = None,
    changed_at: str = "09:00",
    part: int = 0,
    parts: int = 1,
    id: str | None = None,
) -> Outcome:
    """Apply a correction that was computed after the event at offset `basis`."""
    fold.offset += 1
    corrected = tuple(CorrectedHold(seat, quantity, None, ms(changed_at)) for seat, quantity in (holds or {}).items())
    event = Event(
        type="entitlement.snapshot",
        entitlement="ent-1",
        source=RESTATE_SOURCE,
        id=id or f"correction-{fold.offset}",
        time=ms("23:00"),
        element=element,
        correction=Correction(position_of(1, basis), part, parts, corrected, difference, terms),
    )
    [outcome] = fold.ledger.apply(event, position_of(1, fold.offset))
    return outcome


def settled(fold: Fold) -> list[Settled]:
    return fold.take().settled


def test_a_correction_opens_closes_and_changes_holds(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "10:01"))
    outcome = correct(fold, 1, {"b": 0, "c": 3})
    assert (outcome.effect, outcome.late, outcome.delta, outcome.level) == (True, False, 2, 4)
    assert fold.holds() == {"a": 1, "c": 3}


def test_a_correction_stands_at_the_clock_which_does_not_move(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "10:01"))
    assert correct(fold, 1, {"b": 0}).t == ms("10:01")
    assert fold.head().clock == ms("10:01")
    assert fold.day(10).as_of == ms("10:01")
    assert fold.day(10).closing == 1


def test_a_correction_leaves_alone_what_was_touched_after_its_basis(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "10:01"))
    outcome = correct(fold, 0, {"b": 0, "c": 1})
    assert outcome.delta == 1
    assert fold.holds() == {"a": 1, "b": 1, "c": 1}


def test_a_late_event_about_a_hold_touches_it_for_corrections(fold: Fold) -> None:
    """Exactly, the seat is open again since then: the correction does not know that yet."""
    fold.apply(activated("a", "07:00"), activated("b", "10:00"))
    fold.apply(deactivated("a", "07:10"), activated("a", "07:20"))
    assert not correct(fold, 2, {"a": 0}).effect
    assert fold.holds() == {"a": 1, "b": 1}
    assert correct(fold, 4, {"a": 0}).effect


def test_a_late_event_about_an_unknown_seat_keeps_unknown_seats_from_being_opened(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("x", "07:00"), deactivated("x", "07:10"))
    assert not correct(fold, 1, {"x": 1}).effect
    assert correct(fold, 3, {"x": 1}).effect


def test_a_late_snapshot_holds_up_the_whole_correction(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), snapshot("07:00", {"b": 1}))
    assert not correct(fold, 0, {"a": 0}).effect
    assert correct(fold, 1, {"b": 1}).effect


def test_a_snapshot_holds_up_the_corrections_from_before_it(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), snapshot("10:10", {"a": 1, "b": 1}))
    assert not correct(fold, 0, {"c": 1}).effect
    assert fold.holds() == {"a": 1, "b": 1}


def test_an_effective_correction_holds_up_those_from_before_it(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "10:10"))
    assert correct(fold, 1, {"a": 0}).effect
    assert not correct(fold, 1 - 1, {"c": 1}).effect
    assert correct(fold, 3, {"c": 1}).effect


def test_a_correction_without_effect_holds_up_none(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "10:10"))
    assert not correct(fold, 1).effect
    assert correct(fold, 1, {"a": 0}).effect


def test_the_parts_of_a_correction_do_not_hold_up_one_another(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "10:10"))
    assert correct(fold, 1, {"a": 0}, part=0, parts=2).effect
    assert correct(fold, 1, {"b": 0}, part=1, parts=2).effect
    assert fold.holds() == {}
    fold.apply(snapshot("10:20", {"c": 1}))
    assert not correct(fold, 1, {"d": 1}, part=2, parts=3).effect


def test_a_forgotten_closed_hold_holds_up_corrections_from_before_it(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), deactivated("a", "10:30"), activated("b", "12:00"))
    assert "a" not in fold.ledger.elements["ent-1", "seats"].holds
    assert not correct(fold, 0, {"a": 1}).effect
    assert correct(fold, 1, {"x": 1}).effect


def test_a_difference_is_added_to_the_total_whatever_was_used_since(fold: Fold) -> None:
    fold.apply(used("10:00", quantity=5), used("10:01", quantity=2))
    outcome = correct(fold, 0, element="count", difference=-3)
    assert (outcome.delta, outcome.level) == (-3, 4)


@pytest.mark.parametrize("document", [reset("10:01"), counted(7, "10:01"), used("07:00")])
def test_a_difference_says_nothing_after_a_reset_a_snapshot_or_a_late_use(fold: Fold, document: Document) -> None:
    fold.apply(used("10:00", quantity=5), document)
    before = fold.level("count")
    assert not correct(fold, 0, element="count", difference=3).effect
    assert fold.level("count") == before


def test_a_difference_is_not_added_twice(fold: Fold) -> None:
    fold.apply(used("10:00", quantity=5), denied("10:01"))
    assert correct(fold, 0, element="count", difference=3).level == 8
    assert not correct(fold, 1, element="count", difference=3).effect
    assert fold.level("count") == 8


def test_a_level_never_becomes_negative(fold: Fold) -> None:
    fold.apply(used("10:00", quantity=5))
    assert correct(fold, 0, element="count", difference=-9).level == 0


TERMS = CorrectedTerms(ElementTerms(limit=1), parse_time("2026-03-10T09:00:00Z"), "cus", None, None, None)


def test_terms_are_corrected_unless_there_are_newer_ones(fold: Fold) -> None:
    fold.apply(limited("09:30", 5), activated("a", "10:00"), activated("b", "10:01"))
    outcome = correct(fold, 2, terms=TERMS)
    assert outcome.effect
    assert outcome.transition is not None
    assert (outcome.transition.type, outcome.transition.cause_source) == ("overdraft.entered", RESTATE_SOURCE)
    assert (fold.head().customer, fold.head().terms_at) == ("cus", ms("09:00"))
    fold.apply(limited("10:30", 7))
    assert not correct(fold, 3, terms=TERMS).effect
    assert fold.head().terms is not None
    assert fold.head().terms.limit == 7


def test_a_transition_that_a_correction_causes_is_sent_now_with_itself_as_cause(fold: Fold) -> None:
    fold.apply(limited("09:30", 1), activated("a", "10:00"), activated("b", "10:05"))
    transition = correct(fold, 2, {"b": 0}, id="c1").transition
    assert transition is not None
    assert (transition.type, transition.before, transition.after) == ("overdraft.left", "overdraft", "at_limit") or (
        transition.type, transition.before, transition.after) == ("overdraft.left", "over_hard_limit", "at_limit")  # fmt: skip
    assert (transition.cause_source, transition.cause_id, transition.cause_type, transition.at) == (
        RESTATE_SOURCE, "c1", "entitlement.snapshot", ms("10:05"))  # fmt: skip


def test_a_correction_counts_as_no_event_of_the_day(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    correct(fold, 0, {"a": 0})
    row = fold.day(10)
    assert (row.activations, row.deactivations, row.refreshes, row.denials) == (1, 0, 0, 0)


def test_a_correction_of_an_element_without_events_does_nothing(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    assert not correct(fold, 0, {"a": 1}, element="render").effect


def test_a_repeated_correction_is_a_repeat(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    correct(fold, 0, {"a": 0}, id="same")
    fold.apply(activated("a", "10:01"))
    with pytest.raises(ValueError, match="not enough values"):
        correct(fold, 0, {"a": 0}, id="same")
    assert fold.holds() == {"a": 1}


# --- Unsettled: from the first mark to the first correction that finds nothing


def test_an_element_is_unsettled_from_its_first_mark_until_a_clean_correction(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "09:30"))
    assert fold.head().unsettled_since == position_of(1, 1)
    correct(fold, 1, {"b": 0})
    assert fold.head().unsettled_since == position_of(1, 1)
    assert settled(fold) == []
    correct(fold, 2)
    assert fold.head().unsettled_since == 0
    assert settled(fold) == [Settled(entitlement="ent-1", element="seats", position=position_of(1, 3))]


def test_a_correction_that_skipped_something_settles_nothing(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "09:30"), activated("c", "10:01"))
    correct(fold, 1, {"c": 0})
    assert fold.head().unsettled_since == position_of(1, 1)


def test_a_correction_from_before_the_last_disorder_settles_nothing(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "09:30"), activated("c", "09:40"))
    correct(fold, 1)
    assert fold.head().unsettled_since == position_of(1, 1)
    correct(fold, 2)
    assert fold.head().unsettled_since == 0


def test_one_clean_part_of_several_settles_nothing(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "09:30"))
    correct(fold, 1, {"a": 1}, part=0, parts=2)
    assert fold.head().unsettled_since == position_of(1, 1)


def marks(fold: Fold) -> list[tuple[str, str, int, int]]:
    return [(mark.first_day, mark.last_day, mark.position, mark.since) for mark in fold.take().marks]


def test_every_day_is_marked_until_the_element_is_settled(fold: Fold) -> None:
    since = position_of(1, 1)
    fold.apply(activated("a", "10T10:00"), activated("b", "10T09:30"))
    assert marks(fold) == [("2026-03-10", "2026-03-10", since, since)]
    fold.apply(activated("c", "13T10:00"))
    assert marks(fold) == [("2026-03-11", "2026-03-13", position_of(1, 2), since)]
    fold.apply(activated("d", "13T11:00"))
    assert marks(fold) == [("2026-03-13", "2026-03-13", position_of(1, 3), since)]
    correct(fold, 3)
    fold.apply(activated("e", "14T10:00"))
    assert marks(fold) == []


def test_an_event_on_a_day_that_was_marked_marks_it_again(fold: Fold) -> None:
    """Its row is newer than the restated one, so it has to be restated again."""
    fold.apply(activated("a", "10:00"), activated("b", "09:30"))
    correct(fold, 1)
    fold.take()
    fold.apply(activated("c", "10:30"))
    assert marks(fold) == [("2026-03-10", "2026-03-10", position_of(1, 3), 0)]


def test_an_effective_correction_marks_the_day_that_it_changes(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    correct(fold, 0, {"a": 0})
    here = position_of(1, 1)
    assert marks(fold) == [("2026-03-10", "2026-03-10", here, here)]


# --- What is different between two states


def element_with(holds: dict[str, int], total: int = 0) -> Element:
    head = Head("ent-1", "seats", level=sum(holds.values()) + total, total=total, clock=5)
    return Element(head, {seat: Hold(quantity, 3, 1, None, b"") for seat, quantity in holds.items()})


def test_equal_states_need_an_empty_correction() -> None:
    state = element_with({"a": 1}, 4)
    assert corrections_between(state, element_with({"a": 1, "closed": 0}, 4), 9) == [Correction(9, 0, 1, (), 0, None)]


def test_only_what_differs_is_sent() -> None:
    live, exact = element_with({"a": 1, "b": 1, "d": 1}, 4), element_with({"a": 1, "b": 0, "c": 2}, 1)
    [correction] = corrections_between(live, exact, 9)
    assert set(correction.holds) == {
        CorrectedHold("b", 0, None, 3), CorrectedHold("c", 2, None, 3), CorrectedHold("d", 0, None, 0)}  # fmt: skip
    assert correction.difference == -3


def test_a_large_correction_comes_in_parts() -> None:
    exact = element_with({f"s{number}": 1 for number in range(2 * HOLDS_PER_PART + 1)}, total=2)
    parts = corrections_between(element_with({}), exact, 9)
    assert [(part.part, part.parts, len(part.holds), part.difference) for part in parts] == [
        (0, 3, HOLDS_PER_PART, 2), (1, 3, HOLDS_PER_PART, 0), (2, 3, 1, 0)]  # fmt: skip


# --- Random logs: a restater that is always behind


@dataclass
class Pipeline:
    """A live fold, and a restater that computes corrections from what has arrived."""

    late_after: int
    live: Ledger = field(init=False)
    rows: list[Event] = field(default_factory=list)
    documents: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.live = Ledger(Calendar("UTC"), self.late_after)

    def arrive(self, document: dict[str, Any]) -> None:
        self.documents.append(document)
        self._apply(decode(orjson.dumps(document), key=b"e", appended_at=None))

    def _apply(self, event: Event) -> None:
        self.rows.append(event)
        self.live.apply(event, position_of(1, len(self.rows)))

    def corrections(self) -> list[Event]:
        """One for each element, computed from all that is there now."""
        basis = position_of(1, len(self.rows))
        exact = Ledger(Calendar("UTC"), self.late_after)
        seen = set()
        arrived = []
        for number, event in enumerate(self.rows, start=1):
            if event.correction is None and (event.source, event.id) not in seen:
                seen.add((event.source, event.id))
                arrived.append((event, position_of(1, number)))
        for event, position in sorted(arrived, key=lambda pair: pair[0].time):
            exact.apply(event, position)
        found = []
        for (_, name), element in exact.elements.items():
            for part in corrections_between(self.live.elements["e", name], element, basis):
                found.append(Event("entitlement.snapshot", "e", RESTATE_SOURCE, f"{name}-{basis}", 0, name, correction=part))
        return found

    def right_things(self) -> dict[tuple[str, str], Any]:
        """Which seats and totals are, live, what they are exactly."""
        exact = model.run(self.documents, timezone="UTC", late_after_ms=self.late_after, exact=True)
        right: dict[tuple[str, str], Any] = {}
        for (_, name), wanted in exact.items():
            element = self.live.elements["e", name]
            for seat in set(element.holds) | set(wanted.holds):
                hold = element.holds.get(seat)
                if (hold.quantity if hold else 0) == wanted.holds.get(seat, 0):
                    right[name, seat] = wanted.holds.get(seat, 0)
            if element.head.total == wanted.total:
                right[name, ""] = wanted.total
        return right

    def correct(self, corrections: list[Event]) -> None:
        before = self.right_things()
        for event in corrections:
            self._apply(event)
        after = self.right_things()
        lost = {key: value for key, value in before.items() if value and key not in after}
        # A seat that is closed in both is in neither list once it is forgotten.
        lost |= {
            key: value
            for key, value in before.items()
            if key not in after and (hold := self.live.elements["e", key[0]].holds.get(key[1])) and hold.quantity
        }
        assert not lost, "a correction made wrong what was right"


@settings(max_examples=400, deadline=None)
@given(log=logs(), late_after=st.sampled_from([15 * 60_000, HOUR, DAY]), data=st.data())
def test_corrections_never_make_right_wrong_and_end_at_the_exact_state(
    log: list[dict[str, Any]], late_after: int, data: st.DataObject
) -> None:
    pipeline = Pipeline(late_after)
    waiting: list[tuple[int, list[Event]]] = []
    for number, document in enumerate(log):
        pipeline.arrive(document)
        for due, corrections in [item for item in waiting if item[0] <= number]:
            pipeline.correct(corrections)
            waiting.remove((due, corrections))
        if data.draw(st.integers(0, 3)) == 0:
            waiting.append((number + data.draw(st.integers(0, 6)), pipeline.corrections()))
    for _, corrections in waiting:
        pipeline.correct(corrections)
    for _ in range(3):
        pipeline.correct(pipeline.corrections())

    exact = model.run(pipeline.documents, timezone="UTC", late_after_ms=late_after, exact=True)
    settled_elements = {record.element for record in pipeline.live.take_changes().settled}
    for (_, name), wanted in exact.items():
        element = pipeline.live.elements["e", name]
        open_holds = {seat: hold for seat, hold in element.holds.items() if hold.quantity}
        assert {seat: hold.quantity for seat, hold in open_holds.items()} == wanted.holds
        assert {seat: hold.lease_end for seat, hold in open_holds.items()} == wanted.leases
        assert (element.head.level, element.head.total, element.head.state) == (wanted.level, wanted.total, wanted.state)
        assert element.head.unsettled_since == 0
        assert name in settled_elements


def test_checked_out_units_are_corrected_to_their_quantity(fold: Fold) -> None:
    fold.apply(checked_out("a", "10:00", quantity=3))
    assert correct(fold, 0, {"a": 2}, element="render").delta == -1
