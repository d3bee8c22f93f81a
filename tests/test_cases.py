"""The golden cases of tests/cases, against the fold and against the model: live, and exact."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from processors.codec import STATE_VERSION, Cursor, StateRecord, element_records, encode_changes, finish_restore, restore
from processors.domain.days import Calendar, DayBounds
from processors.domain.element import Element
from processors.domain.ledger import Ledger, Outcome, Transition, position_of
from processors.exact import Plan, RawRow, exact_history
from processors.outputs import alert_of
from schemas.alerts import encode_alert
from schemas.days import DayMark, DayRow
from schemas.events import Event, Refused, decode
from tests import model
from tests.cases_compare import (
    CASES,
    DAY_COUNTS,
    DAY_FIELDS,
    Came,
    alert_words,
    cases_for,
    days_between,
    days_of,
    differences,
    report,
    result_problem,
)
from tests.cases_format import Case, CaseWrong, ElementKey, Record, exact_order, load_cases, parse_instant

# A record without an arrival of its own came long after the event, and before the year of those dated in the future.
APPENDED_AT = parse_instant("2026-11-24T00:00:00Z")


@pytest.mark.parametrize("case", cases_for("fold"))
def test_the_fold(case: Case) -> None:
    live = Folded(case)
    problems = [live.apply(record, event) for record, event in decoded(case).items()]
    found = [problem for problem in problems if problem]
    found += differences(case, case.then, live.came())
    assert live.recovered() == records_of(live.ledger), "what is said to have changed is what has changed"
    exactly = exact(live)
    found += [f"exactly, {problem}" for problem in differences(case, case.then_exactly(), exactly)]
    if exact_order(case.reported) == case.accepted:
        assert exactly == live.came(), "all events are in order: live and exact are equal"
    assert not found, report(case, found)


@pytest.mark.parametrize("case", cases_for("model"))
def test_the_model(case: Case) -> None:
    found = []
    # It knows no corrections, which the exact numbers leave out.
    if case.reported == case.accepted:
        live = model_run(case, exact=False)
        found = model_results(live, case.accepted) + differences(case, case.then, model_came(case, live, case.then))
    expected = case.then_exactly()
    came = model_came(case, model_run(case, exact=True), expected)
    found += [f"exactly, {problem}" for problem in differences(case, expected, came)]
    assert not found, report(case, found)


# --- The fold.


def decoded(case: Case) -> dict[Record, Event]:
    """The events of the records that are accepted; those that are not are refused for the reason that the case says."""
    events: dict[Record, Event] = {}
    for record in case.records:
        appended_at = APPENDED_AT if record.appended_at is None else record.appended_at
        if record.result.dead is None:
            events[record] = decode(value_of(case, record), key=record.key, appended_at=appended_at)
            continue
        reason, field = record.result.dead
        with pytest.raises(Refused) as refused:
            decode(record.value, key=record.key, appended_at=appended_at)
        assert (refused.value.reason, refused.value.detail[: len(field)]) == (reason, field), f"event {record.line}"
    return events


def offset_of(case: Case, record: Record) -> int:
    """Where a record stands in the log of its case."""
    return case.accepted.index(record)


def value_of(case: Case, record: Record) -> bytes:
    """A record's bytes; in a correction they say where its basis stands."""
    if record.basis is None:
        return record.value
    return record.value_with(position_of(1, offset_of(case, case.basis_of(record))))


