"""What the ledger says has changed, and the memory of ids: what no number shows, and the next worker needs."""

import pytest

from processors.domain.element import NEVER, SEARCHED_BLOCKS, Element, Head
from processors.domain.holds import BLOCK_IDS, IdBlock, contains, identity_of, ids_of
from processors.domain.ledger import position_of
from schemas.days import DayMark
from tests.processors.domain.test_corrections import correct
from tests.processors.domain.test_ledger import Fold, activated, deactivated, denied, feature_denied, limited, ms, used


@pytest.fixture
def fold() -> Fold:
    return Fold()


def test_an_element_that_changed_twice_is_told_once(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "10:01"))
    changes = fold.take()
    assert [head.element for head in changes.heads] == ["seats"]
    assert {(head.element, seat) for head, seat, _ in changes.holds} == {("seats", "a"), ("seats", "b")}
    assert [row.day for row in changes.days] == ["2026-03-10"]
    assert fold.take().heads == []


def test_holds_and_blocks_of_several_elements_are_told_together(fold: Fold) -> None:
    fold.apply(*(denied("10:00") for _ in range(BLOCK_IDS)), *(feature_denied("10:00") for _ in range(BLOCK_IDS)))
    assert [(head.element, number) for head, number, _ in fold.take().blocks] == [("seats", 0), ("render", 0)]
    fold.apply(activated("a", "10:01"), activated("b", "10:01", subject="ent-2"))
    changes = fold.take()
    assert [(head.entitlement, seat) for head, seat, _ in changes.holds] == [("ent-1", "a"), ("ent-2", "b")]
    assert changes.blocks == []


def test_a_day_that_is_opened_has_a_row_without_an_event(fold: Fold) -> None:
    fold.apply(limited("10:00", 5), activated("a", "10:01"))
    fold.take()
    fold.ledger.open_day("ent-1", "seats", ms("12T00:00"))
    [row] = fold.take().days
    assert (row.day, row.opening, row.closing, row.limit, row.as_of, row.activations, row.position) == (
        "2026-03-12", 1, 1, 5, ms("12T00:00"), 0, -1)  # fmt: skip
    assert fold.take().heads == []


def test_a_day_that_is_opened_is_told_with_what_changed_before(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    fold.ledger.open_day("ent-1", "seats", ms("12T00:00"))
    changes = fold.take()
    assert [row.day for row in changes.days] == ["2026-03-10", "2026-03-12"]
    assert [head.element for head in changes.heads] == ["seats"]


def test_an_element_that_is_opened_alone_is_told(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    fold.take()
    fold.ledger.open_day("ent-1", "seats", ms("12T00:00"))
    assert [head.element for head in fold.take().heads] == ["seats"]
    fold.ledger.open_day("ent-1", "seats", ms("13T00:00"))
    fold.apply(deactivated("a", "13T10:00"))
    assert [head.element for head in fold.take().heads] == ["seats"]


def test_a_late_event_marks_the_day_of_the_clock_for_the_events_to_come(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "08:00"))
    correct(fold, 1)
    fold.take()
    fold.apply(activated("c", "10:30"))
    here = position_of(1, 3)
    assert fold.take().marks == [
        DayMark(entitlement="ent-1", element="seats", first_day="2026-03-10", last_day="2026-03-10", timezone="UTC",
                position=here, since=0)
    ]  # fmt: skip


def test_a_correction_without_effect_stands_at_the_clock_too(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"))
    assert correct(fold, 0).t == ms("10:00")


def test_a_hold_that_a_correction_has_closed_is_forgotten_like_others(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), activated("b", "10:01"))
    correct(fold, 1, {"a": 0}, changed_at="09:59")
    assert list(fold.ledger.elements["ent-1", "seats"].closed) == ["a"]
    fold.apply(activated("c", "11:02"))
    assert "a" not in fold.ledger.elements["ent-1", "seats"].holds


def test_a_corrected_hold_keeps_the_ids_of_its_last_change(fold: Fold) -> None:
    fold.apply(activated("a", "10:00", id="first"), *(denied("10:00") for _ in range(3 * BLOCK_IDS)))
    correct(fold, 3 * BLOCK_IDS, {"a": 2}, changed_at="10:00")
    assert fold.apply(activated("a", "10:00", id="first")) == []


def test_a_hold_corrected_to_another_time_remembers_what_comes_then(fold: Fold) -> None:
    fold.apply(activated("a", "10:00"), denied("10:10"))
    correct(fold, 1, {"a": 0}, changed_at="09:30")
    fold.apply(activated("a", "09:30", id="then"), *(denied("10:10") for _ in range(3 * BLOCK_IDS)))
    assert fold.apply(activated("a", "09:30", id="then")) == []


def test_a_use_within_the_hour_is_remembered_beside_corrections(fold: Fold) -> None:
    fold.apply(used("10:00", id="first"))
    correct(fold, 0, element="count", difference=1)
    assert fold.apply(used("10:00", id="first")) == []
    assert fold.level("count") == 2


# --- Ids


def test_full_blocks_of_ids_are_numbered_as_they_filled_and_told_as_gone_when_they_are_old(fold: Fold) -> None:
    """A recovered worker finds their order in the numbers. The last full block stays; one from two hours ago does not."""
    fold.apply(*(used("10:00") for _ in range(2 * BLOCK_IDS)))
    assert [(number, known is None) for _, number, known in fold.take().blocks] == [(0, False), (1, False)]
    fold.apply(*(used("12:00") for _ in range(BLOCK_IDS)))
    assert sorted((number, known is None) for _, number, known in fold.take().blocks) == [(0, True), (1, True), (2, False)]


def test_a_run_of_ids_is_cut_into_its_ids() -> None:
    assert ids_of(b"11111111" + b"22222222") == [b"11111111", b"22222222"]


def test_an_id_is_found_though_the_end_of_one_and_the_beginning_of_another_look_like_it() -> None:
    assert contains(b"12345678" + b"xxxx1234" + b"5678xxxx", b"12345678")
    assert contains(b"xxxx1234" + b"5678xxxx" + b"12345678", b"12345678")
    assert not contains(b"xxxx1234" + b"5678xxxx", b"12345678")
    # Between two places that only look like it, and right after one.
    assert contains(b"xxxx1234" + b"5678xxxx" + b"12345678" + b"xxxx1234" + b"5678xxxx", b"12345678")
    assert contains(b"x1111111" + b"11111111", b"11111111")


def block(number: int) -> IdBlock:
    return IdBlock(number, 0, b"".join(identity_of("/s", f"{number}.{n}") for n in range(BLOCK_IDS)))


def test_ids_are_known_while_blocks_come_and_go() -> None:
    element = Element(Head("ent-1", "seats"))
    kept: list[int] = []
    for number in range(4 * SEARCHED_BLOCKS):
        element.add_block(block(number))
        kept.append(number)
        if number % 3 == 2:
            for _ in range(2):
                element.drop_oldest_block()
                del kept[0]
        known = [n for n in range(number + 1) if element.knows(identity_of("/s", f"{n}.5"))]
        assert known == kept
    assert element.head.clock == NEVER
