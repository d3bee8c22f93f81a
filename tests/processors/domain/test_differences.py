"""What a correction has to say: leases and terms that differ."""

from processors.domain.corrections import corrections_between
from processors.domain.element import Element, Head
from processors.domain.holds import Hold
from processors.domain.overdraft import Terms
from schemas.corrections import HOLDS_PER_PART
from schemas.events import CorrectedHold, CorrectedTerms, ElementTerms, Overdraft


def element(terms: Terms | None = None, holds: dict[str, Hold] | None = None, *, labels: str = "") -> Element:
    """labels: customer, product, name and lease policy, each of one letter."""
    customer, product, name, policy = labels or (None,) * 4
    head = Head("ent-1", "seats", clock=5, terms=terms, terms_at=7 if terms is not None else -1)
    head.terms_customer, head.terms_product, head.name, head.lease_policy = customer, product, name, policy
    return Element(head, holds or {})


def sent(live: Element, exact: Element) -> CorrectedTerms | None:
    [correction] = corrections_between(live, exact, 9)
    return correction.terms


def test_a_lease_that_differs_is_sent() -> None:
    live, exact = (element(holds={"a": Hold(1, 3, 1, lease_end, b"")}) for lease_end in (None, 50))
    [correction] = corrections_between(live, exact, 9)
    assert correction.holds == (CorrectedHold("a", 1, 50, 3),)
    [correction] = corrections_between(exact, live, 9)
    assert correction.holds == (CorrectedHold("a", 1, None, 3),)


def test_a_closed_hold_has_no_lease() -> None:
    live = element(holds={"a": Hold(1, 3, 1, 50, b"")})
    [correction] = corrections_between(live, element(holds={"a": Hold(0, 4, 2, 50, b"")}), 9)
    assert correction.holds == (CorrectedHold("a", 0, None, 4),)


def test_terms_that_differ_are_sent_whole() -> None:
    exact = element(Terms(5, 7, "pool"), labels="cpnl")
    wanted = CorrectedTerms(ElementTerms(limit=5, kind="pool", overdraft=Overdraft(type="absolute", value=2)), 7, *"cpnl")
    assert sent(element(), exact) == wanted
    assert sent(element(Terms(5, 7, "pool"), labels="cpnx"), exact) == wanted
    assert sent(element(Terms(5, 6, "pool"), labels="cpnl"), exact) == wanted


def test_an_overdraft_without_end_is_sent_as_one() -> None:
    assert sent(element(), element(Terms(5, None))) == CorrectedTerms(
        ElementTerms(limit=5, overdraft=Overdraft(type="unlimited")), 7, None, None, None, None
    )


def test_what_is_not_limited_is_sent_without_an_overdraft() -> None:
    assert sent(element(Terms(5, 5)), element(Terms(None, None))) == CorrectedTerms(
        ElementTerms(limit=None, overdraft=None), 7, None, None, None, None
    )


def test_equal_terms_are_not_sent() -> None:
    assert sent(element(Terms(5, 7, "pool"), labels="cpnl"), element(Terms(5, 7, "pool"), labels="cpnl")) is None
    assert sent(element(), element()) is None


def test_there_are_no_terms_to_send_where_there_are_none() -> None:
    assert sent(element(Terms(5, 7)), element()) is None


def test_terms_are_in_the_first_part_only() -> None:
    holds = {f"s{number}": Hold(1, 3, 1, None, b"") for number in range(2 * HOLDS_PER_PART)}
    first, second = corrections_between(element(), element(Terms(5, 5), holds), 9)
    assert first.terms is not None
    assert second.terms is None
