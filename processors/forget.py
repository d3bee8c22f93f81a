"""Takes personal data out of the raw log, and leaves every number as it is.

Raw rows are never deleted: the fold needs each of them. They are written anew instead, without what tells of a person
(schemas/personal.py), with a version that no row that is still on its way to ClickHouse has: what is delivered again later
loses against them (views/migrations/0008_first_arrivals.sql). Then ClickHouse is told to drop the rows that were replaced.

- `forget` is for one person, on request: the user gets a pseudonym, and the seat ids that name the user do too. A seat id says
  which events are about the same hold. So it is replaced in all rows of an element at once, and only where nothing else
  knows it: no hold with it is open, or remembered by a worker. Worker and sink must not run meanwhile.
- `remove_expired` is for everybody, once rows are old enough. It leaves seat ids alone and needs nothing to be stopped: what a
  restatement writes has a higher version, so at worst a name comes back, which the next pass finds.
"""

import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from hashlib import blake2b
from itertools import groupby
from typing import Protocol

import msgspec
import pyarrow as pa

from processors.domain.days import Calendar
from processors.domain.holds import Hold
from processors.exact import Identity, Plan, RawRow, exact_history
from processors.standing import (
    RESTATED_VERSIONS_FROM,
    Key,
    RawLogStore,
    Standing,
    StoredRow,
    batches_of,
    rows_anew,
    standings_of,
    stored_rows,
)
from schemas.errors import Explained
from schemas.events import MAX_EVENT_BYTES, Event, Refused, decode
from schemas.personal import PERSONAL_FIELDS, rewritten, seats_of

_FLUSH_ROWS = 20_000
_PSEUDONYM = "forgotten-"
# In all rows or in none: a seat id stays that is in an event which might get too large by another one.
_LARGE_BYTES = MAX_EVENT_BYTES // 4
_TOO_LARGE = "in an event that is too large to be written anew"
_NOBODY: Mapping[str, str | None] = dict.fromkeys(PERSONAL_FIELDS)

# Not `json.loads`: numbers that are too large for it to keep do not matter here.
_any_json = msgspec.json.Decoder(float_hook=float)

OnProgress = Callable[[int, int], None]


class PersonalStore(RawLogStore, Protocol):
    """What is read and written here; views/raw_log.py says what each gives."""

    def elements_of_person(self, texts: Sequence[str], entitlement: str, customer: str) -> list[Key]: ...
    def months_of_replaced(self, texts: Sequence[str]) -> list[int]: ...
    def expired_months(self, before: date) -> list[int]: ...
    def expired_elements(self, month: int) -> list[Key]: ...
    def expired_rows(self, elements: Sequence[Key], month: int) -> Iterator[pa.RecordBatch]: ...
    def forgetting(self) -> str | None: ...
    def begin_forgetting(self, note: str) -> None: ...
    def end_forgetting(self) -> None: ...
    def drop_checkpoints(self, elements: Sequence[Key]) -> None: ...
    def drop_replaced(self, month: int) -> None: ...


@dataclass
class Forgotten:
    """What was done, or would be.

    elements: in which the person was found. rows: written anew. seats: ids that were replaced.
    kept_seats: how many ids stay, by why. ids: rows in whose event id or source the name is; these stay, for they tell repeats.
    unreadable: rows that could not be written anew.
    """

    elements: int = 0
    rows: int = 0
    seats: int = 0
    kept_seats: Counter[str] = field(default_factory=Counter)
    ids: int = 0
    unreadable: int = 0


class OthersFirst(Explained):
    """Somebody is half forgotten."""


class Person:
    """Who is to be forgotten. user: as events name it. seats: ids that are this person's too."""

    def __init__(self, user: str, seats: Sequence[str] = ()) -> None:
        self.user = user
        self.seats = frozenset(seats) | {user}
        # As JSON has it, and not as a part of a longer word.
        quoted = re.escape(msgspec.json.encode(user).decode()[1:-1])
        self._in_json = re.compile(rf"(?<!\w){quoted}(?!\w)")
        self._in_text = re.compile(rf"(?<!\w){re.escape(user)}(?!\w)")

    def is_named_in(self, text: str | None) -> bool:
        """Whether a text has the user's name in it."""
        return text is not None and self._in_text.search(text) is not None

    def times_named(self, event: bytes) -> int:
        """How often an event, in JSON, has the user's name in it."""
        return len(self._in_json.findall(msgspec.json.encode(_any_json.decode(event)).decode()))

    def seats_in(self, event: Event) -> set[str]:
        """The person's seat ids in an event: those that were given, and those that have the name if no other user is there."""
        # Of an earlier run, when the seat was still in use.
        own = event.user in (None, self.user) or event.user.startswith(_PSEUDONYM)
        return {seat for seat in seats_of(event) if seat in self.seats or (own and self.is_named_in(seat))}

    def new_fields(self, event: Event, seats: frozenset[str], pseudonyms: "Pseudonyms") -> Mapping[str, str | None]:
        """What is to stand in the fields of an event that are about a person. seats: the person's in this element."""
        if event.user == self.user:
            return {**_NOBODY, "user": pseudonyms.of(self.user)}
        if event.user is None and not seats.isdisjoint(seats_of(event)):
            return {name: None for name in PERSONAL_FIELDS if name != "user"}
        return {name: None for name in PERSONAL_FIELDS if name != "user" and self.is_named_in(getattr(event, name))}