class Folded:
    """The live fold of one case, and what it gave. raw: the rows of the raw log: all but repeats that were recognised."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.calendar = Calendar(case.timezone)
        self.ledger = Ledger(self.calendar, case.late_after)
        self.rows: dict[ElementKey, dict[str, DayRow]] = {}
        self.marks: list[DayMark] = []
        self.alerts: dict[ElementKey, list[dict[str, Any]]] = {}
        self.raw: dict[ElementKey, list[tuple[Event, RawRow]]] = {}
        self.changelog: list[StateRecord] = []

    def apply(self, record: Record, event: Event) -> str | None:
        """Apply one event; what is not as the case says, if anything."""
        offset = offset_of(self.case, record)
        outcomes = self.ledger.apply(event, position_of(1, offset))
        for outcome in outcomes:
            key = event.entitlement, outcome.element
            if outcome.transition is not None:
                self.alerts.setdefault(key, []).append(alert_in_words(outcome.transition))
            self.raw.setdefault(key, []).append((event, RawRow(*key, 1, offset, value_of(self.case, record))))
        changes = self.ledger.take_changes()
        for row in changes.days:
            self.rows.setdefault((row.entitlement, row.element), {})[row.day] = row
        self.marks += changes.marks
        self.changelog += encode_changes(changes, Cursor(STATE_VERSION, "", 1, offset, self.case.timezone))
        return result_problem(
            record,
            repeat=not outcomes,
            late=frozenset((event.entitlement, outcome.element) for outcome in outcomes if outcome.late),
            level=outcomes[0].level if outcomes else None,
            effect=any(outcome.effect for outcome in outcomes),
        )

    def came(self) -> Came:
        """What came, in the words of `then`."""
        return {key: self.words(key, element) for key, element in self.ledger.elements.items()}

    def recovered(self) -> dict[ElementKey, tuple[list[StateRecord], list[str]]]:
        """The state as a new worker would have it, from the changes of each event."""
        ledger = Ledger(self.calendar, self.case.late_after)
        for key, value in self.changelog:
            restore(ledger, key, value)
        finish_restore(ledger)
        return records_of(ledger)

    def words(self, key: ElementKey, element: Element) -> dict[str, Any]:
        """One element in the words of `then`."""
        marked = {
            day
            for mark in self.marks
            if (mark.entitlement, mark.element) == key
            for day in days_between(mark.first_day, mark.last_day)
        }
        return words(self.case, self.calendar, element, self.rows.get(key, {}), self.alerts.get(key, []), marked)


def records_of(ledger: Ledger) -> dict[ElementKey, tuple[list[StateRecord], list[str]]]:
    """All that the state of each element is: its records, and its closed holds in the order of their closing."""
    return {key: (sorted(element_records(element)), list(element.closed)) for key, element in ledger.elements.items()}


def exact(live: Folded) -> Came:
    """What came exactly, in the words of `then`: of each element the history that its raw log has.

    On the way the history must come to the live state, too, and must be the same where it starts from a checkpoint.
    """
    return {key: exact_words(live, key) for key in live.ledger.elements}


def exact_words(live: Folded, key: ElementKey) -> dict[str, Any]:
    """One element exactly, in the words of `then`."""
    # As the store has it: of the arrivals with the same time one row, and those with other times are told in `repeats`.
    first: dict[tuple[int, str, str], RawRow] = {}
    times: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event, row in live.raw.get(key, []):
        if (event.time, event.source, event.id) not in first:
            first[event.time, event.source, event.id] = row
            times[event.source, event.id].append(row.position)
    rows = [row for (time, *_), row in sorted(first.items(), key=lambda item: (item[0][0], item[1].position))]
    repeats = {identity: positions[0] for identity, positions in times.items() if len(positions) > 1}
    disorder = [mark.position for mark in live.marks if (mark.entitlement, mark.element) == key]
    disorder += [positions[1] for positions in times.values() if len(positions) > 1]
    alerts: list[dict[str, Any]] = []

    def on_outcome(row: RawRow, event: Event, outcome: Outcome) -> None:
        assert not outcome.late, "nothing is late in exact order"
        if outcome.transition is not None:
            alerts.append(alert_in_words(outcome.transition))

    fold = partial(exact_history, key, calendar=live.calendar, late_after_ms=live.case.late_after, repeats=repeats)
    last = max((event.time for event, _ in live.raw[key] if event.correction is None), default=0)
    midnight = live.calendar.day_of(last).start
    plan = Plan(since=min(disorder, default=None), save_at=midnight)
    history = fold(rows, plan=plan, on_outcome=on_outcome)
    assert history.present.head.unsettled_since == 0, "nothing is disordered in exact order"
    if history.live is not None:
        # Of a repeat at the same time there is no row, though it has marked its day.
        followed = live.words(key, history.live) | {"unsettled": live.ledger.elements[key].head.unsettled_since > 0}
        assert followed == live.words(key, live.ledger.elements[key])
    days = {row.day: row for row in history.days}
    came = words(live.case, live.calendar, history.present, days, alerts, marked=set())
    if not repeats:
        later = [row for (time, *_), row in first.items() if time >= midnight]
        again = fold(sorted(later, key=lambda row: rows.index(row)), plan=Plan(checkpoint=history.saved))
        days |= {row.day: row for row in again.days}
        assert words(live.case, live.calendar, again.present, days, alerts, marked=set()) == came
    return came


def alert_in_words(transition: Transition) -> dict[str, Any]:
    """The alert of a transition, in the words of a case."""
    return alert_words(orjson.loads(encode_alert(alert_of(transition))))


def words(
    case: Case, calendar: Calendar, element: Element, rows: Mapping[str, DayRow], alerts: list[dict[str, Any]], marked: set[str]
) -> dict[str, Any]:
    """An element of the fold, its day rows, alerts and marked days, in the words of `then`."""
    head = element.head
    key = head.entitlement, head.element
    return {
        "level": head.level,
        "state": head.state,
        "limit": head.terms.limit if head.terms is not None else None,
        "hard_limit": head.terms.hard_limit if head.terms is not None else None,
        "customer": head.customer,
        "product": head.product,
        "name": head.name,
        "kind": head.kind,
        "entered_at": head.entered_at,
        "peak": head.peak if head.entered_at is not None else None,
        "unsettled": head.unsettled_since > 0,
        "holds": {seat: (hold.quantity, hold.lease_end) for seat, hold in element.holds.items() if hold.quantity},
        "alerts": alerts,
        "marks": sorted(marked),
        "days": {day: day_words(case, calendar, rows, day, marked) for day in days_of(case, key)},
    }


def day_words(case: Case, calendar: Calendar, rows: Mapping[str, DayRow], day: str, marked: set[str]) -> dict[str, Any] | None:
    """One day as a reader shows it: the stored row completed, or the latest one before it carried on."""
    bounds = calendar.bounds(date.fromisoformat(day))
    if bounds is None:
        return None
    today = case.read_at < bounds.end
    shown = completed(case, rows[day], bounds) if day in rows else filled(case, rows, day, bounds)
    # A day without a row stands as the row that it is carried from.
    carried_from = max((known for known in rows if known <= day), default=day)
    state = "provisional" if today or marked & {day, carried_from} else "final"
    return {**shown, "length": bounds.end - bounds.start, "state": state, "stored": day in rows}


def completed(case: Case, row: DayRow, bounds: DayBounds) -> dict[str, Any]:
    """A day that has a row."""
    end = bounds.end if case.read_at >= bounds.end else max(case.read_at, row.as_of)
    return {
        **{name: getattr(row, name) for name in DAY_FIELDS},
        "overdraft_seconds": row.overdraft_ms + (end - row.as_of if closing_overage(row) else 0),
        "unit_seconds": row.unit_ms + (end - row.as_of) * row.closing,
    }


def filled(case: Case, rows: Mapping[str, DayRow], day: str, bounds: DayBounds) -> dict[str, Any]:
    """A day without a row."""
    before = max((known for known in rows if known < day), default=None)
    length = min(bounds.end, case.read_at) - bounds.start
    row = rows[before] if before is not None else None
    level = row.closing if row is not None else 0
    return {
        **dict.fromkeys(("opening", "closing", "min", "max"), level),
        **dict.fromkeys(DAY_COUNTS, 0),
        "limit": row.closing_limit if row is not None else None,
        "hard_limit": row.closing_hard_limit if row is not None else None,
        "terms_known": row is not None and row.closing_terms_known,
        "peak_overage": closing_overage(row) if row is not None else 0,
        "overdraft_seconds": length if row is not None and closing_overage(row) else 0,
        "unit_seconds": length * level,
    }


def closing_overage(row: DayRow) -> int:
    """How far the level is above the limit at the row's end."""
    return 0 if row.closing_limit is None else max(0, row.closing - row.closing_limit)


