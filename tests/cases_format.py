"""Reads the golden cases of tests/cases/*.yaml, whose notation tests/cases/README.md describes.

A case is records that arrive, and what must come of them.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from schemas.events import RESTATE_SOURCE

DIRECTORY = Path(__file__).parent / "cases"
SOURCE = "/license-servers/eu-1"

_NUMBERS = Path(__file__).parents[1] / "docs" / "numbers.md"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)

# An element of a case: its entitlement and its name.
ElementKey = tuple[str, str]


class CaseWrong(Exception):
    """A case is not written as tests/cases/README.md says; the message begins with file and line."""


@dataclass(frozen=True)
class Result:
    """What becomes of one record.

    level: of the element that it touches, right after it; None where the case does not say. late: the elements for which it is
    late. repeat: it is recognised as one. forgotten: it is a repeat that need not be recognised. dead: reason, and the field at
    fault ('' where the case does not say). no_effect: it is applied, and changes nothing.
    """

    level: int | None = None
    late: frozenset[ElementKey] = frozenset()
    repeat: bool = False
    forgotten: bool = False
    dead: tuple[str, str] | None = None
    no_effect: bool = False


@dataclass(frozen=True, eq=False)
class Record:
    """One record of a case. line: which of the case's events it is, from 1.

    touches: the elements that it is about; none where it becomes a dead letter. appended_at: ms, None: long after its time.
    basis: of a correction, the number of the event that it was computed after.
    """

    line: int
    key: bytes | None
    value: bytes
    appended_at: int | None
    document: dict[str, Any]
    touches: tuple[ElementKey, ...]
    result: Result
    basis: int | None = None

    def value_with(self, basis: int) -> bytes:
        """The value of a correction, where it is known at which position the event `basis` stands."""
        document = {**self.document, "data": {**self.document["data"], "basis": basis}}
        return _compact(document)

    @property
    def time(self) -> int:
        """The event's time, in ms. Only of a record that is no dead letter."""
        return parse_instant(self.document["time"])


@dataclass(frozen=True)
class Case:
    """One golden case.

    late_after, read_at: ms. then: what must come, live, by element; exact: what the exact numbers say where they differ.
    not_in, fails_in: by who runs cases ('fold', 'model', 'stack'), why the case is not run there, or is known to fail.
    """

    name: str
    rule: str
    where: str
    timezone: str
    late_after: int
    read_at: int
    entitlement: str
    records: tuple[Record, ...]
    then: Mapping[ElementKey, Mapping[str, Any]]
    exact: Mapping[ElementKey, Mapping[str, Any]]
    not_in: Mapping[str, str]
    fails_in: Mapping[str, str]

    @property
    def accepted(self) -> list[Record]:
        """The records that are no dead letters, in order of arrival."""
        return [record for record in self.records if record.result.dead is None]

    @property
    def reported(self) -> list[Record]:
        """The accepted records that licence servers have sent: all but corrections, which the exact numbers leave out."""
        return [record for record in self.accepted if record.basis is None]

    def basis_of(self, record: Record) -> Record:
        """The record that a correction was computed after; of a line that stands for several, the last."""
        return [other for other in self.accepted if other.line == record.basis][-1]

    @property
    def elements(self) -> list[ElementKey]:
        """Every element that a record touches."""
        return list(dict.fromkeys(element for record in self.accepted for element in record.touches))

    def then_exactly(self) -> dict[ElementKey, dict[str, Any]]:
        """What the exact numbers must be: those of `then`, with those of `exact` over them; nothing is late or marked there."""
        expected: dict[ElementKey, dict[str, Any]] = {}
        for element in {**self.then, **self.exact}:
            words = {word: value for word, value in self.then.get(element, {}).items() if word not in ("marks", "unsettled")}
            for word, value in self.exact.get(element, {}).items():
                words[word] = _days_over(words.get(word, {}), value) if word == "days" else value
            if "days" in words:
                words["days"] = {
                    day: row and {name: value for name, value in row.items() if name != "state"}
                    for day, row in words["days"].items()
                }
            expected[element] = words
        return expected