class Pseudonyms:
    """What stands for names. A run makes a key, and the store keeps it until the run is done; then nobody can work them out.

    A run that was ended in between must be made again, with the key that is there, or one seat would get two names.
    """

    def __init__(self, key: str) -> None:
        self._key = bytes.fromhex(key)

    @classmethod
    def begun(cls, store: PersonalStore, what: Sequence[object]) -> "Pseudonyms":
        """Those of a new run, or of the one that was ended before it was done. what: all that a run was asked for.

        Raises OthersFirst: that run was asked for something else.
        """
        note = store.forgetting()
        if note is None:
            key = secrets.token_hex(16)
            store.begin_forgetting(f"{key} {cls(key).of(repr(what))}")
            return cls(key)
        key, whose = note.split()
        if cls(key).of(repr(what)) != whose:
            raise OthersFirst(
                "somebody else was being forgotten, and that was ended before it was done: run it again with the same "
                "options, and then this"
            )
        return cls(key)

    def of(self, name: str) -> str:
        """The pseudonym of a user or a seat id."""
        return _PSEUDONYM + blake2b(name.encode(), key=self._key, digest_size=8).hexdigest()


@dataclass
class _Change:
    """A stored row, and the event that is to stand there."""

    row: StoredRow
    value: bytes
    event: Event


class _Writes:
    """Rows that wait to be written anew."""

    def __init__(self, store: PersonalStore, dry_run: bool) -> None:
        self._store = store
        self._dry_run = dry_run
        self._waiting: list[_Change] = []
        self.months: set[int] = set()
        self.rows = 0

    def add(self, change: _Change) -> None:
        """Take one."""
        self._waiting.append(change)
        if len(self._waiting) >= _FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        self.rows += len(self._waiting)
        if self._waiting and not self._dry_run:
            table = _rows_anew(self._waiting)
            self.months.update(moment.year * 100 + moment.month for moment in table.column("time").to_pylist())
            self._store.insert("activity", table)
        self._waiting.clear()


