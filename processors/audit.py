"""Audit: the exact fold of every element against what is stored of it: day rows, live levels, alerts, held levels.

The two must be equal; a difference is a defect. What is known to be provisional is not compared but counted: days marked
by disorder and not yet restated, and elements whose correction is still on its way. One element is in memory at a time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from typing import Any

from processors import metrics
from processors.domain.days import Calendar, DayBounds
from processors.domain.ledger import Outcome, Transition
from processors.exact import History, Identity, Plan, RawRow, exact_history
from processors.outputs import alert_of
from processors.standing import Key, RawLogStore, Standing, batches_of, standings_of, stored_rows
from schemas.days import DayRow
from schemas.events import Event

_BEGINNING = date(1970, 1, 1)
# What is compared of a day; the rest of a row are names and bounds.
_DAY_FIELDS = (
    "opening", "closing", "min", "max", "limit", "hard_limit", "terms_known", "overdraft_ms", "unit_ms", "peak_overage",
    "activations", "deactivations", "refreshes", "denials", "units_used", "as_of", "closing_limit", "closing_hard_limit",
    "closing_terms_known",
)  # fmt: skip
# Of what was added up for the overdraft report; how long each level was held is compared beside.
_HELD_FIELDS = ("first_at", "last_at", "last_level", "last_limit", "over_unit_ms")
_ALERT_FIELDS = (
    "type", "from_state", "to_state", "level", "limit", "hard_limit", "at", "entered_at", "duration_ms", "peak", "peak_overage",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One value that is not as it should be.

    what: `day 2026-11-24`, `held 2026-11-24` (how long each level was held), `live`, `alert ID` or `alerts`. stored, exact: as
    text; `-` for nothing.
    """

    entitlement: str
    element: str
    what: str
    field: str
    stored: str
    exact: str


@dataclass
class Findings:
    """What an audit found.

    elements, days, alerts: how many were compared. held_days: those of them whose levels were added up for the overdraft
    report, and were compared too. provisional_days: marked and not restated yet, or of today. unsettled: elements whose live
    state was not compared, because its correction is still on its way.
    """

    elements: int = 0
    days: int = 0
    held_days: int = 0
    alerts: int = 0
    provisional_days: int = 0
    unsettled: int = 0
    differences: list[Difference] = field(default_factory=list)


class _HeldLevels:
    """How long each level was held on one day, in ms, from its first event to its last: as in the table levels_held."""

    def __init__(self, start_ms: int) -> None:
        """start_ms: of the day, for one without events."""
        self.first_at = self.last_at = start_ms
        self.last_level = 0
        self.last_limit: int | None = None
        self.over_unit_ms = 0
        self.milliseconds: dict[int, int] = {}

    def add(self, outcome: Outcome) -> None:
        """Take the next event of the day."""
        if self.milliseconds:
            held = outcome.t - self.last_at
            self.milliseconds[self.last_level] += held
            if self.last_limit is not None:
                self.over_unit_ms += held * max(0, self.last_level - self.last_limit)
        else:
            self.first_at = outcome.t
        self.milliseconds.setdefault(outcome.level, 0)
        self.last_at, self.last_level = outcome.t, outcome.level
        self.last_limit = outcome.terms.limit if outcome.terms is not None else None


class _Exact:
    """What the exact fold of an element says beside its days: transitions, and the levels held on some days.

    stored_held: rows of levels_held; the days that are wanted.
    """

    def __init__(self, calendar: Calendar, stored_held: dict[str, dict[str, Any]]) -> None:
        self._calendar = calendar
        bounds = {day: calendar.bounds(date.fromisoformat(day)) for day in stored_held}
        self.held = {day: _HeldLevels(known.start) for day, known in bounds.items() if known is not None}
        self.transitions: list[Transition] = []

    def add(self, raw: RawRow, event: Event, outcome: Outcome) -> None:
        """Take what one event did."""
        if outcome.transition is not None:
            self.transitions.append(outcome.transition)
        if self.held and (held := self.held.get(self._calendar.day_of(outcome.t).day)) is not None:
            held.add(outcome)