def exact_order(records: list[Record]) -> list[Record]:
    """Each event once, of its arrivals the first; ordered by time, then arrival."""
    first: dict[tuple[str, str, str], Record] = {}
    for record in records:
        event = record.document
        first.setdefault((event["subject"], event["source"], event["id"]), record)
    return sorted(first.values(), key=lambda record: record.time)


def parse_instant(text: str) -> int:
    """RFC 3339 to ms since 1970; what is finer is cut off."""
    return (datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)) - _EPOCH) // _MS


def format_instant(ms: int) -> str:
    """The RFC 3339 text, in UTC."""
    return (_EPOCH + ms * _MS).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def load_cases(directory: Path = DIRECTORY) -> list[Case]:
    """All cases, in the order of files and lines. Raises CaseWrong: at the first that is not as the README says."""
    cases: list[Case] = []
    for path in sorted(directory.glob("*.yaml")):
        cases += _File(path).cases()
    named: dict[str, Case] = {}
    for case in cases:
        for taken in (case.name, case.entitlement):
            other = named.setdefault(taken, case)
            if other is not case:
                raise CaseWrong(f"{case.where}: {taken!r} is the name of the case at {other.where} already")
    return cases


# --- Words.

_CASE = {"case", "rule", "timezone", "late_after", "read", "entitlement", "events", "then", "exact", "not_in", "fails_in"}
_HEAD = {"about", "date", "timezone", "late_after", "read", "cases"}
_RUNNERS = {"fold", "model", "stack"}
_RECORD = {"send", "with", "without", "key", "size", "text", "bytes", "at", "becomes"}

_SEAT: set[str] = set()
_SEAT_LEASE, _FEATURE_LEASE, _FEATURE = {"lease"}, {"lease", "quantity"}, {"quantity"}
_VERBS: dict[str, set[str]] = {
    "seat.activated": _SEAT_LEASE, "seat.refreshed": _SEAT_LEASE, "seat.deactivated": _SEAT, "seat.expired": _SEAT,
    "seat.denied": _SEAT, "feature.checked_out": _FEATURE_LEASE, "feature.returned": _FEATURE,
    "feature.refreshed": _FEATURE_LEASE, "feature.expired": _FEATURE, "feature.used": _FEATURE, "feature.reset": _FEATURE,
    "feature.denied": _FEATURE, "terms": {"limit", "overdraft", "kind", "name", "lease_policy"}, "snapshot": {"level"},
    "correction": {"basis", "difference", "part", "parts", "limit", "overdraft", "kind", "name", "lease_policy", "changed"},
}  # fmt: skip
_CORRECTED_TERMS = {"limit", "overdraft", "kind", "name", "lease_policy", "customer", "product", "changed"}
_OF_ALL = {"id", "source", "entitlement", "customer", "product", "user", "host", "credential", "reason"}
_WITHOUT_SEAT = {"seat.denied", "feature.denied", "feature.used", "feature.reset"}

_STATES = ("within", "at_limit", "overdraft", "at_hard_limit", "over_hard_limit")
_ALERTS = ("limit.reached", "limit.cleared", "overdraft.entered", "overdraft.changed", "overdraft.left")
_REASONS = ("not_json", "not_cloudevent", "unknown_type", "invalid_data", "key_mismatch", "too_large", "time_in_future")

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?")
_CLOCK = re.compile(r"\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_HOLD = re.compile(r"([^*()]+)(?:\*(\d+))?(?:\(lease=([^)]+)\))?")
_CORRECTED_HOLD = re.compile(r"([^*()]+)\*(\d+)(?:\(changed=([^,)]+)(?:,lease=([^)]+))?\))?")
_BASIS = re.compile(r"e(\d+)")


class _Wrong(Exception):
    """Something is wrong; the line is added where it is known."""