# --- The model.


def model_run(case: Case, *, exact: bool) -> dict[ElementKey, model.Element]:
    """The model's fold of what licence servers have sent."""
    documents = [record.document for record in case.reported]
    return model.run(documents, timezone=case.timezone, late_after_ms=case.late_after, exact=exact)


def model_results(elements: dict[ElementKey, model.Element], records: list[Record]) -> list[str]:
    """What became of each record, where that is not what the case says."""
    problems = []
    for offset, record in enumerate(records):
        levels = [elements[key].levels_after.get(offset) for key in record.touches]
        late = frozenset(key for key in record.touches if offset in elements[key].late)
        problems.append(result_problem(record, repeat=levels[0] is None, late=late, level=levels[0], effect=None))
    return [problem for problem in problems if problem]


def model_came(case: Case, elements: dict[ElementKey, model.Element], expected: Mapping[ElementKey, Mapping[str, Any]]) -> Came:
    """What came, in the words of `then`."""
    came: Came = {}
    for key, element in elements.items():
        marked = {day for first, last in element.marks for day in days_between(first.isoformat(), last.isoformat())}
        over = element.state in model.OVER
        came[key] = {
            "level": element.level,
            "state": element.state,
            "limit": element.terms.limit if element.terms is not None else None,
            "hard_limit": element.terms.hard_limit if element.terms is not None else None,
            "customer": element.customer,
            "product": element.product,
            "entered_at": element.entered_at if over else None,
            "peak": element.peak if over else None,
            "holds": {seat: (quantity, element.leases[seat]) for seat, quantity in element.holds.items()},
            "alerts": [model_alert(alert) for alert in element.alerts],
            "marks": sorted(marked),
            "days": {day: model_day(case, element, day, marked) for day in days_of(case, key)},
        }
        # These are no numbers, and the model has none of them: what a case says of them is taken as it is.
        unknown = ("name", "kind", "unsettled")
        came[key] |= {word: value for word, value in expected.get(key, {}).items() if word in unknown}
    return came


