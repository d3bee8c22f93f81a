"""The worker's fold as a state machine: hypothesis draws what happens next, and after each step everything must still hold.

Without a broker and a store: real decoding, `fold_chunk`, state records and recovery; the raw log, the day rows, marks and
alerts are kept in lists. Longer: `pytest tests/processors/test_state_machine.py --hypothesis-profile=long`.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from processors.agents import ChunkOutputs, fold_chunk
from processors.codec import StateRecord, element_records, encode_changes
from processors.domain.corrections import corrections_between
from processors.domain.days import Calendar
from processors.domain.element import Element
from processors.domain.ledger import Changes, Ledger
from processors.exact import Plan, RawRow, exact_history
from processors.state import PartitionStates
from schemas.activity import decode_activity
from schemas.alerts import decode_alert, seatmark_id
from schemas.corrections import encode_correction
from schemas.days import DayMark, DayRow
from schemas.events import format_time
from tests import model
from tests.miniature import HOUR, Record
from tests.processors.domain.test_ledger_against_model import completed
from tests.random_logs import DAY, START, overdrafts

MINUTE = 60_000
INCARNATION = "incarnation-1"
# Midnight is skipped in Beirut on 2026-03-29, and 02:00 in Paris.
ZONES = ["UTC", "Europe/Paris", "Asia/Beirut"]

Key = tuple[str, str]

SEATS = ("a", "b")

seats = st.sampled_from(SEATS)
pools = st.sampled_from(["seats", "render"])
quantities = st.integers(1, 3)
leases = st.sampled_from([None, MINUTE, HOUR, 5 * HOUR])


# How far the clocks of a run's licence servers are behind: in some runs hardly one, in some most.
CLOCKS = 8
clocks = st.one_of(
    st.just([0] * CLOCKS),
    st.sampled_from([MINUTE, HOUR, 3 * HOUR, DAY]).map(lambda behind: [0] * (CLOCKS - 1) + [behind]),
    st.just([0, 0, 0, 1, 30 * MINUTE, 3 * HOUR, DAY + HOUR, 3 * DAY]),
    st.just([0, 2 * HOUR] * (CLOCKS // 2)),
)


@dataclass(frozen=True)
class Way:
    """How an event comes about: so long after the one before, by which of the run's clocks, and where it gets to."""

    after: int
    clock: int
    to: str


ways = st.builds(
    Way,
    after=st.sampled_from([0, 1, MINUTE, 10 * MINUTE, HOUR, 7 * HOUR]),
    clock=st.integers(0, CLOCKS - 1),
    to=st.sampled_from(["worker", "worker", "topic", "network", "network"]),
)

AT_ONCE = Way(after=0, clock=0, to="topic")