def _duration(text: str) -> int:
    """`1h30m`, or a number of seconds, in ms."""
    if re.fullmatch(r"\d+(\.\d{1,3})?", text):
        return int(Decimal(text) * 1000)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise _Wrong(f"expected a duration such as 1h30m or a number of seconds, got {text!r}")
    days, hours, minutes, seconds, milliseconds = (int(part or 0) for part in match.groups())
    return ((((days * 24 + hours) * 60 + minutes) * 60) + seconds) * 1000 + milliseconds


def _sum_of_durations(text: str) -> int:
    """`1 x 2h + 3 x 30m`, in ms."""
    total = 0
    for part in text.split(" + "):
        units, times, length = part.rpartition(" x ")
        total += (_whole(units) if times else 1) * _duration(length)
    return total


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise _Wrong(f"expected a whole number, got {text!r}")
    return int(text)


def _whole_or_null(text: str) -> int | None:
    return None if text == "null" else _whole(text)


def _text_or_null(text: str) -> str | None:
    return None if text == "null" else text


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise _Wrong(f"expected one of {', '.join(choices)}, got {text!r}")
        return text

    return parse


def _true_or_false(text: str) -> bool:
    return _one_of("true", "false")(text) == "true"


_DAY_WORDS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("opening", "closing", "min", "max", "peak_overage", "activations", "deactivations", "refreshes",
                     "denials", "units_used"), _whole),
    "limit": _whole_or_null, "hard_limit": _whole_or_null, "terms_known": _true_or_false,
    "overdraft_seconds": _sum_of_durations, "unit_seconds": _sum_of_durations, "length": _sum_of_durations,
    "state": _one_of("provisional", "final"), "stored": _true_or_false,
}  # fmt: skip
_SIMPLE_WORDS: dict[str, Callable[[str], Any]] = {
    "level": _whole, "state": _one_of(*_STATES), "limit": _whole_or_null, "hard_limit": _whole_or_null,
    "customer": _text_or_null, "product": _text_or_null, "name": _text_or_null, "kind": _one_of("pool", "counter"),
    "peak": _whole_or_null, "unsettled": _true_or_false,
}  # fmt: skip
_THEN = {*_SIMPLE_WORDS, "holds", "days", "alerts", "marks", "entered_at"}


def _known(word: str, known: set[str] | Mapping[str, Any]) -> None:
    if word not in known:
        raise _Wrong(f"{word!r} is not a word here; expected one of {', '.join(sorted(known))}")


