"""The FlexNet reader: hand-written logs with exact events, and generated sessions read back."""

import json
from collections import Counter
from datetime import datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, uuid5
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.flexnet import FilesOverlap, FlexNetReader, LogFile, NoDateError, NotALog, Summary, look_at, oldest_first
from processors.domain.days import Calendar
from processors.domain.ledger import Ledger
from schemas.events import decode

UTC = ZoneInfo("UTC")
PARIS = ZoneInfo("Europe/Paris")

Event = dict[str, Any]


def read(log: str | list[str], timezone: ZoneInfo = UTC) -> tuple[list[Event], Summary]:
    lines = log.splitlines(keepends=True) if isinstance(log, str) else log
    reader = FlexNetReader(entitlement="ent-7", timezone=timezone)
    return list(reader.events(lines)), reader.summary


def short(event: Event) -> tuple[str, str, str, str, int]:
    data = event["data"]
    kind = event["type"].removeprefix("feature.")
    return event["time"], kind, data["element"], data["seat_id"], data["quantity"]


def shorts(log: str | list[str], timezone: ZoneInfo = UTC) -> list[tuple[str, str, str, str, int]]:
    return [short(event) for event in read(log, timezone)[0]]


def times(log: str | list[str], timezone: ZoneInfo = UTC) -> list[str]:
    return [event["time"].removesuffix(".000Z") for event in read(log, timezone)[0]]


def on(day: str, *lines: str) -> list[str]:
    """A log whose date is known from its first line."""
    return [f"0:00:30 (lmgrd) TIMESTAMP {day}", *lines]


def seats(*lines: str) -> list[tuple[str, str, int]]:
    """(kind, seat, quantity) of lines of one daemon."""
    stamped = [f"9:{minute:02}:00 (vendord) {line}" for minute, line in enumerate(lines)]
    return [(kind, seat, quantity) for _, kind, _, seat, quantity in shorts(on("3/8/2021", *stamped))]


def event_id(*key: str | int) -> str:
    return str(uuid5(NAMESPACE_URL, "seatmark:" + json.dumps(["flexnet", *key], separators=(",", ":"))))


LINUX = """\
 8:00:01 (lmgrd) -----------------------------------------------
 8:00:01 (lmgrd)   Please Note:
 8:00:01 (lmgrd)   In order to capture accurate usage data, please enable report logging.
 8:00:01 (lmgrd)
 8:00:01 (lmgrd) FlexNet Licensing (v11.16.2.0 build 242075 x64_lsb) started on lic1 (linux) (11/24/2020)
 8:00:02 (lmgrd) Started MLM (internet tcp_port 35481 pid 2214)
 8:00:03 (MLM) FlexNet Licensing version v11.16.2.0 build 242075 x64_lsb
 8:00:03 (MLM) Server started on lic1 for:\tMATLAB
 8:00:03 (MLM) SIMULINK
 8:01:10 (MLM) OUT: "MATLAB" ann@wks-12
 8:01:11 (ansyslmd) OUT: "hfsshpc" bob@nyx7005.example.org  (20 licenses)
 8:02:00 (MLM) DENIED: "SIMULINK" carl@wks-7:0.0  (Licensed number of users reached. (-4,342:10054 ""))
 8:02:30 (MLM) UNSUPPORTED: "fixed" (PORT_AT_HOST_PLUS   ) carl@wks-7  (No such feature exists. (-5,346))
 8:03:00 (MLM) QUEUED: "SIMULINK" carl@wks-7  (2 licenses)
 8:03:30 (MLM) DEQUEUED: "SIMULINK" carl@wks-7
 8:04:00 (MLM) (@MLM-SLOG@) === Memory Usage Info ===
 8:05:00 (ansyslmd) IN: "hfsshpc" bob@nyx7005.example.org  (20 licenses) (SHUTDOWN)
14:00:01 (lmgrd) TIMESTAMP 11/24/2020
"""


def test_events_are_cloudevents_with_what_the_line_says() -> None:
    reader = FlexNetReader(entitlement="ent-7", timezone=PARIS, customer="cus-9", product="cad")
    events = list(reader.events(LINUX.splitlines()))
    text = 'OUT: "MATLAB" ann@wks-12'
    common = {"customer": "cus-9", "product": "cad"}
    assert events[0] == {
        "specversion": "1.0",
        "id": event_id("2020-11-24T08:01:10", "MLM", text, 0),
        "source": "/flexnet/MLM",
        "type": "feature.checked_out",
        "subject": "ent-7",
        "time": "2020-11-24T07:01:10.000Z",
        "data": {
            "seat_id": "ann@wks-12",
            "element": "MATLAB",
            "quantity": 1,
            "user": "ann",
            "host": "wks-12",
            **common,
        },
    }
    assert [(event["type"], event["source"], event["data"]) for event in events[1:]] == [
        (
            "feature.checked_out",
            "/flexnet/ansyslmd",
            {
                "seat_id": "bob@nyx7005.example.org",
                "element": "hfsshpc",
                "quantity": 20,
                "user": "bob",
                "host": "nyx7005.example.org",
                **common,
            },
        ),
        (
            "feature.denied",
            "/flexnet/MLM",
            {
                "seat_id": "carl@wks-7/0.0",
                "element": "SIMULINK",
                "quantity": 1,
                "user": "carl",
                "host": "wks-7",
                "reason": 'Licensed number of users reached. (-4,342:10054 "")',
                **common,
            },
        ),
        (
            "feature.returned",
            "/flexnet/ansyslmd",
            {
                "seat_id": "bob@nyx7005.example.org",
                "element": "hfsshpc",
                "quantity": 20,
                "user": "bob",
                "host": "nyx7005.example.org",
                "reason": "SHUTDOWN",
                **common,
            },
        ),
    ]