# How many runs is left to the profile.
SETTINGS = settings(
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


class StateRecordOf:
    """A record of the changelog topic."""

    def __init__(self, record: StateRecord) -> None:
        self.key, self.value = record


class SeatmarkMachine(RuleBasedStateMachine):
    """One source partition with one entitlement, its worker, what that has put out, and a restater."""

    timezone = "UTC"

    @initialize(late_after=st.sampled_from([15 * MINUTE, HOUR, DAY]), start=st.integers(0, DAY), behind=clocks)
    def begin(self, late_after: int, start: int, behind: list[int]) -> None:
        self.late_after = late_after
        self.behind = behind
        self.now = START + start
        self.calendar = Calendar(self.timezone)
        self.log: list[Record] = []
        self.applied = 0
        # What licence servers have sent, by offset; what one has sent and the network still has.
        self.sent: dict[int, dict[str, Any]] = {}
        self.held_back: list[dict[str, Any]] = []
        self.on_their_way: list[list[bytes]] = []
        self.events = 0
        self.changelog: list[StateRecord] = []
        self.recover()
        self.rows: dict[Key, dict[int, RawRow]] = defaultdict(dict)
        self.days: dict[Key, dict[str, DayRow]] = defaultdict(dict)
        self.marks: dict[Key, list[DayMark]] = defaultdict(list)
        self.settled: dict[Key, int] = defaultdict(int)
        self.alerts: dict[str, Any] = {}
        self.corrected = False

    @property
    def ledger(self) -> Ledger:
        return self.state.ledger

    def recover(self, *, compacted: bool = False) -> None:
        """A worker starts, with the state that the changelog holds."""
        states = PartitionStates(self.calendar, self.late_after, INCARNATION, partitions=1)
        records = list(dict(self.changelog).items()) if compacted else self.changelog
        states.restore(0, [StateRecordOf(record) for record in records])
        states.restored()
        assert states.resume_offset(0, None) == (self.applied if self.changelog else None)
        self.state = states.of(0)
        self.state.begin(INCARNATION)

    # --- What licence servers send.

    def send(self, kind: str, data: dict[str, Any], way: Way, lease: int | None = None) -> None:
        self.events += 1
        self.now += way.after
        time = self.now - self.behind[way.clock]
        if lease is not None:
            data["lease_expires_at"] = format_time(time + lease)
        document = {
            "specversion": "1.0", "id": str(self.events), "source": "/s", "type": kind, "subject": "e",
            "time": format_time(time), "data": data,
        }  # fmt: skip
        if way.to == "network":
            self.held_back.append(document)
            return
        self.arrive(document)
        if way.to == "worker":
            self.fold_all()

    def arrive(self, document: dict[str, Any]) -> None:
        self.sent[len(self.log)] = document
        self.append(orjson.dumps(document))

    def append(self, value: bytes) -> None:
        self.log.append(Record("t", 0, len(self.log), b"e", value))

    @rule(seat=seats, lease=leases, way=ways)
    def activate(self, seat: str, lease: int | None, way: Way) -> None:
        self.send("seat.activated", {"seat_id": seat, "customer": f"c{len(self.log) % 2}"}, way, lease)

    @rule(pool=pools, seat=seats, lease=leases, way=ways, quantity=quantities)
    def refresh(self, pool: str, seat: str, lease: int | None, way: Way, quantity: int) -> None:
        if pool == "seats":
            self.send("seat.refreshed", {"seat_id": seat}, way, lease)
        else:
            self.send("feature.refreshed", {"element": pool, "seat_id": seat, "quantity": quantity}, way, lease)

    @rule(seat=seats, way=ways)
    def deactivate(self, seat: str, way: Way) -> None:
        self.send("seat.deactivated", {"seat_id": seat}, way)

    @rule(pool=pools, seat=seats, lease=leases, way=ways, quantity=quantities)
    def check_out(self, pool: str, seat: str, lease: int | None, way: Way, quantity: int) -> None:
        self.send("feature.checked_out", {"element": pool, "seat_id": seat, "quantity": quantity}, way, lease)

    @rule(pool=pools, seat=seats, way=ways, quantity=st.one_of(st.none(), quantities))
    def give_back(self, pool: str, seat: str, way: Way, quantity: int | None) -> None:
        data = {"element": pool, "seat_id": seat} | ({} if quantity is None else {"quantity": quantity})
        self.send("feature.returned", data, way)

    @rule(pool=pools, seat=seats, way=ways)
    def expire(self, pool: str, seat: str, way: Way) -> None:
        if pool == "seats":
            self.send("seat.expired", {"seat_id": seat}, way)
        else:
            self.send("feature.expired", {"element": pool, "seat_id": seat}, way)

    @rule(seat=seats, way=ways)
    def deny(self, seat: str, way: Way) -> None:
        self.send("seat.denied", {"seat_id": seat}, way)

    @rule(quantity=quantities, way=ways)
    def use(self, quantity: int, way: Way) -> None:
        self.send("feature.used", {"element": "calls", "quantity": quantity}, way)

    @rule(way=ways)
    def reset(self, way: Way) -> None:
        self.send("feature.reset", {"element": "calls"}, way)

    @rule(
        elements=st.dictionaries(
            st.sampled_from(["seats", "render", "calls"]),
            st.fixed_dictionaries({"limit": st.one_of(st.none(), st.integers(0, 3)), "overdraft": overdrafts}),
            min_size=1,
        ),
        way=ways,
    )
    def change_terms(self, elements: dict[str, Any], way: Way) -> None:
        self.send("entitlement.changed", {"elements": elements, "product": f"p{len(self.log) % 2}"}, way)

    @rule(pool=pools, holds=st.dictionaries(seats, st.integers(0, 3)), way=ways)
    def snapshot(self, pool: str, holds: dict[str, int], way: Way) -> None:
        named = [{"seat_id": seat, "quantity": quantity} for seat, quantity in holds.items()]
        self.send("entitlement.snapshot", {"element": pool, "holds": named}, way)

    @rule(level=st.integers(0, 5), way=ways)
    def snapshot_of_a_counter(self, level: int, way: Way) -> None:
        self.send("entitlement.snapshot", {"element": "calls", "level": level}, way)

    # --- What the network does.

    @precondition(lambda self: self.held_back)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        self.deliver_one(data)
        self.fold_all()

    def deliver_one(self, data: st.DataObject) -> None:
        self.arrive(self.held_back.pop(data.draw(st.integers(0, len(self.held_back) - 1))))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), moved=st.sampled_from([None, None, -HOUR, -MINUTE, 0]))
    def repeat(self, data: st.DataObject, moved: int | None) -> None:
        """A producer sends an event again: as it was, or with another time."""
        document = data.draw(st.sampled_from(list(self.sent.values())))
        if moved is not None:
            document = document | {"time": format_time(self.now + moved)}
            document["data"] = {name: value for name, value in document["data"].items() if name != "lease_expires_at"}
        self.arrive(document)

    @rule(days=st.integers(1, 3))
    def wait_for_midnight(self, days: int) -> None:
        for _ in range(days):
            self.now = self.calendar.day_of(self.now).end

    # --- What the worker does.

    @precondition(lambda self: self.applied < len(self.log))
    @rule(records=st.integers(1, 8))
    def work(self, records: int) -> None:
        self.fold(records)

    @precondition(lambda self: self.applied < len(self.log))
    @rule(records=st.integers(1, 8), compacted=st.booleans())
    def crash_before_the_state_is_written(self, records: int, compacted: bool) -> None:
        """Outputs are with the broker, the state is not: the chunk is folded again, and puts the same out."""
        applied = self.applied
        first = self.fold(records, write_state=False)
        self.applied = applied
        self.recover(compacted=compacted)
        assert self.fold(records) == first

    @rule(compacted=st.booleans())
    def crash(self, compacted: bool) -> None:
        """The state is what it was, and records that are there once more change nothing."""
        before = self.state_records()
        self.recover(compacted=compacted)
        assert self.state_records() == before

    @precondition(lambda self: self.applied)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Any end of the log, once more."""
        before = self.state_records()
        chunk = self.log[data.draw(st.integers(0, self.applied - 1)) : self.applied]
        out = fold_chunk(self.state, chunk, self.now)
        assert (out.activity, out.alerts, out.dead_letters) == ([], [], [])
        assert self.take().heads == []
        assert self.state_records() == before

    def fold_all(self) -> None:
        while self.applied < len(self.log):
            self.fold(5)

    def fold(self, records: int, *, write_state: bool = True) -> Any:
        chunk = self.log[self.applied : self.applied + records]
        out = fold_chunk(self.state, chunk, self.now)
        assert (out.taken, out.dead_letters) == (len(chunk), [])
        changes = self.take()
        self.store(out, changes)
        if write_state:
            self.changelog += encode_changes(changes, self.state.cursor)
        self.applied += len(chunk)
        return out, changes.days, changes.marks, changes.settled

    def take(self) -> Changes:
        return self.ledger.take_changes()

    def store(self, out: ChunkOutputs, changes: Changes) -> None:
        """What the sink does, and the tables."""
        for _, value, _ in out.activity:
            for row in decode_activity(value or b"").select(["entitlement", "element", "offset", "event"]).to_pylist():
                key = row["entitlement"], row["element"]
                self.rows[key][row["offset"]] = RawRow(*key, 1, row["offset"], row["event"])
        for row in changes.days:
            key = row.entitlement, row.element
            stored = self.days[key].get(row.day)
            if stored is None or row.position >= stored.position:
                self.days[key][row.day] = row
        for mark in changes.marks:
            self.marks[mark.entitlement, mark.element].append(mark)
        for settled in changes.settled:
            self.settled[settled.entitlement, settled.element] = settled.position
        for _, value, _ in out.alerts:
            alert = decode_alert(value or b"")
            self.alerts.setdefault(alert.id, alert)

    def state_records(self) -> dict[bytes, bytes | None]:
        return {key: value for element in self.ledger.elements.values() for key, value in element_records(element)}

    # --- What the restater does.

    @rule(data=st.data(), meanwhile=st.integers(0, 2))
    def restate(self, data: st.DataObject, meanwhile: int) -> None:
        """A pass; its corrections arrive after what is on the topic already, and what else arrives."""
        corrections = self.corrections()
        for _ in range(min(meanwhile, len(self.held_back))):
            self.deliver_one(data)
        self.correct(corrections)

    @rule(data=st.data(), kind=st.sampled_from(["open", "close", "snapshot", "terms"]))
    def restate_what_is_in_use(self, data: st.DataObject, kind: str) -> None:
        """A pass, and before its corrections arrive something happens to just that which they are about."""
        corrections = self.corrections()
        self.now += 1
        for value in corrections:
            wanted = orjson.loads(value)["data"]
            element = wanted["element"]
            seat = data.draw(st.sampled_from([hold["seat_id"] for hold in wanted.get("holds", [])] or SEATS))
            if kind == "terms":
                self.send("entitlement.changed", {"elements": {element: {"limit": 2}}}, AT_ONCE)
            elif element == "calls":
                if kind == "snapshot":
                    self.send("entitlement.snapshot", {"element": element, "level": 1}, AT_ONCE)
                else:
                    self.send("feature.used" if kind == "open" else "feature.reset", {"element": element}, AT_ONCE)
            elif kind == "snapshot":
                holds = [{"seat_id": seat, "quantity": 1}]
                self.send("entitlement.snapshot", {"element": element, "holds": holds}, AT_ONCE)
            else:
                types = {"open": "feature.checked_out", "close": "feature.returned"}
                self.send(types[kind], {"element": element, "seat_id": seat}, AT_ONCE)
        self.correct(corrections)

    @rule()
    def restate_slowly(self) -> None:
        """A pass whose corrections are sent later."""
        self.on_their_way.append(self.corrections())

    @precondition(lambda self: self.on_their_way)
    @rule(data=st.data())
    def corrections_arrive(self, data: st.DataObject) -> None:
        self.correct(self.on_their_way.pop(data.draw(st.integers(0, len(self.on_their_way) - 1))))

    @rule()
    def restate_into_the_topic(self) -> None:
        """A pass whose corrections are in one chunk with other events."""
        for value in self.corrections():
            self.append(value)

    def correct(self, corrections: list[bytes]) -> None:
        """Corrections are applied, and make nothing wrong that was right."""
        self.fold_all()
        exact = self.model_of_applied(exact=True)
        right = self.as_it_is(exact).items() & self.as_it_should_be(exact).items()
        for value in corrections:
            self.append(value)
        self.fold_all()
        assert right <= self.as_it_is(exact).items()

    def corrections(self) -> list[bytes]:
        """What a pass would send, computed from what is applied."""
        found = []
        for key, element in self.ledger.elements.items():
            if not element.head.unsettled_since:
                continue
            self.corrected = True
            basis = max(row.position for row in self.rows[key].values())
            for correction in corrections_between(element, self.exact(key), basis):
                event_id = seatmark_id("restate", *key, basis, correction.part)
                found.append(
                    encode_correction(entitlement=key[0], element=key[1], time=self.now, correction=correction, id=event_id)
                )
        return found

    def as_it_is(self, exact: dict[Key, model.Element]) -> dict[tuple[Key, str], Any]:
        """Holds, total and limits of each element, live."""
        found: dict[tuple[Key, str], Any] = {}
        for key in exact:
            head, holds = self.ledger.elements[key].head, self.ledger.elements[key].holds
            for seat in SEATS:
                hold = holds.get(seat)
                found[key, seat] = (hold.quantity, hold.lease_end) if hold is not None and hold.quantity else (0, None)
            found[key, "total"] = head.total
            found[key, "limits"] = (head.terms.limit, head.terms.hard_limit) if head.terms is not None else None
        return found

    def as_it_should_be(self, exact: dict[Key, model.Element]) -> dict[tuple[Key, str], Any]:
        """The same, exactly."""
        found: dict[tuple[Key, str], Any] = {}
        for key, element in exact.items():
            found |= {(key, seat): (element.holds.get(seat, 0), element.leases.get(seat)) for seat in SEATS}
            found[key, "total"] = element.total
            found[key, "limits"] = tuple(element.terms) if element.terms is not None else None
        return found

    def exact(self, key: Key) -> Element:
        """The exact state of an element, from its raw log."""
        first: dict[tuple[str, str], int] = {}
        rows = []
        for row in self.rows[key].values():
            event = row.read()
            first.setdefault((event.source, event.id), row.position)
            rows.append((event.time, row.position, row))
        ordered = [row for *_, row in sorted(rows, key=lambda item: item[:2])]
        return exact_history(
            key, ordered, calendar=self.calendar, late_after_ms=self.late_after, plan=Plan(), repeats=first
        ).present

    # --- What must hold.

    @invariant()
    def levels_are_sums(self) -> None:
        for element in self.ledger.elements.values():
            head = element.head
            assert head.level == head.total + sum(hold.quantity for hold in element.holds.values())
            assert head.level >= 0
            assert head.total >= 0
            assert all(hold.quantity >= 0 for hold in element.holds.values())
            assert set(element.closed) == {seat for seat, hold in element.holds.items() if not hold.quantity}

    @invariant()
    def days_are_consistent(self) -> None:
        for rows in self.days.values():
            previous = None
            for _, row in sorted(rows.items()):
                assert row.min <= row.opening <= row.max
                assert row.min <= row.closing <= row.max
                assert row.day_start <= row.as_of < row.day_end
                assert 0 <= row.overdraft_ms <= row.as_of - row.day_start
                assert row.min * (row.as_of - row.day_start) <= row.unit_ms <= row.max * (row.as_of - row.day_start)
                assert row.opening == (previous.closing if previous is not None else 0)
                previous = row

    @invariant()
    def transitions_join_up(self) -> None:
        state: dict[Key, str] = defaultdict(lambda: "within")
        for alert in self.alerts.values():
            key = alert.data.entitlement, alert.data.element
            assert alert.data.from_state == state[key]
            assert alert.data.to_state != alert.data.from_state
            state[key] = alert.data.to_state
        assert {key: element.head.state for key, element in self.ledger.elements.items()} == {
            key: state[key] for key in self.ledger.elements
        }

    @invariant()
    def marks_tell_what_is_unsettled(self) -> None:
        for key, element in self.ledger.elements.items():
            newest = max(self.marks[key], key=lambda mark: mark.position, default=None)
            unsettled = newest is not None and newest.since > 0 and newest.position > self.settled[key]
            assert (element.head.unsettled_since > 0) == unsettled

    @invariant()
    def without_corrections_live_is_the_models_live(self) -> None:
        if not self.corrected:
            self.compare(self.model_of_applied(exact=False))

    @invariant()
    def what_is_settled_is_exact(self) -> None:
        """Also where everything came in order. A settled element is exact up to the correction that found nothing."""
        exact = self.model_of_applied(exact=True)
        self.compare({key: wanted for key, wanted in exact.items() if not self.ledger.elements[key].head.unsettled_since})

    def model_of_applied(self, *, exact: bool) -> dict[Key, model.Element]:
        documents = [document for offset, document in self.sent.items() if offset < self.applied]
        return model.run(documents, timezone=self.timezone, late_after_ms=self.late_after, exact=exact)

    def compare(self, expected: dict[Key, model.Element]) -> None:
        for key, wanted in expected.items():
            element = self.ledger.elements[key]
            open_holds = {seat: (hold.quantity, hold.lease_end) for seat, hold in element.holds.items() if hold.quantity}
            assert open_holds == {seat: (quantity, wanted.leases[seat]) for seat, quantity in wanted.holds.items()}
            assert (element.head.total, element.head.state) == (wanted.total, wanted.state)

    def teardown(self) -> None:
        """Everything arrives, and the restater runs until there is nothing left to do: live is exact."""
        if not hasattr(self, "log"):
            return
        for document in self.held_back:
            self.arrive(document)
        self.fold_all()
        for corrections in self.on_their_way:
            self.correct(corrections)
        for _ in range(3):
            self.correct(self.corrections())
        assert self.corrections() == [], "still not settled"
        exact = self.model_of_applied(exact=True)
        assert set(exact) == set(self.ledger.elements)
        self.compare(exact)
        for key, wanted in exact.items():
            assert self.ledger.elements[key].head.unsettled_since == 0
            self.unmarked_days_are_exact(key, wanted)
        self.levels_are_sums()
        self.days_are_consistent()
        self.transitions_join_up()

    def unmarked_days_are_exact(self, key: Key, wanted: model.Element) -> None:
        for day, row in self.days[key].items():
            if any(mark.first_day <= day <= mark.last_day for mark in self.marks[key]):
                continue
            got = completed(row)
            exact = wanted.day_row(row.day_start, row.day_end, None)
            assert {name: exact[name] for name in got} == got, day


@pytest.mark.parametrize("timezone", ZONES)
def test_the_worker_as_a_state_machine(timezone: str) -> None:
    class InTimezone(SeatmarkMachine):
        pass

    InTimezone.timezone = timezone
    run_state_machine_as_test(InTimezone, settings=SETTINGS)  # type: ignore[no-untyped-call]