def model_day(case: Case, element: model.Element, day: str, marked: set[str]) -> dict[str, Any] | None:
    """One day of the model."""
    start, end = (model.day_start(date.fromisoformat(day) + timedelta(days=n), case.timezone) for n in (0, 1))
    if start == end:
        return None
    today = case.read_at < end
    carried_from = max((step.t for step in element.steps if step.t < end), default=start)
    provisional = today or marked & {day, model.day_of(carried_from, case.timezone).isoformat()}
    row = element.day_row(start, end, case.read_at if today else None)
    row["overdraft_seconds"], row["unit_seconds"] = row.pop("overdraft_ms"), row.pop("unit_ms")
    state = "provisional" if provisional else "final"
    return {**row, "length": end - start, "state": state, "stored": any(start <= step.t < end for step in element.steps)}


def model_alert(alert: dict[str, Any]) -> dict[str, Any]:
    """An alert of the model, in the words of a case."""
    left = alert["type"] == "overdraft.left"
    return {
        **{name: alert.get(name) for name in ("id", "type", "from", "to", "level", "limit", "hard_limit", "overage", "customer",
                                              "product", "peak", "peak_overage")},
        "at": parse_instant(alert["at"]),
        "cause": alert["cause"]["id"],
        "cause_source": alert["cause"]["source"],
        "cause_type": alert["cause"]["type"],
        "entered_at": parse_instant(alert["entered_at"]) if left else None,
        "duration": round(alert["duration_seconds"] * 1000) if left else None,
    }  # fmt: skip