# --- One file.


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.date: str | None = None
        self.sections = _sections()

    def fail(self, node: yaml.Node, message: str) -> CaseWrong:
        return CaseWrong(f"{self.path.name}:{node.start_mark.line + 1}: {message}")

    def cases(self) -> Iterator[Case]:
        try:
            root = yaml.compose(self.path.read_text(), yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise CaseWrong(f"{self.path.name}: {error}") from error
        if root is None:
            raise CaseWrong(f"{self.path.name}:1: expected cases, but the file is empty")
        head = self.mapping(root, _HEAD)
        if "cases" not in head:
            raise self.fail(root, "expected `cases`")
        self.date = self.text(head["date"]) if "date" in head else None
        for node in self.sequence(head["cases"]):
            yield self.case(node, head)

    def case(self, node: yaml.Node, head: dict[str, yaml.Node]) -> Case:
        words = self.mapping(node, _CASE)
        for required in ("case", "rule", "events"):
            if required not in words:
                raise self.fail(node, f"expected `{required}` in every case")

        def setting(word: str, otherwise: str) -> str:
            found = words.get(word, head.get(word))
            return self.text(found) if found is not None else otherwise

        name = self.text(words["case"])
        section, _, rule = self.text(words["rule"]).partition(": ")
        if not rule or section not in self.sections:
            raise self.fail(
                words["rule"],
                f"expected the section of docs/numbers.md and the rule ({', '.join(self.sections)}: ...), got {section!r}",
            )
        if "entitlement" in words:
            entitlement = self.text(words["entitlement"])
        else:
            entitlement = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        records = self.records(words["events"], entitlement)
        touched = list(dict.fromkeys(element for record in records for element in record.touches))
        then = self.expectations(words.get("then"), entitlement, touched)
        exact = self.expectations(words.get("exact"), entitlement, touched)
        case = Case(
            name=name,
            rule=rule,
            where=f"{self.path.name}:{node.start_mark.line + 1}",
            timezone=setting("timezone", "UTC"),
            late_after=self.parsed(
                words.get("late_after", head.get("late_after", node)), _duration, setting("late_after", "1h")
            ),
            read_at=self.parsed(words.get("read", head.get("read", node)), self.instant, setting("read", "2026-11-20 00:00")),
            entitlement=entitlement,
            records=tuple(records),
            then=then,
            exact=exact,
            not_in=self.reasons(words.get("not_in")),
            fails_in=self.reasons(words.get("fails_in")),
        )
        if not then and all(record.result == Result() for record in records):
            raise self.fail(node, "expected `then`, or a result (`=>`) of one of the events")
        if exact and _in_order(case):
            raise self.fail(
                words["exact"], "all events are in order: live and exact numbers are the same, so `exact` says nothing"
            )
        return case

    # --- Records.

    def records(self, node: yaml.Node, entitlement: str) -> list[Record]:
        records: list[Record] = []
        for line, item in enumerate(self.sequence(node), start=1):
            if isinstance(item, yaml.ScalarNode):
                records += self.parsed(item, partial(self.event_line, line=line, entitlement=entitlement))
                basis = records[-1].basis
                if basis is not None and basis not in {record.line for record in records if record.touches}:
                    raise self.fail(item, f"expected as basis one of the events before it, got e{basis}")
            else:
                records.append(self.special(item, line, entitlement))
        return records

    def special(self, node: yaml.Node, line: int, entitlement: str) -> Record:
        """A record that is no plain event: changed, or written out."""
        words = self.mapping(node, _RECORD)
        if len({"send", "text", "bytes"} & set(words)) != 1:
            raise self.fail(node, "expected one of `send`, `text` and `bytes`")
        key: bytes | None = entitlement.encode()
        becomes = self.text(words["becomes"]) if "becomes" in words else ""
        document: dict[str, Any] = {}
        appended_at = None
        if "send" in words:
            if "=>" in self.text(words["send"]):
                raise self.fail(words["send"], "here the result is the word `becomes`")
            [record] = self.parsed(words["send"], partial(self.event_line, line=line, entitlement=entitlement))
            document, key, appended_at = record.document, record.key, record.appended_at
            changes = self.mapping(words["with"], None) if "with" in words else {}
            for path, value in changes.items():
                self.change(document, path, value)
            for absent in self.sequence(words["without"]) if "without" in words else []:
                self.change(document, self.text(absent), None)
            value_bytes = _compact(document)
            if "size" in words:
                missing = self.parsed(words["size"], _whole) - len(_compact({**document, "padding": ""}))
                document["padding"] = "x" * missing
                value_bytes = _compact(document)
        elif "text" in words:
            value_bytes = self.text(words["text"]).replace("ENTITLEMENT", entitlement).encode()
        else:
            value_bytes = bytes.fromhex(self.text(words["bytes"]))
        if "key" in words:
            key = None if self.is_null(words["key"]) else self.text(words["key"]).encode()
        dead = becomes.startswith("dead ")
        if "text" in words and not dead:
            document = json.loads(value_bytes)
        touches = () if dead else _elements_of(document)
        result = self.parsed(words.get("becomes", node), lambda text: _result(text, touches), becomes)
        return Record(line, key, value_bytes, appended_at, document, touches, result)

    def change(self, document: dict[str, Any], path: str, value: yaml.Node | None) -> None:
        """Set a field by its dotted path, or take it away."""
        *parents, last = path.split(".")
        for parent in parents:
            document = document[parent]
        if value is None:
            del document[last]
        else:
            document[last] = self.json(value)

    def event_line(self, text: str, line: int, entitlement: str) -> list[Record]:
        """The records of one line of events."""
        written, arrow, result = text.partition("=>")
        tokens = written.split()
        first, appended_at, times, every = self.take_time(tokens), None, 1, 0
        if tokens[:1] == ["at"]:
            del tokens[0]
            appended_at = parse_instant(self.take_time(tokens))
        if tokens[1:3] == ["times", "every"]:
            times, every = _whole(tokens[0]), _duration(tokens[3])
            del tokens[:4]
        if not tokens:
            raise _Wrong("expected a time and what happened")
        verb, *rest = tokens
        _known(verb, _VERBS)
        records = []
        for number in range(times):
            time = format_instant(parse_instant(first) + number * every) if times > 1 else first
            words = [word.replace("#", str(number + 1)) for word in rest] if times > 1 else rest
            event_id = f"e{line}.{number + 1}" if times > 1 else f"e{line}"
            if verb == "correction":
                document, basis = self.correction(words, time, event_id, entitlement)
            else:
                document, basis = self.document(verb, words, time, event_id, entitlement), None
            last = number == times - 1
            # Of a line that stands for many, a level is the one in the end; all else holds for each.
            written_result = ", ".join(part for part in result.strip().split(", ") if last or not part.isdecimal())
            if arrow and not result.strip():
                raise _Wrong("expected a result after =>")
            touches = () if written_result.startswith("dead ") else _elements_of(document)
            records.append(
                Record(line, document["subject"].encode(), _compact(document), appended_at, document, touches,
                       _result(written_result, touches), basis)
            )  # fmt: skip
        return records

    def take_time(self, tokens: list[str]) -> str:
        """Take `[date] time` off the tokens; RFC 3339."""
        day = tokens.pop(0) if tokens and _DATE.fullmatch(tokens[0]) else self.date
        if day is None:
            raise _Wrong("expected a date: the file has no `date`")
        if not tokens or not _CLOCK.fullmatch(tokens[0]):
            raise _Wrong(f"expected a time such as 09:00 or 09:00:00.123+02:00, got {tokens[0] if tokens else 'nothing'!r}")
        clock = tokens.pop(0)
        clock, zone = (clock[:-6], clock[-6:]) if clock[-6:-5] in ("+", "-") else (clock.removesuffix("Z"), "Z")
        return f"{day}T{clock}{':00' if len(clock) == 5 else ''}{zone}"

    def instant(self, text: str) -> int:
        """`[date] time` in ms."""
        tokens = text.split()
        time = self.take_time(tokens)
        if tokens:
            raise _Wrong(f"expected a time only, got {' '.join(tokens)!r} after it")
        return parse_instant(time)

    def document(self, verb: str, words: list[str], time: str, event_id: str, entitlement: str) -> dict[str, Any]:
        """The event that a line says."""
        data: dict[str, Any] = {}
        envelope = {"id": event_id, "source": SOURCE, "subject": entitlement}
        elements: dict[str, Any] = {}
        named: list[str] = []
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or "(" in name:
                named.append(word)
                if verb == "terms":
                    elements[word] = {}
                continue
            _known(name, _VERBS[verb] | _OF_ALL)
            if name in ("id", "source"):
                envelope[name] = value
            elif name == "entitlement":
                envelope["subject"] = f"{entitlement}/{value}"
            elif name in ("limit", "overdraft", "kind"):
                if not named:
                    raise _Wrong(f"expected an element before {word!r}")
                elements[named[-1]][name] = (
                    _whole_or_null(value) if name == "limit" else _overdraft(value) if name == "overdraft" else value
                )
            elif name == "lease":
                data["lease_expires_at"] = self.lease(value)
            else:
                data[name] = _whole(value) if name in ("quantity", "level") else value
        if verb == "terms":
            verb, data["elements"] = "entitlement.changed", elements
        elif verb == "snapshot":
            verb, data["element"] = "entitlement.snapshot", named[0] if named else ""
            if "level" not in data:
                data["holds"] = [self.snapshot_hold(word) for word in named[1:]]
        else:
            expected = ["element"] if verb.startswith("feature.") else []
            expected += ["seat_id"] if len(named) > len(expected) or verb not in _WITHOUT_SEAT else []
            if len(named) != len(expected):
                raise _Wrong(f"expected {' and '.join(expected)} after {verb}, got {' '.join(named) or 'nothing'!r}")
            data.update(zip(expected, named, strict=True))
        return {"specversion": "1.0", "type": verb, "time": time, **envelope, "data": data}

    def correction(self, words: list[str], time: str, event_id: str, entitlement: str) -> tuple[dict[str, Any], int]:
        """The correction that a line says, without the position of its basis; and the number of the event that is its basis."""
        data: dict[str, Any] = {"element": "", "basis": 0, "part": 0, "parts": 1}
        envelope = {"id": event_id, "source": RESTATE_SOURCE, "subject": entitlement}
        holds: list[dict[str, Any]] = []
        terms: dict[str, Any] = {}
        basis = None
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or "(" in name:
                if not data["element"]:
                    data["element"] = word
                else:
                    holds.append(self.corrected_hold(word, time))
                continue
            _known(name, _VERBS["correction"] | {"id", "entitlement", "customer", "product"})
            if name == "id":
                envelope["id"] = value
            elif name == "entitlement":
                envelope["subject"] = f"{entitlement}/{value}"
            elif name == "basis":
                basis = _matched(_BASIS, value, "expected an event such as e3, which is the third of the case")
            elif name == "changed":
                terms["changed_at"] = self.lease(value)
            elif name in _CORRECTED_TERMS:
                terms[name] = _whole_or_null(value) if name == "limit" else _overdraft(value) if name == "overdraft" else value
            else:
                data[name] = int(value)
        if basis is None or not data["element"]:
            raise _Wrong("expected an element and basis= after correction")
        if holds:
            data["holds"] = holds
        if terms:
            data["terms"] = {"changed_at": time, **terms}
        return {"specversion": "1.0", "type": "entitlement.snapshot", "time": time, **envelope, "data": data}, int(basis[1])

    def corrected_hold(self, word: str, time: str) -> dict[str, Any]:
        match = _matched(_CORRECTED_HOLD, word, "expected a hold such as w1*3 or w1*3(changed=09:00,lease=10:00)")
        seat, quantity, changed_at, lease = match.groups()
        hold = {
            "seat_id": seat,
            "quantity": int(quantity),
            "changed_at": time if changed_at is None else self.lease(changed_at),
        }
        if lease is not None:
            hold["lease_expires_at"] = self.lease(lease)
        return hold

    def lease(self, text: str) -> str:
        """A lease end: a time of the file's date, or `YYYY-MM-DD/HH:MM`."""
        return self.take_time(text.split("/"))

    def snapshot_hold(self, word: str) -> dict[str, Any]:
        match = _matched(_HOLD, word, "expected a hold such as w1, w1*3 or w1*3(lease=10:00)")
        seat, quantity, lease = match.groups()
        hold: dict[str, Any] = {"seat_id": seat, "quantity": 1 if quantity is None else int(quantity)}
        if lease is not None:
            hold["lease_expires_at"] = self.lease(lease)
        return hold

    # --- What must come.

    def expectations(
        self, node: yaml.Node | None, entitlement: str, touched: list[ElementKey]
    ) -> dict[ElementKey, dict[str, Any]]:
        """By element. Where the events touch one element only, its name is left out."""
        if node is None:
            return {}
        if len(touched) == 1:
            return {touched[0]: self.words(node)}
        names = {"/".join(element).removeprefix(entitlement + "/"): element for element in touched}
        return {names[name]: self.words(of) for name, of in self.mapping(node, set(names)).items()}

    def words(self, node: yaml.Node) -> dict[str, Any]:
        parsed: dict[str, Any] = {}
        for word, value in self.mapping(node, _THEN).items():
            if word == "days":
                parsed[word] = {self.parsed(value, _day, day): self.day(row) for day, row in self.mapping(value, None).items()}
            elif word == "alerts":
                parsed[word] = [self.parsed(alert, self.alert) for alert in self.sequence(value)]
            elif word == "marks":
                parsed[word] = sorted({day for item in self.sequence(value) for day in self.parsed(item, _days)})
            elif word == "holds":
                holds = self.mapping(value, None)
                parsed[word] = {seat: self.parsed(hold, self.open_hold) for seat, hold in holds.items()}
            elif word == "entered_at":
                parsed[word] = self.parsed(value, lambda text: None if text == "null" else self.instant(text))
            else:
                parsed[word] = self.parsed(value, _SIMPLE_WORDS[word])
        return parsed

    def day(self, node: yaml.Node) -> dict[str, Any] | None:
        if isinstance(node, yaml.ScalarNode):
            self.parsed(node, _one_of("no row"))
            return None
        return {word: self.parsed(value, _DAY_WORDS[word]) for word, value in self.mapping(node, set(_DAY_WORDS)).items()}

    def open_hold(self, text: str) -> tuple[int, int | None]:
        """`3`, or `3 until 10:00`: quantity and lease end."""
        quantity, until, lease = text.partition(" until ")
        return _whole(quantity), self.instant(lease) if until else None

    def alert(self, text: str) -> dict[str, Any]:
        """`[date] time type from -> to name=value ...`"""
        tokens = text.split()
        alert: dict[str, Any] = {"at": parse_instant(self.take_time(tokens))}
        if len(tokens) < 4 or tokens[2] != "->":
            raise _Wrong("expected: time type from -> to")
        alert["type"] = _one_of(*_ALERTS)(tokens[0])
        alert["from"], alert["to"] = _one_of(*_STATES)(tokens[1]), _one_of(*_STATES)(tokens[3])
        parsers: dict[str, Callable[[str], Any]] = {
            **dict.fromkeys(("level", "limit", "hard_limit", "overage", "peak", "peak_overage"), _whole_or_null),
            **dict.fromkeys(("cause", "cause_source", "cause_type", "customer", "product", "id"), _text_or_null),
            "duration": _sum_of_durations, "entered_at": self.lease_instant,
        }  # fmt: skip
        for word in tokens[4:]:
            name, _, value = word.partition("=")
            _known(name, parsers)
            alert[name] = parsers[name](value)
        return alert

    def lease_instant(self, text: str) -> int | None:
        return None if text == "null" else parse_instant(self.lease(text))

    def reasons(self, node: yaml.Node | None) -> dict[str, str]:
        return {} if node is None else {name: self.text(reason) for name, reason in self.mapping(node, _RUNNERS).items()}

    # --- YAML, with lines. Texts are taken as they are written: `09:00` is no number, and `null` no null.

    def parsed(self, node: yaml.Node, parse: Callable[[str], Any], text: str | None = None) -> Any:
        try:
            return parse(self.text(node) if text is None else text)
        except (_Wrong, ValueError) as error:
            raise self.fail(node, str(error)) from error

    def text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, f"expected a text, got a {_kind(node)}")
        return str(node.value)

    def is_null(self, node: yaml.Node) -> bool:
        return isinstance(node, yaml.ScalarNode) and node.style is None and node.value == "null"

    def mapping(self, node: yaml.Node, known: set[str] | None) -> dict[str, yaml.Node]:
        """By word. known: which there are; None: any."""
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"expected words with values, got a {_kind(node)}")
        words: dict[str, yaml.Node] = {}
        for key, value in node.value:
            word = self.text(key)
            if known is not None and word not in known:
                raise self.fail(key, f"{word!r} is not a word here; expected one of {', '.join(sorted(known))}")
            if word in words:
                raise self.fail(key, f"{word!r} is there twice")
            words[word] = value
        return words

    def sequence(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.fail(node, f"expected a list, got a {_kind(node)}")
        return list(node.value)

    def json(self, node: yaml.Node) -> Any:
        """A value of the event: in quotes a text, else as JSON has it."""
        if isinstance(node, yaml.MappingNode):
            return {self.text(key): self.json(value) for key, value in node.value}
        if isinstance(node, yaml.SequenceNode):
            return [self.json(item) for item in node.value]
        if not isinstance(node, yaml.ScalarNode) or node.style is not None:
            return self.text(node)
        try:
            return json.loads(node.value)
        except ValueError as error:
            raise self.fail(node, f"expected a JSON value, or a text in quotes, got {node.value!r}") from error


def _kind(node: yaml.Node) -> str:
    return "list" if isinstance(node, yaml.SequenceNode) else "mapping" if isinstance(node, yaml.MappingNode) else "text"


def _sections() -> list[str]:
    """The sections of docs/numbers.md, by the beginning of their titles."""
    return re.findall(r"^## \d+\. ([^,:\n]+)", _NUMBERS.read_text(), re.MULTILINE)


def _in_order(case: Case) -> bool:
    return exact_order(case.reported) == case.accepted


def _matched(pattern: re.Pattern[str], text: str, expected: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise _Wrong(f"{expected}, got {text!r}")
    return match


def _compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _overdraft(text: str) -> dict[str, Any]:
    kind, colon, value = text.partition(":")
    return {"type": kind, "value": json.loads(value)} if colon else {"type": kind}


def _elements_of(event: dict[str, Any]) -> tuple[ElementKey, ...]:
    entitlement, data = event["subject"], event["data"]
    if event["type"].startswith("seat."):
        return ((entitlement, "seats"),)
    if event["type"] == "entitlement.changed":
        return tuple((entitlement, name) for name in data["elements"])
    return ((entitlement, data["element"]),)


def _result(text: str, touches: tuple[ElementKey, ...]) -> Result:
    """`repeat`, `forgotten`, `dead REASON [FIELD]`; else a level, `late`, `late for ELEMENT`, `no effect`, or several."""
    level, late, no_effect = None, frozenset[ElementKey](), False
    if text in ("repeat", "forgotten"):
        return Result(repeat=text == "repeat", forgotten=text == "forgotten")
    if text.startswith("dead "):
        _, reason, *field = text.split(maxsplit=2)
        return Result(dead=(_one_of(*_REASONS)(reason), " ".join(field)))
    for part in text.split(", ") if text else []:
        if part == "late":
            late = frozenset(touches)
        elif part.startswith("late for "):
            late |= {(touches[0][0], name) for name in part.removeprefix("late for ").split(" and ")}
        elif part == "no effect":
            no_effect = True
        elif part.isdecimal():
            if len(touches) != 1:
                raise _Wrong("a level after an event that touches several elements: say it in `then`")
            level = int(part)
        else:
            raise _Wrong(
                f"{part!r} is no result: expected a level, late, late for ELEMENT, no effect, repeat, forgotten or dead REASON"
            )
    if not late <= set(touches):
        raise _Wrong(f"late for an element that the event does not touch: {text!r}")
    return Result(level=level, late=late, no_effect=no_effect)


def _day(text: str) -> str:
    return date.fromisoformat(text).isoformat()


def _days(text: str) -> list[str]:
    """`2026-11-10`, or `2026-11-09 to 2026-11-10`."""
    first, _, last = text.partition(" to ")
    start, end = date.fromisoformat(first), date.fromisoformat(last or first)
    return [(start + timedelta(days=n)).isoformat() for n in range((end - start).days + 1)]


def _days_over(days: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Day rows, with those fields of `over` that it names."""
    merged = dict(days)
    for day, row in over.items():
        merged[day] = {**(merged.get(day) or {}), **row} if row is not None else None
    return merged