def test_summary_accounts_for_every_line() -> None:
    events, summary = read(LINUX)
    assert summary == Summary(
        lines=18,
        events=Counter({"feature.checked_out": 2, "feature.denied": 1, "feature.returned": 1}),
        features=Counter({"hfsshpc": 2, "MATLAB": 1, "SIMULINK": 1}),
        skipped=Counter(
            {
                "server message": 8,
                "vendor daemon start": 1,
                "UNSUPPORTED": 1,
                "QUEUED": 1,
                "DEQUEUED": 1,
                "SLOG": 1,
                "TIMESTAMP": 1,
            }
        ),
        first="2020-11-24T08:01:10.000Z",
        last="2020-11-24T08:05:00.000Z",
        open_units=Counter({"MATLAB": 1}),
    )
    assert len(events) + sum(summary.skipped.values()) == summary.lines


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('OUT: "f" ann@h1', ("f", "ann", "h1", "ann@h1", 1)),
        ("OUT: TLSTOK-token ann@h1  [DOORS] (3 licenses)", ("TLSTOK-token", "ann", "h1", "ann@h1/DOORS", 3)),
        ('OUT: "solve v2" Ann Lee@H-1  (1 license)', ("solve v2", "Ann Lee", "H-1", "Ann Lee@H-1", 1)),
        ("OUT: solve Ann Lee@H-1", ("solve", "Ann Lee", "H-1", "Ann Lee@H-1", 1)),
        (r'OUT: "f" CORP\ann.lee@h1  (2 licenses)', ("f", r"CORP\ann.lee", "h1", r"CORP\ann.lee@h1", 2)),
        (
            'OUT: "f" ann@corp.com@h1.corp.com ',
            ("f", "ann@corp.com", "h1.corp.com", "ann@corp.com@h1.corp.com", 1),
        ),
        ('OUT: "f" ann@h1:0.0  (2 licenses)', ("f", "ann", "h1", "ann@h1/0.0", 2)),
        ('OUT: "f" ann@h1 /dev/pts/4 (2 licenses)', ("f", "ann", "h1", "ann@h1//dev/pts/4", 2)),
        ('OUT: "f" ann@h1 :1', ("f", "ann", "h1", "ann@h1/1", 1)),
        ('OUT: "f" ann@h1  [32206] ', ("f", "ann", "h1", "ann@h1/32206", 1)),
        ('OUT: "f" ann@h1  (2 licenses) (handle 4a1)', ("f", "ann", "h1", "ann@h1/4a1", 2)),
        ('OUT: "f" ann@fe80::1', ("f", "ann", "fe80::1", "ann@fe80::1", 1)),
        ('OUT: "f" (PORT_AT_HOST_PLUS   ) ann@h1', ("f", "ann", "h1", "ann@h1", 1)),
        ('OUT: "f" Jörg@büro-3', ("f", "Jörg", "büro-3", "Jörg@büro-3", 1)),
        ('OUT: "f" ann@h1 ^^^ 1.0 ann 10.0.0.9 29865 0x12 1 5 p 11 19 ^^^', ("f", "ann", "h1", "ann@h1", 1)),
        ('OUT: "f" @h1 (4) ^^^ 1.0 ann 10.0.0.9 29865 0x12 1 5 p 11 19 ^^^', ("f", None, "h1", "@h1", 4)),
    ],
)
def test_checkout_line(line: str, expected: tuple[str, str | None, str, str, int]) -> None:
    [event], summary = read(on("3/8/2021", f"9:00:00 (vendord) {line}"))
    data = event["data"]
    assert (data["element"], data.get("user"), data["host"], data["seat_id"], data["quantity"]) == expected
    assert "reason" not in data
    assert not summary.unreadable