class Auditor:
    """Compares. Everything is read from the store, in the caller's thread."""

    def __init__(self, store: RawLogStore, *, calendar: Calendar, late_after_ms: int) -> None:
        self._store = store
        self._calendar = calendar
        self._late_after_ms = late_after_ms

    def run(
        self,
        now_ms: int,
        *,
        entitlement: str = "",
        since: date = _BEGINNING,
        owns: Callable[[str], bool] = lambda entitlement: True,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        wait: Callable[[], None] = lambda: time.sleep(2.0),
    ) -> Findings:
        """Compare all elements, or one entitlement's; days from `since` on.

        owns: whether this process looks after an entitlement. on_progress(done, total): called with numbers of elements.
        wait: called before what seems to differ is looked at again: of an event that has just come, some of its rows may be
            stored and others not yet.
        Raises what the store raises.
        """
        started = time.perf_counter()
        today = self._calendar.day_of(now_ms)
        elements = [key for key in self._store.logged_elements(entitlement) if owns(key[0])]
        findings = Findings(elements=len(elements))
        suspects: list[Key] = []
        done = 0
        for batch in batches_of(elements):
            for key, of_element in self._audit(batch, today, since):
                if of_element.differences:
                    suspects.append(key)
                else:
                    _add(findings, of_element)
                done += 1
            on_progress(done, len(elements))
        for _ in range(2):
            if suspects:
                wait()
                suspects = [key for key, again in self._again(suspects, today, since, findings) if again.differences]
        for _, of_element in self._again(suspects, today, since, findings):
            if of_element.differences:
                _add(findings, of_element)
        metrics.AUDIT_SECONDS.observe(time.perf_counter() - started)
        metrics.AUDIT_DIFFERENCES.set(len(findings.differences))
        return findings

    def _again(
        self, suspects: Sequence[Key], today: DayBounds, since: date, findings: Findings
    ) -> Iterator[tuple[Key, Findings]]:
        """Look at elements once more; what turns out to be right is added to the findings."""
        for batch in batches_of(suspects):
            for key, of_element in self._audit(batch, today, since):
                if not of_element.differences:
                    _add(findings, of_element)
                yield key, of_element

    def _audit(self, elements: Sequence[Key], today: DayBounds, since: date) -> Iterator[tuple[Key, Findings]]:
        watermarks = self._store.watermarks()
        standings = standings_of(self._store, elements)
        live = {(row["entitlement"], row["element"]): row for row in self._store.live_states(elements)}
        days = _by_element(self._store.day_rows(elements, since))
        alerts = _by_element(self._store.alert_rows(elements))
        added_up: dict[Key, dict[str, dict[str, Any]]] = {}
        for row in self._store.levels_held(elements, since, date.fromisoformat(today.day)):
            added_up.setdefault((row["entitlement"], row["element"]), {})[row["day"].isoformat()] = row
        repeats: dict[str, dict[Identity, int]] = {}
        for entitlement, source, event_id, first, _ in self._store.repeats(elements, 0):
            repeats.setdefault(entitlement, {})[source, event_id] = first
        unseen = set(elements)
        rows = stored_rows(self._store.rows(elements, 0), watermarks)
        for key, of_element in groupby(rows, key=lambda row: (row.raw.entitlement, row.raw.element)):
            unseen.discard(key)
            stored_days = {row["day"]: row for row in days.get(key, [])}
            # One that does not go with the day row is not read by the report either.
            stored_held = {
                day: row
                for day, row in added_up.get(key, {}).items()
                if day in stored_days and row["version"] == stored_days[day]["version"]
            }
            exact = _Exact(self._calendar, stored_held)
            history = self._fold(key, (row.raw for row in of_element), stored_days, repeats.get(key[0], {}), exact)
            found = Findings()
            self._compare_days(found, key, history, stored_days, standings[key], today, since)
            self._compare_live(found, key, history, live.get(key), standings[key])
            self._compare_held(found, key, exact.held, stored_held, stored_days, standings[key], today)
            self._compare_alerts(found, key, exact.transitions, alerts.get(key, []), standings[key], live.get(key))
            yield key, found
        for key in sorted(unseen):
            yield (
                key,
                Findings(differences=[Difference(*key, "live", "events", "-" if key not in live else "a level", "no events")]),
            )

    def _fold(
        self,
        key: Key,
        rows: Iterator[RawRow],
        stored_days: dict[str, dict[str, Any]],
        repeats: dict[Identity, int],
        exact: _Exact,
    ) -> History:
        bounds = (self._calendar.bounds(date.fromisoformat(day)) for day in sorted(stored_days))
        plan = Plan(ticks=[day for day in bounds if day is not None])
        return exact_history(
            key,
            rows,
            calendar=self._calendar,
            late_after_ms=self._late_after_ms,
            plan=plan,
            repeats=repeats,
            on_outcome=exact.add,
        )

    @staticmethod
    def _compare_days(
        found: Findings,
        key: Key,
        history: History,
        stored_days: dict[str, dict[str, Any]],
        standing: Standing,
        today: DayBounds,
        since: date,
    ) -> None:
        exact_days = {row.day: row for row in history.days if row.day >= since.isoformat()}
        for day in sorted(stored_days.keys() | exact_days.keys()):
            stored, exact, mark = stored_days.get(day), exact_days.get(day), standing.marked(day)
            if _is_provisional(day, stored, mark, today):
                found.provisional_days += 1
                continue
            found.days += 1
            if stored is None or exact is None:
                kept, wanted = ("a row", "no day") if exact is None else ("-", "a row")
                found.differences.append(Difference(*key, f"day {day}", "row", kept, wanted))
                continue
            _compare(found, key, f"day {day}", _DAY_FIELDS, stored, exact)

    @staticmethod
    def _compare_held(
        found: Findings,
        key: Key,
        exact_held: dict[str, _HeldLevels],
        stored_held: dict[str, dict[str, Any]],
        stored_days: dict[str, dict[str, Any]],
        standing: Standing,
        today: DayBounds,
    ) -> None:
        for day, exact in exact_held.items():
            if _is_provisional(day, stored_days[day], standing.marked(day), today):
                continue
            found.held_days += 1
            stored = stored_held[day]
            _compare(found, key, f"held {day}", _HELD_FIELDS, stored, {name: getattr(exact, name) for name in _HELD_FIELDS})
            kept = dict(zip(stored["levels"], stored["held_ms"], strict=False))
            for level in sorted(kept.keys() | exact.milliseconds.keys()):
                if kept.get(level) != exact.milliseconds.get(level):
                    texts = (_text(held.get(level)) for held in (kept, exact.milliseconds))
                    found.differences.append(Difference(*key, f"held {day}", f"ms at level {level}", *texts))

    @staticmethod
    def _compare_live(found: Findings, key: Key, history: History, live: dict[str, Any] | None, standing: Standing) -> None:
        if standing.marks and standing.unsettled_since is not None:
            found.unsettled += 1
            return
        head = history.present.head
        terms = head.terms
        exact = {
            "level": head.level,
            "limit": terms.limit if terms is not None else None,
            "hard_limit": terms.hard_limit if terms is not None else None,
            "terms_known": terms is not None,
            "state": head.state,
        }
        if live is None:
            found.differences.append(Difference(*key, "live", "level", "-", str(head.level)))
        else:
            _compare(found, key, "live", tuple(exact), live, exact)

    def _compare_alerts(
        self,
        found: Findings,
        key: Key,
        transitions: Sequence[Transition],
        alerts: Sequence[dict[str, Any]],
        standing: Standing,
        live: dict[str, Any] | None,
    ) -> None:
        """Up to the first disordered day the alerts are those of the exact fold; after it they join up to the live state."""
        disordered = min((mark.first_day for mark in standing.marks), default=None)
        bounds = self._calendar.bounds(date.fromisoformat(disordered)) if disordered is not None else None
        until = bounds.start if bounds is not None else None
        stored = {row["id"]: row for row in alerts if until is None or row["at"] < until}
        state = "within"
        for transition in transitions:
            if until is not None and transition.at >= until:
                break
            alert = alert_of(transition)
            state = transition.after
            found.alerts += 1
            sent = stored.pop(alert.id, None)
            if sent is None:
                found.differences.append(Difference(*key, f"alert {alert.id}", "alert", "-", transition.type))
                continue
            exact = {name: getattr(transition, name, None) for name in _ALERT_FIELDS}
            exact |= {"from_state": transition.before, "to_state": transition.after}
            _compare(found, key, f"alert {alert.id}", _ALERT_FIELDS, sent, exact)
        for alert_id, sent in stored.items():
            found.differences.append(Difference(*key, f"alert {alert_id}", "alert", sent["type"], "-"))
        later = [row for row in alerts if until is not None and row["at"] >= until]
        found.alerts += len(later)
        reached = _joined(state, later)
        wanted = live["state"] if live is not None else state
        if wanted not in reached:
            kept = "do not join up" if not reached else f"end in {', '.join(sorted(reached))}"
            found.differences.append(Difference(*key, "alerts", "states", kept, f"from {state} to {wanted}"))


