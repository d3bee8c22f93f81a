"""What the commands that send events tell, without a broker: what came of terms, wrong options, files of a log."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError, KafkaError
from typer.testing import CliRunner, Result

from connectors.flexnet import FilesOverlap
from deploy.kafka.cluster import free_ports
from seatmark import cli, deadletters, events, produce
from seatmark.deadletters import Replayed
from seatmark.produce import NotStored, Produced
from seatmark.reports import ApiFailed

UNKNOWN = ApiFailed("there is no entitlement 'acme'")


class Run:
    """Commands whose events go nowhere, and an API that says what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[dict[str, Any]] = []
        self.answers: list[Any] = []
        self.asked: list[str] = []
        monkeypatch.setattr(events, "_send", self._send)
        monkeypatch.setattr(events, "get", self._get)

    def _send(self, settings: Any, lines: Any, wait: bool) -> Produced:
        self.sent += [orjson.loads(line) for line in lines]
        return Produced(len(self.sent), [], {})

    def _get(self, url: str, path: str, parameters: dict[str, Any]) -> Any:
        self.asked.append(path)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __call__(self, *arguments: str) -> Result:
        return CliRunner(env={"TERM": "dumb", "COLUMNS": "400"}).invoke(cli.app, list(arguments))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def standing(limit: int | None, hard_limit: int | None, *, terms_known: bool = True, element: str = "seats") -> dict[str, Any]:
    """An entitlement as the API answers."""
    return {"elements": [{"element": element, "limit": limit, "hard_limit": hard_limit, "terms_known": terms_known}]}


NO_TERMS = standing(None, None, terms_known=False)
BEFORE = ["terms", "acme", "--element", "seats", "--limit", "8", "--overdraft", "absolute:2", "--at", "2026-01-31T00:00:00Z"]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (UNKNOWN, standing(8, 10), "from 2026-01-31T00:00:00.000Z: in force\n"),
        (NO_TERMS, standing(8, 10), ": in force\n"),
        (standing(8, 8), standing(8, 10), ": in force\n"),
        (standing(8, 10), standing(8, 10), "in force already\n"),
        (standing(12, 12), standing(12, 12), "not in force. In force are limit 12, hard limit 12, by terms that are newer"),
        (standing(8, None), standing(8, None), "not in force. In force are limit 8, hard limit unlimited"),
        (standing(None, None), standing(None, None), "not in force. In force are limit unlimited, hard limit unlimited"),
        (UNKNOWN, NO_TERMS, "is SEATMARK_URL of the same deployment"),
        (UNKNOWN, standing(8, 10, element="render"), "is SEATMARK_URL of the same deployment"),
        (UNKNOWN, ApiFailed("no answer from http://x"), "stored; whether they are in force could not be asked: no answer from"),
    ],
)
def test_terms_say_whether_they_are_in_force(run: Run, before: Any, after: Any, told: str) -> None:
    run.answers = [before, after]
    done = run(*BEFORE)
    assert done.exit_code == 0
    assert told in done.stderr
    assert "acme, seats: limit 8, overdraft absolute:2, from" in done.stderr
    assert "warning" not in done.stderr
    [event] = run.sent
    assert (event["subject"], event["time"]) == ("acme", "2026-01-31T00:00:00.000Z")


def test_the_same_terms_from_the_same_time_are_the_same_event(run: Run) -> None:
    run.answers = [UNKNOWN, standing(8, 10), standing(8, 10), standing(8, 10)]
    run(*BEFORE)
    run(*BEFORE)
    assert run.sent[0] == run.sent[1]


@pytest.mark.parametrize("known", [UNKNOWN, standing(8, 8, element="render")], ids=["entitlement", "element"])
def test_terms_from_now_warn_where_there_are_no_events_yet(run: Run, known: Any) -> None:
    run.answers = [known, standing(8, 8)]
    done = run("terms", "acme", "--element", "seats", "--limit", "8")
    assert "warning: these terms count from now" in done.stderr
    assert "more than 60 minutes older" in done.stderr
    assert "give --at a time before such a log" in done.stderr.lower().replace("\n", " ")
    assert done.exit_code == 0


def test_terms_from_now_do_not_warn_where_there_are_events(run: Run) -> None:
    run.answers = [NO_TERMS, standing(8, 8)]
    assert "warning" not in run("terms", "acme", "--element", "seats", "--limit", "8").stderr