@pytest.mark.parametrize(
    ("line", "quantity", "reason"),
    [
        ('IN: "f" ann@h1', 1, None),
        ('IN: "f" ann@h1  (INACTIVE)', 1, "INACTIVE"),
        ('IN: "f" ann@h1  (3 licenses) (USER_EXITED)', 3, "USER_EXITED"),
        ('IN: "f" ann@h1:0 (3 licenses) (CLEANUP)', 3, "CLEANUP"),
        ('DENIED: "f" ann@h1', 1, None),
        ('DENIED: "f" ann@h1 (Feature has expired (-10,32))', 1, "Feature has expired (-10,32)"),
        (
            'DENIED: "abaqus" ann@h1  (25 licenses) (Users are queued for this feature. (-24,332))',
            25,
            "Users are queued for this feature. (-24,332)",
        ),
        ('DENIED: "f" ann@h1  (Server ask@lic1 said no (-18,32', 1, "Server ask@lic1 said no (-18,32"),
    ],
)
def test_quantity_and_reason(line: str, quantity: int, reason: str | None) -> None:
    [event], _ = read(on("3/8/2021", f"9:00:00 (vendord) {line}"))
    assert (event["data"]["quantity"], event["data"].get("reason")) == (quantity, reason)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("DENIED: 2 solver to bob@w", ("solver", "bob", "w", "bob@w", 2, None)),
        ('DENIED: 12 "solver v2" to Ann Lee@w:0.0', ("solver v2", "Ann Lee", "w", "Ann Lee@w/0.0", 12, None)),
        ("DENIED: 3 solver to bob", ("solver", "bob", None, "bob", 3, None)),
        (
            "DENIED: 2 solver to bob@w (Licensed number of users already reached. (-4,342))",
            ("solver", "bob", "w", "bob@w", 2, "Licensed number of users already reached. (-4,342)"),
        ),
        # A feature may be named by a number.
        ("DENIED: 2 bob@w", ("2", "bob", "w", "bob@w", 1, None)),
    ],
)
def test_a_denial_may_begin_with_the_count(line: str, expected: tuple[str, str, str | None, str, int, str | None]) -> None:
    [event], summary = read(on("3/8/2021", f"9:00:00 (vendord) {line}"))
    data = event["data"]
    assert (
        data["element"], data["user"], data.get("host"), data["seat_id"], data["quantity"], data.get("reason")
    ) == expected  # fmt: skip
    assert not summary.unreadable


def test_with_a_count_the_user_may_be_without_a_host() -> None:
    assert seats('OUT: "f" bob (3 licenses)', 'IN: "f" bob (1 licenses) (INACTIVE)', 'IN: "f" bob (2 licenses)') == [
        ("checked_out", "bob", 3),
        ("returned", "bob", 1),
        ("returned", "bob", 2),
    ]


def test_requests_that_change_no_units_are_counted_by_kind() -> None:
    events, summary = read(
        on(
            "3/8/2021",
            '9:00:00 (vendord) QUEUED: "f" bob@w  (2 licenses)',
            '9:00:01 (vendord) DEQUEUED: "f" bob@w  (2 licenses)',
            '9:00:02 (vendord) UNSUPPORTED: "g" (PORT_AT_HOST_PLUS   ) bob@w  (No such feature exists. (-5,346))',
            '9:00:03 (vendord) UPGRADE: "f" bob@w',
            "9:00:04 (vendord) EXPIRED: h",
        )
    )
    assert not events
    assert summary.skipped == Counter(TIMESTAMP=1, QUEUED=1, DEQUEUED=1, UNSUPPORTED=1, UPGRADE=1, EXPIRED=1)


@pytest.mark.parametrize(
    "line",
    [
        "9:00:00 (vendord) OUT: solver by bob@w (3 licenses)",
        "9:00:00 (vendord) IN server died: solver by bob@w (3 licenses) (used: 0:01:12:00)",
        "9:00:00 (vendord) DENIED: solver to bob@w",
        '9:00:00.123 (vendord) OUT: "solver" bob@w',
        '2021-03-08T09:00:00.123+0100 (vendord) OUT: "solver" bob@w',
    ],
)
def test_what_no_log_showed_is_told_and_not_guessed(line: str) -> None:
    events, summary = read(on("3/8/2021", line))
    assert not events
    [(number, text)] = summary.unreadable
    assert number == 2
    assert text in line


def test_check_in_finds_the_hold_of_its_checkout() -> None:
    assert seats('OUT: "f" ann@h1:0', 'OUT: "f" ann@h1:1', 'IN: "f" ann@h1:1') == [
        ("checked_out", "ann@h1/0", 1),
        ("checked_out", "ann@h1/1", 1),
        ("returned", "ann@h1/1", 1),
    ]


def test_check_in_without_display_gives_back_what_was_taken_with_one() -> None:
    assert seats(
        'OUT: "f" ann@h1:0  (2 licenses)',
        'OUT: "f" ann@h1:1',
        'OUT: "f" ann@h10:0',
        'IN: "f" ann@h1',
        'IN: "f" ann@h1  (2 licenses)',
    )[3:] == [("returned", "ann@h1/0", 1), ("returned", "ann@h1/0", 1), ("returned", "ann@h1/1", 1)]


def test_parts_of_one_check_in_have_distinct_ids() -> None:
    lines = ['OUT: "f" ann@h1:0', 'OUT: "f" ann@h1:1', 'IN: "f" ann@h1  (2 licenses)']
    events, summary = read(on("3/8/2021", *(f"9:00:00 (vendord) {line}" for line in lines)))
    key = ("2021-03-08T09:00:00", "vendord", lines[2], 0)
    assert [event["id"] for event in events[2:]] == [event_id(*key, "ann@h1/0"), event_id(*key, "ann@h1/1")]
    assert not summary.open_units


def test_check_in_with_unknown_display_gives_back_only_what_was_taken_without() -> None:
    assert seats('OUT: "f" ann@h1', 'OUT: "f" ann@h1:1', 'IN: "f" ann@h1:0', 'IN: "f" ann@h1:0')[2:] == [
        ("returned", "ann@h1", 1),
        ("returned", "ann@h1/0", 1),
    ]


def test_check_in_of_what_went_out_before_the_log_began() -> None:
    assert seats('OUT: "f" ann@h1', 'IN: "f" ann@h1  (3 licenses)', 'IN: "g" ann@h1') == [
        ("checked_out", "ann@h1", 1),
        ("returned", "ann@h1", 3),
        ("returned", "ann@h1", 1),
    ]