def forget(
    store: PersonalStore,
    person: Person,
    *,
    calendar: Calendar,
    late_after_ms: int,
    entitlement: str = "",
    customer: str = "",
    state_is_made_anew: bool = False,
    dry_run: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Forgotten:
    """Put pseudonyms in the place of a person in all stored rows. Nothing else may write them meanwhile.

    entitlement, customer: only these; '': all. dry_run: only say what would be done.
    state_is_made_anew: from the raw log, before the next event is applied; so no worker knows a seat id any more.
    on_progress(done, total): called with numbers of elements.
    Ended before it is done, it must be run again with the same options: until then the raw log must not be folded.
    Raises OthersFirst.
    """
    forgotten = Forgotten()
    what = (person.user, sorted(person.seats), entitlement, customer)
    pseudonyms = Pseudonyms(secrets.token_hex(16)) if dry_run else Pseudonyms.begun(store, what)
    elements = store.elements_of_person(sorted(person.seats), entitlement, customer)
    writes = _Writes(store, dry_run)
    replaced: set[str] = set()
    done = 0
    for batch in batches_of(elements):
        standings = {} if state_is_made_anew else standings_of(store, batch)
        found, renamed = _look_up_seats(
            store, person, pseudonyms, batch, standings, calendar, late_after_ms, forgotten.kept_seats
        )
        if not dry_run:
            # First: they have the old seat ids in them. Without them a restatement takes longer, and finds the same.
            store.drop_checkpoints([key for key in batch if renamed.get(key)])
        touched: set[Key] = set()
        for row in stored_rows(store.rows(batch, 0), {}):
            key = (row.raw.entitlement, row.raw.element)
            try:
                change = _forgetting(row, person, pseudonyms, found[key], renamed[key])
            except Refused:
                forgotten.unreadable += 1
                continue
            if change is not None:
                touched.add(key)
                writes.add(change)
                forgotten.ids += person.is_named_in(change.event.id) or person.is_named_in(change.event.source)
        writes.flush()
        replaced.update(seat for key in touched for seat in renamed[key])
        forgotten.elements += len(touched)
        done += len(batch)
        on_progress(done, len(elements))
    if not dry_run:
        # Also those of a run that was ended before it came to this.
        for month in sorted(writes.months.union(store.months_of_replaced(sorted(person.seats)))):
            store.drop_replaced(month)
        store.end_forgetting()
    forgotten.rows, forgotten.seats = writes.rows, len(replaced)
    return forgotten


def _look_up_seats(
    store: PersonalStore,
    person: Person,
    pseudonyms: Pseudonyms,
    batch: Sequence[Key],
    standings: Mapping[Key, Standing],
    calendar: Calendar,
    late_after_ms: int,
    kept: Counter[str],
) -> tuple[dict[Key, frozenset[str]], dict[Key, dict[str, str]]]:
    """The person's seat ids in each element, and new ones for those that can be replaced. kept: counts the others."""
    repeats: dict[str, dict[Identity, int]] = {}
    for of_entitlement, source, event_id, first, _ in store.repeats(batch, 0):
        repeats.setdefault(of_entitlement, {})[source, event_id] = first
    found: dict[Key, frozenset[str]] = {}
    renamed: dict[Key, dict[str, str]] = {}
    rows = stored_rows(store.rows(batch, 0), {})
    for key, of_element in groupby(rows, key=lambda row: (row.raw.entitlement, row.raw.element)):
        seats: set[str] = set()
        in_large_events: set[str] = set()
        history = exact_history(
            key,
            _renamed_rows(of_element, person, pseudonyms, seats, in_large_events),
            calendar=calendar,
            late_after_ms=late_after_ms,
            plan=Plan(),
            repeats=repeats.get(key[0], {}),
        )
        found[key], renamed[key] = frozenset(seats), {}
        for seat in seats:
            holds = history.present.holds
            hold = holds.get(seat) or holds.get(pseudonyms.of(seat))
            why = _TOO_LARGE if seat in in_large_events else _why_kept(hold, standings.get(key))
            if why:
                kept[why] += 1
            else:
                renamed[key][seat] = pseudonyms.of(seat)
    return found, renamed


def _renamed_rows(
    rows: Iterable[StoredRow], person: Person, pseudonyms: Pseudonyms, seats: set[str], in_large_events: set[str]
) -> Iterator[RawRow]:
    """The rows as they are once the person's seat ids are replaced: a run that was ended may have replaced some already.

    seats, in_large_events: get the ids that are still to be replaced.
    """
    for row in rows:
        found = person.seats_in(row.raw.read())
        seats |= found
        if len(row.raw.event) > _LARGE_BYTES:
            in_large_events |= found
            yield row.raw
        elif found:
            yield replace(row.raw, event=rewritten(row.raw.event, {}, {seat: pseudonyms.of(seat) for seat in found}))
        else:
            yield row.raw


def _why_kept(hold: Hold | None, standing: Standing | None) -> str:
    """Why a seat id must stay; '' where it need not. hold: of the seat now. standing: None where no worker knows a thing."""
    if hold is not None and hold.quantity:
        return "in use"
    if standing is None:
        return ""
    if hold is not None:
        return "given back, and the worker still remembers it"
    if standing.marks and standing.unsettled_since is not None:
        return "of an element that waits for a correction"
    return ""


def _forgetting(
    row: StoredRow, person: Person, pseudonyms: Pseudonyms, seats: frozenset[str], renamed: Mapping[str, str]
) -> _Change | None:
    """The row without the person; None where there is nothing to take out. Raises Refused: it cannot be written anew."""
    event = row.raw.read()
    fields = person.new_fields(event, seats, pseudonyms)
    value = rewritten(row.raw.event, fields, renamed)
    anew = decode(value, key="any", appended_at=None)
    # Fields that are not known, or nothing: they are not in `event`.
    if anew == event and person.times_named(value) == person.times_named(row.raw.event):
        return None
    return _Change(row, value, anew)


@dataclass
class Removed:
    """What a pass over old rows did. rows: written anew. unreadable: those that could not be."""

    rows: int = 0
    unreadable: int = 0


def remove_expired(
    store: PersonalStore,
    before: date,
    *,
    owns: Callable[[str], bool] = lambda entitlement: True,
    on_progress: OnProgress = lambda done, total: None,
) -> Removed:
    """Take users, hosts, addresses, reasons and unknown fields out of all rows with a time in a month (UTC) before this day's.

    owns: whether this process looks after an entitlement. on_progress(done, total): called with numbers of elements of a month.
    """
    removed = Removed()
    for month in store.expired_months(before.replace(day=1)):
        elements = [key for key in store.expired_elements(month) if owns(key[0])]
        writes = _Writes(store, dry_run=False)
        found = done = 0
        for batch in batches_of(elements):
            for row in stored_rows(store.expired_rows(batch, month), {}):
                found += 1
                try:
                    value = rewritten(row.raw.event, _NOBODY, {})
                    writes.add(_Change(row, value, decode(value, key="any", appended_at=None)))
                except Refused:
                    removed.unreadable += 1
            writes.flush()
            done += len(batch)
            on_progress(done, len(elements))
        removed.rows += writes.rows
        # Where nothing is left to write, an earlier pass was ended before it came to this.
        if elements and (writes.rows or not found):
            store.drop_replaced(month)
    return removed


def _rows_anew(changes: Sequence[_Change]) -> pa.Table:
    """Raw rows as they are stored, with other events in them."""
    columns = {name: [getattr(change.event, name) for change in changes] for name in (*PERSONAL_FIELDS, "seat_id")}
    return rows_anew(
        [change.row for change in changes],
        # Above all that a worker gives. Of restated rows, which keep theirs, the one that is inserted last stays.
        [RESTATED_VERSIONS_FROM] * len(changes),
        {"event": [change.value for change in changes], **columns},
    )