def _joined(state: str, alerts: Sequence[dict[str, Any]]) -> set[str]:
    """The states in which alerts can end that begin in one; none where they do not join up.

    Alerts of one instant may have come in any order, so all orders that join up are tried.
    """
    reached = {state}
    for _, group in groupby(alerts, key=lambda row: row["at"]):
        moves = [(row["from_state"], row["to_state"]) for row in group]
        reached = {end for start in reached for end in _ends(start, moves)}
    return reached


def _ends(state: str, moves: list[tuple[str, str]]) -> set[str]:
    if not moves:
        return {state}
    found: set[str] = set()
    for move in {move for move in moves if move[0] == state}:
        rest = list(moves)
        rest.remove(move)
        found |= _ends(move[1], rest)
    return found


def _is_provisional(day: str, stored: dict[str, Any] | None, mark: int, today: DayBounds) -> bool:
    """Whether a day with such a row and such a newest mark is still to be restated."""
    return bool(mark) and (day >= today.day or stored is None or not stored["restated"] or stored["position"] < mark)


def _compare(
    found: Findings, key: Key, what: str, fields: Sequence[str], stored: dict[str, Any], exact: dict[str, Any] | DayRow
) -> None:
    for name in fields:
        wanted = exact[name] if isinstance(exact, dict) else getattr(exact, name)
        kept = stored[name]
        if kept != wanted:
            found.differences.append(Difference(*key, what, name, _text(kept), _text(wanted)))


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _by_element(rows: Sequence[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    found: dict[Key, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["entitlement"], row["element"]), []).append(row)
    return found


def _add(findings: Findings, of_element: Findings) -> None:
    findings.days += of_element.days
    findings.held_days += of_element.held_days
    findings.alerts += of_element.alerts
    findings.provisional_days += of_element.provisional_days
    findings.unsettled += of_element.unsettled
    findings.differences += of_element.differences