def test_lines_wrapped_before_their_parentheses_are_joined() -> None:
    events, summary = read(
        on(
            "3/8/2021",
            "14:46:39 (telelogic) DENIED: DOORS ann@h1  [telelogic] ",
            "(Licensed number of users already reached. (-4,342:10054 )) ",
            "14:46:40 (telelogic) OUT: TLSTOK-token ann@h1  [DOORS] ",
            "(3 licenses)",
        )
    )
    assert events[0]["data"]["reason"] == "Licensed number of users already reached. (-4,342:10054 )"
    assert events[1]["data"]["quantity"] == 3
    assert summary.skipped == Counter({"continuation": 2, "TIMESTAMP": 1})


def test_unreadable_checkout_lines_are_reported() -> None:
    bad = [
        '9:00:00 (MLM) OUT: "MATLAB" ann',
        '9:00:00 (MLM) IN: "MATLAB ann@h1',
        "9:00:00 (MLM) DENIED:",
        '9:00:00 (MLM) TCP_NODELAY NOT 9:00:01 (ugs) OUT: "solid" ann@h1',
        ':00:02 (MLM) OUT: "MATLAB" ann@h1',
        '27:00:02 (MLM) OUT: "MATLAB" ann@h1',
    ]
    events, summary = read(on("3/8/2021", *bad, '9:00:03 (MLM) OUT: "MATLAB" ann@h1', "rubbish", ""))
    assert len(events) == 1
    assert summary.skipped == Counter({"unreadable checkout line": 6, "TIMESTAMP": 1, "no time stamp": 1, "blank": 1})
    assert sorted(summary.unreadable) == [
        (2, 'OUT: "MATLAB" ann'),
        (3, 'IN: "MATLAB ann@h1'),
        (4, "DENIED:"),
        (5, 'TCP_NODELAY NOT 9:00:01 (ugs) OUT: "solid" ann@h1'),
        (6, bad[4]),
        (7, bad[5]),
    ]


def test_at_most_twenty_unreadable_lines_are_kept() -> None:
    _, summary = read(on("3/8/2021", *['9:00:00 (MLM) OUT: "MATLAB" ann'] * 30))
    assert summary.skipped["unreadable checkout line"] == 30
    assert len(summary.unreadable) == 20


def test_checkouts_of_no_licenses_are_counted_and_make_no_event() -> None:
    events, summary = read(on("3/8/2021", '9:00:00 (MLM) OUT: "f" ann@h1  (0 licenses)'))
    assert not events
    assert summary.skipped["0 licenses"] == 1


# The day


def test_the_clock_wraps_at_midnight() -> None:
    assert times(
        on(
            "12/31/2021",
            '23:59:59 (MLM) OUT: "f" ann@h1',
            '0:00:00 (MLM) IN: "f" ann@h1',
            '13:00:00 (MLM) OUT: "f" ann@h1',
            '0:59:59 (MLM) IN: "f" ann@h1',
        )
    ) == ["2021-12-31T23:59:59", "2022-01-01T00:00:00", "2022-01-01T13:00:00", "2022-01-02T00:59:59"]


def test_a_timestamp_after_midnight_is_not_counted_twice() -> None:
    assert times(
        on(
            "3/8/2021",
            '23:50:00 (MLM) OUT: "f" ann@h1',
            "0:12:34 (lmgrd) TIMESTAMP 3/9/2021",
            '0:13:00 (MLM) IN: "f" ann@h1',
            "23:59:30 (lmgrd) TIMESTAMP 3/9/2021",
            '0:00:10 (MLM) OUT: "f" ann@h1',
            "0:00:11 (lmgrd) TIMESTAMP 3/10/2021",
            '0:00:12 (MLM) IN: "f" ann@h1',
        )
    ) == ["2021-03-08T23:50:00", "2021-03-09T00:13:00", "2021-03-10T00:00:10", "2021-03-10T00:00:12"]


@pytest.mark.parametrize(
    "timestamp",
    ["23:59:59 (lmgrd) TIMESTAMP 3/9/2021", "0:00:00 (lmgrd) TIMESTAMP 3/8/2021"],
    ids=["date printed after midnight", "date taken before midnight"],
)
def test_a_timestamp_on_the_stroke_of_midnight_does_not_shift_the_day(timestamp: str) -> None:
    log = on("3/8/2021", '23:59:58 (MLM) OUT: "f" ann@h1', timestamp, '0:00:05 (MLM) IN: "f" ann@h1')
    assert times(log) == ["2021-03-08T23:59:58", "2021-03-09T00:00:05"]