@pytest.mark.parametrize("error", [GroupAuthorizationFailedError("seatmark"), KafkaConnectionError("no broker")])
def test_what_was_sent_is_told_where_nobody_can_say_whether_it_is_stored(
    error: KafkaError, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sends(*_: Any, **__: Any) -> Produced:
        return Produced(3, [], {0: 3})

    async def cannot_ask(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(produce, "produce_lines", sends)
    monkeypatch.setattr(produce, "wait_until_stored", cannot_ask)
    done = CliRunner().invoke(cli.app, ["produce", "-"], input="{}")
    assert isinstance(done.exception, NotStored)
    assert str(done.exception).startswith(
        "the events were sent (3), and the brokers have them; only whether they are stored could not be asked: "
        f"{error}. Asking takes"
    )


@pytest.mark.parametrize("command", [["produce", "-"], ["replay-dead-letters", "--reason", "invalid_data"]])
def test_without_brokers_nothing_is_left_open(command: list[str]) -> None:
    """What is left open says so, after the line that says why it ended."""
    done = subprocess.run(
        [sys.executable, "-m", "seatmark", *command],
        env={**os.environ, "SEATMARK_BROKERS": f"127.0.0.1:{free_ports(1)[0]}"},
        input="", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Unclosed" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("seatmark: the Kafka brokers (SEATMARK_BROKERS")


def test_terms_that_are_not_waited_for_are_not_asked_for(run: Run) -> None:
    run.answers = [standing(1, 1)]
    done = run(*BEFORE, "--no-wait")
    assert done.stderr.endswith(": sent\n")
    assert run.asked == ["/api/v1/entitlements/acme"]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--overdraft", "absolute:1.5", "absolute:N with N whole units, such as absolute:2, or percentage:P, such as "),
        ("--overdraft", "absolute:1.5", "got 'absolute:1.5'"),
        ("--overdraft", "absolute:", "absolute:N with N whole units"),
        ("--overdraft", "percentage:many", "percentage:P"),
        ("--overdraft", "percentage:nan", "percentage:P"),
        ("--overdraft", "percentage:1.23456", "at most 4 decimals"),
        ("--overdraft", "unlimited:3", "expected none, unlimited, absolute:N"),
        ("--limit", "many", "expected whole units from 0 to 1,000,000,000,000, such as 8, or unlimited"),
        ("--limit", "-1", "expected whole units"),
        ("--limit", "1.5", "got '1.5'"),
        ("--limit", "9" * 5000, "expected whole units"),
        ("--at", "yesterday", "RFC 3339"),
    ],
)
def test_a_wrong_option_of_terms_is_told_with_what_was_expected(run: Run, option: str, value: str, told: str) -> None:
    options = {"--element": "seats", "--limit": "8"} | {option: value}
    done = run("terms", "acme", *(f"{name}={text}" for name, text in options.items()))
    assert done.exit_code == 2
    assert told in done.stderr
    assert not run.sent


FIRST = '20:00:00 (lmgrd) TIMESTAMP 3/7/2021\n21:00:00 (MLM) OUT: "f" ann@h1\n21:00:01 (MLM) OUT: cut\n'
SECOND = '9:00:00 (MLM) IN: "f" ann@h1\n9:00:01 (MLM) IN: cut\n10:00:00 (lmgrd) TIMESTAMP 3/8/2021\n'


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("lmgrd.log.1").write_text(FIRST)
    Path("lmgrd.log").write_text(SECOND)
    Path("undated.log").write_text('8:00:00 (MLM) OUT: "f" bob@h2\n')
    return tmp_path


def test_files_of_a_log_are_read_oldest_first_and_lines_are_told_by_file(run: Run, logs: Path) -> None:
    done = run("import", "flexnet", "lmgrd.log", "lmgrd.log.1", "--entitlement", "acme")
    assert [(event["type"], event["time"]) for event in run.sent] == [
        ("feature.checked_out", "2021-03-07T21:00:00.000Z"),
        ("feature.returned", "2021-03-08T09:00:00.000Z"),
    ]
    assert "read in the order of their first lines: lmgrd.log.1, lmgrd.log\n" in done.stderr
    assert "lmgrd.log.1 line 3 looks like a checkout" in done.stderr
    assert "lmgrd.log line 2 looks like a checkout" in done.stderr
    assert "read 6 lines, events from 2021-03-07T21:00:00.000Z to 2021-03-08T09:00:00.000Z" in done.stderr
    assert "units out" not in done.stderr
    # Lines that could not be read.
    assert done.exit_code == 1

    run.sent.clear()
    in_order = run("import", "flexnet", "lmgrd.log.1", "lmgrd.log", "--entitlement", "acme")
    assert "in the order" not in in_order.stderr
    assert len(run.sent) == 2


def test_with_a_key_seats_have_pseudonyms_that_are_always_the_same(
    run: Run, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("import", "flexnet", "lmgrd.log", "lmgrd.log.1", "--entitlement", "acme")
    plain = list(run.sent)
    monkeypatch.setenv("SEATMARK_SEAT_KEY", "geheim-geheim-geheim")
    run("import", "flexnet", "lmgrd.log", "lmgrd.log.1", "--entitlement", "acme")
    keyed = run.sent[len(plain) :]
    out, given_back = [event["data"].pop("seat_id") for event in keyed]
    # echo -n ann@h1 | openssl dgst -sha256 -hmac geheim-geheim-geheim
    assert out == given_back == "seat-db09d0e11d57b32f88e9b0ce"
    assert [event["data"].pop("seat_id") for event in plain] == ["ann@h1", "ann@h1"]
    # All else is the same: the user's name is there for as long as SEATMARK_PERSONAL_RETENTION says.
    assert keyed == plain


def test_a_file_without_a_date_is_read_where_it_was_given(run: Run, logs: Path) -> None:
    done = run("import", "flexnet", "lmgrd.log.1", "undated.log", "lmgrd.log", "--entitlement", "acme")
    assert "no line of undated.log says a date: the files are read in the order in which they were given" in done.stderr
    assert [event["time"][:13] for event in run.sent] == ["2021-03-07T21", "2021-03-08T08", "2021-03-08T09"]


def test_files_that_are_not_one_log_are_refused_before_anything_is_sent(run: Run, logs: Path) -> None:
    Path("copy.log").write_text(FIRST + SECOND)
    overlapping = run("import", "flexnet", "lmgrd.log.1", "copy.log", "--entitlement", "acme")
    assert isinstance(overlapping.exception, FilesOverlap)
    twice = run("import", "flexnet", "lmgrd.log", "lmgrd.log", "--entitlement", "acme")
    assert (twice.exit_code, "lmgrd.log is given twice" in twice.stderr) == (2, True)
    missing = run("import", "flexnet", "lmgrd.log", "other.log", "--entitlement", "acme")
    assert (missing.exit_code, "there is no file other.log" in missing.stderr) == (2, True)
    assert not run.sent


def test_a_reason_that_is_none_is_told(run: Run) -> None:
    done = run("replay-dead-letters", "--reason", "too_old")
    assert done.exit_code == 2
    assert "expected one of not_json, not_cloudevent" in done.stderr
    assert "too_old" in done.stderr


def test_what_became_of_the_letters_is_told_with_the_most_frequent_problems(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def replay(reasons: list[str], **options: Any) -> Replayed:
        assert (reasons, options["since"], options["limit"], options["dry_run"]) == (["unknown_type"], 1000, 3, True)
        # What a record says is shown as it is, whatever signs are in it.
        refused = Counter({("unknown_type", "type: got '[/x]'"): 12})
        refused.update({("unknown_type", f"type: got {number}"): 1 for number in range(20)})
        return Replayed(valid=3, repeats=2, refused=refused, complete=False)

    monkeypatch.setattr(deadletters, "replay", replay)
    options = ["--reason", "unknown_type", "--since", "1970-01-01T00:00:01Z", "--limit", "3", "--dry-run"]
    done = run("replay-dead-letters", *options)
    assert done.exit_code == 1
    assert "still no valid events: 32; the most frequent problems, and 1 are not shown" in done.stderr
    assert "      12 unknown_type: type: got '[/x]'" in done.stderr
    assert done.stderr.endswith(
        "would send 3 of the letters with unknown_type; 32 are still no valid events; left out 2 that have the bytes of one of "
        "those; there are more: --limit is 3\n"
    )