# --- How cases are read.

HEAD = "date: 2026-11-10\ncases:\n- case: A name\n  rule: 'Days: a rule'\n  events:\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("  - 09:00 seat.stolen w1 => 1\n", 6, "'seat.stolen' is not a word here"),
        ("  - 09:00 seat.activated w1 quantity=2 => 1\n", 6, "'quantity' is not a word here"),
        ("  - 9:00 seat.activated w1 => 1\n", 6, "expected a time such as 09:00"),
        ("  - 09:00 seat.activated => 1\n", 6, "expected seat_id after seat.activated"),
        ("  - 09:00 seat.activated w1 => one\n", 6, "'one' is no result"),
        ("  - 09:00 seat.activated w1 => dead letter\n", 6, "expected one of not_json"),
        ("  - 09:00 terms limit=2\n  then: {level: 0}\n", 6, "expected an element before 'limit=2'"),
        ("  - 09:00 seat.activated w1\n", 3, "expected `then`, or a result"),
        ("  - 09:00 seat.activated w1\n  then: {levels: 1}\n", 7, "'levels' is not a word here"),
        ("  - 09:00 seat.activated w1\n  then:\n    days:\n      2026-11-10: {maximum: 1}\n", 9, "'maximum' is not a word"),
        ("  - 09:00 seat.activated w1\n  then: {level: one}\n", 7, "expected a whole number, got 'one'"),
        ("  - 09:00 seat.activated w1\n  then:\n    alerts: [09:00 limit.reached within]\n", 8, "time type from -> to"),
        ("  - 09:00 seat.activated w1 => 1\n  exact: {level: 2}\n", 7, "all events are in order"),
        ("  - 09:00 seat.activated w1\n  then: {level: 1}\n  them: {level: 1}\n", 8, "'them' is not a word here"),
        ("  - 09:00 seat.activated w1 => 1\n  - {send: 09:00 seat.denied, become: x}\n", 7, "'become' is not a word here"),
    ],
)
def test_a_word_that_is_not_known_is_refused_by_file_and_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    (tmp_path / "seats.yaml").write_text(HEAD + text)
    with pytest.raises(CaseWrong, match=f"^seats.yaml:{line}: .*{message}"):
        load_cases(tmp_path)


def test_a_rule_names_a_section_of_the_numbers_page(tmp_path: Path) -> None:
    (tmp_path / "seats.yaml").write_text(HEAD.replace("Days: a rule", "Dayz: a rule") + "  - 09:00 seat.activated w1 => 1\n")
    with pytest.raises(CaseWrong, match=r"^seats.yaml:4: .*Words, Events, Time, Duplicates"):
        load_cases(tmp_path)


def test_two_cases_have_two_names(tmp_path: Path) -> None:
    text = HEAD + "  - 09:00 seat.activated w1 => 1\n"
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(CaseWrong, match=r"^b.yaml:3: 'A name' is the name of the case at a.yaml:3 already"):
        load_cases(tmp_path)


def test_every_difference_is_told() -> None:
    """A case that could not fail would prove nothing."""
    case = next(case for case in CASES if case.name == "A refresh of a seat that is not open opens it")
    live = Folded(case)
    for record, event in decoded(case).items():
        live.apply(record, event)
    [(key, words)] = case.then.items()
    assert not differences(case, case.then, live.came())
    for word in words:
        wrong = {key: {**words, word: {} if word == "holds" else "something else"}}
        assert [problem.split(":")[0] for problem in differences(case, wrong, live.came())] == [f"seats {word}"]