@pytest.mark.parametrize(
    "dated",
    [
        "10:00:00 (lmgrd) TIMESTAMP 3/12/2021",
        "10:00:00 (MLM) TIMESTAMP 03/12/2021 ",
        "10:00:00 (lmgrd) FlexNet Licensing (v11.12.0.0 build 1 x64_n6) started on LIC1 (IBM PC) (3/12/2021)",
        "10:00:00 (lmgrd) FLEXlm (v9.2) started on lic1 (sun4) (3/12/2021)",
        "10:00:00 (lmgrd) Server's System Date and Time: Fri Mar 12 2021 10:00:00 Romance Standard Time",
        "10:00:00 (lmgrd) (@lmgrd-SLOG@) Start-Date: Fri Mar 12 2021 10:00:00 CET",
        "10:00:00 (MLM) (@MLM-SLOG@) Time: Fri Mar 12 2021 10:00:00 CET",
        "2021-03-12T10:00:00+0100 (lmgrd) lmgrd tcp-port 27000",
    ],
)
def test_lines_that_say_the_date(dated: str) -> None:
    """After days in which the server stood still, and as the first date of a file."""
    checkout = '10:00:05 (MLM) OUT: "f" ann@h1'
    assert times(on("3/8/2021", dated, checkout)) == ["2021-03-12T10:00:05"]
    assert times([checkout, dated]) == ["2021-03-12T10:00:05"]


@pytest.mark.parametrize("wrong", ["13/45/2021", "1/1/0001", "12/31/9999", "8/3/21"])
def test_a_wrong_date_says_nothing(wrong: str) -> None:
    log = on("3/8/2021", f"9:00:00 (lmgrd) TIMESTAMP {wrong}", '10:00:05 (MLM) OUT: "f" ann@h1')
    assert times(log) == ["2021-03-08T10:00:05"]


def test_small_jumps_back_are_not_midnight() -> None:
    assert times(
        on(
            "3/8/2021",
            '10:00:05 (MLM) OUT: "f" ann@h1',
            '10:00:03 (ugs) OUT: "g" ann@h1',
            '9:00:04 (MLM) OUT: "f" bob@h1',
            '21:00:04 (MLM) OUT: "f" bob@h2',
            '9:00:04 (MLM) OUT: "f" bob@h3',
        )
    ) == [f"2021-03-08T{time}" for time in ("10:00:05", "10:00:03", "09:00:04", "21:00:04", "09:00:04")]


def test_a_server_idle_since_just_after_midnight_is_still_on_that_day() -> None:
    assert times(on("3/8/2021", '23:59:59 (MLM) OUT: "f" ann@h1')) == ["2021-03-08T23:59:59"]


def test_a_line_of_before_midnight_logged_after_it_takes_no_other_line_with_it() -> None:
    assert times(
        on(
            "3/8/2021",
            '23:59:58 (MLM) OUT: "f" ann@h1',
            '0:00:01 (ugs) OUT: "g" ann@h1',
            '23:59:59 (MLM) IN: "f" ann@h1',
            '0:00:02 (ugs) IN: "g" ann@h1',
            "23:59:59 (MLM) TIMESTAMP 3/8/2021",
            '0:00:03 (ugs) OUT: "g" ann@h1',
        )
    ) == [
        "2021-03-08T23:59:58",
        "2021-03-09T00:00:01",
        "2021-03-08T23:59:59",
        "2021-03-09T00:00:02",
        "2021-03-09T00:00:03",
    ]


def test_a_rotated_file_is_dated_backwards_from_its_first_date() -> None:
    assert times(
        [
            '22:30:00 (MLM) OUT: "f" ann@h1',
            '0:10:00 (MLM) IN: "f" ann@h1',
            '21:00:00 (MLM) OUT: "f" ann@h1',
            '3:00:00 (MLM) IN: "f" ann@h1',
            "3:30:00 (lmgrd) TIMESTAMP 3/1/2020",
            '4:00:00 (MLM) OUT: "f" ann@h1',
        ]
    ) == [
        "2020-02-28T22:30:00",
        "2020-02-29T00:10:00",
        "2020-02-29T21:00:00",
        "2020-03-01T03:00:00",
        "2020-03-01T04:00:00",
    ]


def test_a_log_without_any_date_is_refused_with_what_was_looked_for() -> None:
    with pytest.raises(NoDateError, match=r"no date in 2 lines.*TIMESTAMP m/d/yyyy.*started on.*Start-Date"):
        read(['9:00:00 (MLM) OUT: "f" ann@h1', '9:30:00 (MLM) IN: "f" ann@h1'])
    with pytest.raises(NoDateError):
        read(["PATH=/usr/bin", "not a licence log"])


@pytest.mark.parametrize("lines", [[], ["\n", "\r\n"]])
def test_an_empty_log_has_no_events(lines: list[str]) -> None:
    assert read(lines)[0] == []


def test_stamps_with_date_and_offset_need_no_time_zone() -> None:
    assert times(
        [
            '2021-03-08T09:00:00+0100 (MLM) OUT: "f" ann@h1',
            '2021-03-10T23:59:59Z (MLM) IN: "f" ann@h1',
            '2021-03-11T09:00:00 (MLM) OUT: "f" ann@h1',
        ],
        PARIS,
    ) == ["2021-03-08T08:00:00", "2021-03-10T23:59:59", "2021-03-11T08:00:00"]


def test_the_autumn_hour_is_told_apart_by_the_clock_being_set_back() -> None:
    assert times(
        on(
            "10/31/2021",
            '1:30:00 (MLM) OUT: "f" ann@h1',
            '2:30:00 (MLM) OUT: "f" ann@h2',
            '2:29:58 (ugs) OUT: "g" ann@h2',
            '2:59:59 (MLM) IN: "f" ann@h2',
            '2:00:00 (MLM) OUT: "f" ann@h2',
            '2:30:00 (MLM) IN: "f" ann@h2',
            '3:00:00 (MLM) IN: "f" ann@h1',
        ),
        PARIS,
    ) == [
        "2021-10-30T23:30:00",
        "2021-10-31T00:30:00",
        "2021-10-31T00:29:58",
        "2021-10-31T00:59:59",
        "2021-10-31T01:00:00",
        "2021-10-31T01:30:00",
        "2021-10-31T02:00:00",
    ]


def test_equal_lines_of_both_autumn_hours_are_two_events() -> None:
    line = '2:30:00 (MLM) OUT: "f" ann@h1'
    events, _ = read(on("10/31/2021", line, '2:59:59 (MLM) IN: "f" ann@h1', '2:01:00 (MLM) IN: "g" b@h', line), PARIS)
    assert [events[0]["time"], events[3]["time"]] == ["2021-10-31T00:30:00.000Z", "2021-10-31T01:30:00.000Z"]
    assert events[0]["id"] != events[3]["id"]


def test_spring_times_that_do_not_exist_count_as_before_the_change() -> None:
    log = on(
        "3/28/2021",
        '1:59:59 (MLM) OUT: "f" ann@h1',
        '2:30:00 (MLM) OUT: "f" ann@h2',
        '3:30:00 (MLM) OUT: "f" ann@h3',
    )
    assert times(log, PARIS) == ["2021-03-28T00:59:59", "2021-03-28T01:30:00", "2021-03-28T01:30:00"]
    set_back = on("3/28/2021", "2:50:00 (MLM) hm", '2:30:00 (MLM) OUT: "f" ann@h2')
    assert times(set_back, PARIS) == ["2021-03-28T01:30:00"]


# Text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ""])
def test_line_ends_and_byte_order_mark_do_not_matter(end: str) -> None:
    plain = LINUX.splitlines()
    assert read([line + end for line in ["\ufeff" + plain[0], *plain[1:]]]) == read(plain)
    joined = [line + end for line in [*plain, "\ufeff" + plain[0], *plain[1:]]]
    assert read(joined)[1].lines == 2 * len(plain)


def test_undecodable_bytes_give_events_that_can_be_sent() -> None:
    raw = b'0:00:30 (lmgrd) TIMESTAMP 3/8/2021\n9:00:00 (MLM) OUT: "f" J\xf6rg@h1\n'
    for errors in ("replace", "surrogateescape"):
        [event], _ = read(raw.decode("utf-8", errors))
        assert event["data"]["user"].startswith("J\ufffd")
        assert json.dumps(event, ensure_ascii=False).encode()


# Identity


def test_equal_lines_of_one_second_have_distinct_ids() -> None:
    line = '9:00:05 (MLM) OUT: "f" ann@h1'
    between = '9:00:04 (ugs) OUT: "g" ann@h1'
    events, summary = read(on("3/8/2021", line, line, between, line))
    assert [events[i]["id"] for i in (0, 1, 3)] == [
        event_id("2021-03-08T09:00:05", "MLM", 'OUT: "f" ann@h1', n) for n in range(3)
    ]
    assert summary.open_units["f"] == 3


def test_reading_twice_and_overlapping_files_give_equal_ids() -> None:
    lines = on("3/8/2021") + [f'{h}:00:00 (MLM) {k}: "f" ann@h1' for h in range(1, 24) for k in ("OUT", "IN")]
    whole = read(lines)[0]
    assert read(lines)[0] == whole
    tail = read([*lines[20:], "23:30:00 (lmgrd) TIMESTAMP 3/8/2021"])[0]
    assert tail == whole[19:]


def test_the_process_number_of_a_daemon_is_not_part_of_its_source() -> None:
    [event], _ = read(on("3/8/2021", '9:00:00 (demo[24341]) OUT: "f1" ann@h1'))
    assert event["source"] == "/flexnet/demo"


# Rotated files

FIRST = """\
20:00:00 (lmgrd) TIMESTAMP 3/7/2021
21:00:00 (MLM) OUT: "f" ann@h1:0
21:00:00 (MLM) OUT: "f" ann@h1:0
22:00:00 (MLM) OUT: "f" bob@h2
22:00:00 (ugs) OUT: "g" carl@h3  (4 licenses)
""".splitlines(keepends=True)
SECOND = """\
 0:30:00 (MLM) IN: "f" bob@h2
 1:00:00 (MLM) IN: "f" ann@h1  (2 licenses)
 2:00:00 (lmgrd) TIMESTAMP 3/8/2021
 3:00:00 (ugs) Server started on lic1 for: g
 4:00:00 (MLM) OUT: "f" bob@h2
""".splitlines(keepends=True)


def looked_at(**files: list[str]) -> list[LogFile]:
    return [look_at(name, lines) for name, lines in files.items()]


def names(files: list[LogFile]) -> list[str]:
    return [file.name for file in files]


def exact_levels(arrivals: list[Event]) -> dict[str, int]:
    """The level of each element by the exact fold: each event once, the first arrival of an id counts, in order of time."""
    first: dict[tuple[str, str], Event] = {}
    for event in arrivals:
        first.setdefault((event["source"], event["id"]), event)
    ledger = Ledger(Calendar("UTC"), 3_600_000)
    levels: dict[str, int] = {}
    for position, event in enumerate(sorted(first.values(), key=lambda event: event["time"])):
        for outcome in ledger.apply(decode(json.dumps(event).encode(), key="any", appended_at=None), position):
            levels[outcome.element] = outcome.level
    return levels


def test_files_of_a_rotated_log_are_read_as_one() -> None:
    events, summary = read(FIRST + SECOND)
    assert [short(event) for event in events[4:]] == [
        ("2021-03-08T00:30:00.000Z", "returned", "f", "bob@h2", 1),
        # The check-in does not say the display: it gives back what went out with one, in the file before.
        ("2021-03-08T01:00:00.000Z", "returned", "f", "ann@h1/0", 2),
        ("2021-03-08T03:00:00.000Z", "returned", "g", "carl@h3", 4),
        ("2021-03-08T04:00:00.000Z", "checked_out", "f", "bob@h2", 1),
    ]
    assert summary.open_units == Counter({"f": 1})


def test_a_file_alone_has_the_ids_of_the_whole_log() -> None:
    whole = {event["id"]: event for event in read(FIRST + SECOND)[0]}
    assert all(whole[event["id"]] == event for event in read(FIRST)[0])
    alone = read(SECOND)[0]
    assert [short(event)[1:] for event in alone if event["id"] not in whole] == [("returned", "f", "ann@h1", 2)]
    assert all(whole[event["id"]] == event for event in alone if event["id"] in whole)


@pytest.mark.parametrize("before", [FIRST, SECOND, FIRST + SECOND], ids=["the first", "the second", "both"])
def test_files_imported_alone_and_then_together_leave_nothing_open_and_nothing_double(before: list[str]) -> None:
    assert exact_levels(read(before)[0] + read(FIRST + SECOND)[0]) == {"f": 1, "g": 0}


def test_files_are_put_in_the_order_in_which_they_were_written() -> None:
    third = ["9:00:00 (lmgrd) TIMESTAMP 3/8/2021", '9:00:01 (MLM) IN: "f" bob@h2']
    assert names(oldest_first(looked_at(c=third, a=FIRST, b=SECOND))) == ["a", "b", "c"]
    # Its lines before the date are dated back from it, so it begins on the day before.
    [file] = looked_at(b=["23:50:00 (MLM) hm", *SECOND])
    assert (file.lines, file.times) == (6, (datetime(2021, 3, 7, 23, 50), datetime(2021, 3, 8, 4)))


def test_where_a_file_says_no_date_all_are_read_as_given() -> None:
    undated = ['9:00:00 (MLM) OUT: "f" ann@h1']
    files = looked_at(a=FIRST, u=undated, b=["9:00:00 (lmgrd) TIMESTAMP 3/9/2021"])
    assert names(oldest_first(files)) == ["a", "u", "b"]
    with pytest.raises(FilesOverlap, match="oldest first"):
        oldest_first(files[::-1])
    # An empty one has no place, and takes none from the others.
    assert names(oldest_first(looked_at(b=SECOND, empty=[], a=FIRST)))[-2:] == ["a", "b"]


def test_a_file_that_is_no_log_is_refused() -> None:
    with pytest.raises(NotALog, match=r"lmgrd.log.2.gz has no line such as"):
        look_at("lmgrd.log.2.gz", ["\x1f\ufffd\x08 ...\n", "\n"])


def test_files_that_overlap_are_refused() -> None:
    with pytest.raises(FilesOverlap, match=r"b begins at 2021-03-07 21:00:00, before a ends at 2021-03-07 22:00:00"):
        oldest_first(looked_at(a=FIRST, b=FIRST[1:] + SECOND))
    with pytest.raises(FilesOverlap):
        oldest_first(looked_at(a=FIRST, b=FIRST))
    # Daemons log a few seconds out of order: that is no overlap.
    late = ["21:59:58 (ugs) TIMESTAMP 3/7/2021"]
    assert names(oldest_first(looked_at(a=FIRST, b=late))) == ["a", "b"]


@given(cut=st.integers(0, len(LINUX.splitlines())), log=st.sampled_from([LINUX, "".join(FIRST + SECOND)]))
def test_wherever_a_log_is_cut_its_files_read_as_one(cut: int, log: str) -> None:
    lines = log.splitlines(keepends=True)
    files = {"older": lines[:cut], "newer": lines[cut:]}
    order = names(oldest_first(looked_at(**files)))
    assert read([line for name in order for line in files[name]]) == read(lines)


# Restart

RESTART = """\
 8:00:00 (lmgrd) TIMESTAMP 3/8/2021
 8:01:00 (MLM) OUT: "MATLAB" ann@h1
 8:02:00 (MLM) OUT: "MATLAB" ann@h1
 8:03:00 (MLM) OUT: "SIMULINK" bob@h2:0  (2 licenses)
 8:04:00 (MLM) OUT: "SIMULINK" carl@h3
 8:05:00 (MLM) IN: "SIMULINK" carl@h3
 8:06:00 (ugs) OUT: "solid" ann@h1
 9:00:00 (lmgrd) MLM exited with status 0 signal = 17
 9:00:01 (lmgrd) FlexNet Licensing (v11.16.2 build 1 x64_lsb) started on lic1 (linux) (3/8/2021)
 9:00:02 (MLM) FlexNet Licensing version v11.16.2.0 build 242075 x64_lsb
 9:00:03 (MLM) Server started on lic1 for:\tMATLAB
 9:00:03 (MLM) FlexNet Licensing (v11.16.2 build 1 x64_lsb) started on lic1 (linux) (3/8/2021)
 9:00:20 (MLM) OUT: "MATLAB" ann@h1
"""


def test_units_out_when_a_vendor_daemon_starts_again_are_returned() -> None:
    events, summary = read(RESTART)
    assert [short(event) for event in events[6:]] == [
        ("2021-03-08T09:00:03.000Z", "returned", "MATLAB", "ann@h1", 2),
        ("2021-03-08T09:00:03.000Z", "returned", "SIMULINK", "bob@h2/0", 2),
        ("2021-03-08T09:00:20.000Z", "checked_out", "MATLAB", "ann@h1", 1),
    ]
    assert events[7]["data"] == {
        "seat_id": "bob@h2/0",
        "element": "SIMULINK",
        "quantity": 2,
        "user": "bob",
        "host": "h2",
        "reason": "SERVER_RESTART",
    }
    key = ("2021-03-08T09:00:03", "MLM", "Server started on lic1 for:\tMATLAB", 0)
    assert events[6]["id"] == event_id(*key, "MATLAB", "ann@h1")
    assert summary.skipped["vendor daemon start"] == 2
    assert summary.open_units == Counter({"MATLAB": 1, "solid": 1})


def test_nothing_is_returned_at_a_start_after_an_orderly_shutdown() -> None:
    log = on(
        "3/8/2021",
        '8:01:00 (MLM) OUT: "MATLAB" ann@h1',
        '9:00:00 (MLM) IN: "MATLAB" ann@h1  (SHUTDOWN)',
        "9:00:03 (MLM) Server started on lic1 for:\tMATLAB",
    )
    assert [short(event)[1] for event in read(log)[0]] == ["checked_out", "returned"]


# Generated sessions

SESSION = st.tuples(
    st.sampled_from(["MLM", "adskflex", "ugs"]),
    st.sampled_from(["MATLAB", "64300ACD_F", "solid edge"]),
    st.sampled_from(["ann", "Ann Lee", r"CORP\bob", "c@corp.com", "Jörg"]),
    st.sampled_from(["h1", "h2.example.org", "WKS-7"]),
    st.sampled_from(["", "0.0", "pts/4"]),
    st.integers(1, 40),  # quantity
    st.integers(0, 6 * 86_400),  # start, seconds
    st.integers(0, 3 * 86_400),  # length
)


@settings(max_examples=150, deadline=None)
@given(
    sessions=st.lists(SESSION, max_size=25),
    begin=st.integers(0, 86_399),
    dated=st.booleans(),
    zone=st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York"]),
)
def test_generated_sessions_are_read_back(
    sessions: list[tuple[str, str, str, str, str, int, int, int]], begin: int, dated: bool, zone: str
) -> None:
    """Rendered with a TIMESTAMP every six hours, the first at once or, as in a rotated file, later."""
    origin = datetime(2021, 6, 7) + timedelta(seconds=begin)  # no change of the clock near
    rows: list[tuple[int, str, tuple[str, str, str, int] | None]] = []
    for daemon, feature, user, host, display, quantity, start, length in sessions:
        who = f"{user}@{host}" + (f":{display}" if display else "")
        seat = f"{user}@{host}" + (f"/{display}" if display else "")
        count = f"  ({quantity} licenses)" if quantity > 1 else "  "
        for second, word, kind in ((start, "OUT", "checked_out"), (start + length, "IN", "returned")):
            text = f'({daemon}) {word}: "{feature}" {who}{count}'
            rows.append((second, text, (kind, feature, seat, quantity)))
    for second in range(0 if dated else 7_000, 10 * 86_400, 21_600):
        day = origin + timedelta(seconds=second)
        rows.append((second, f"(lmgrd) TIMESTAMP {day.month}/{day.day}/{day.year}", None))
    rows.sort(key=lambda row: row[0])
    lines, expected = [], []
    for second, text, event in rows:
        at = origin + timedelta(seconds=second)
        lines.append(f"{at.hour:2}:{at:%M:%S} {text}\n")
        if event:
            utc = at.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
            expected.append((f"{utc:%Y-%m-%dT%H:%M:%S}.000Z", *event))
    events, summary = read(lines, ZoneInfo(zone))
    assert [short(event) for event in events] == expected
    assert len({event["id"] for event in events}) == len(events)
    assert not summary.unreadable
    assert not summary.open_units.total()


WORDS = ["9:00:00", "(MLM)", "(demo[7])", "OUT:", "IN:", "DENIED:", '"f"', "@", "ann", "h1:0", "TIMESTAMP"]
SIGNS = [
    "(",
    ")",
    "[",
    "]",
    "^^^",
    "3/8/2021",
    "(2 licenses)",
    "Server started on h",
    "2021-03-08T23:59:59+0530",
]
PIECES = st.sampled_from(WORDS + SIGNS)


@settings(deadline=None)
@given(st.lists(st.lists(PIECES | st.text(max_size=3), max_size=12).map(" ".join), max_size=12))
def test_no_line_stops_the_reading(lines: list[str]) -> None:
    events, summary = read(on("3/8/2021", *lines))
    assert summary.lines == len(lines) + 1
    assert all(event["data"]["quantity"] > 0 for event in events)
    assert json.dumps(events, ensure_ascii=False).encode()
