"""Corrections: what the exact fold found different in the live state, put right while traffic goes on.

A correction was computed at a position of the log, its `basis`. What an event has touched after that it leaves alone: it
may say something that is no longer true. So a correction never makes a right level wrong, and another one follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from processors.domain.element import NEVER, Element
from processors.domain.holds import Hold
from processors.domain.overdraft import Terms, terms_of
from schemas.corrections import HOLDS_PER_PART
from schemas.events import CorrectedHold, CorrectedTerms, Correction, ElementTerms, Overdraft


@dataclass
class Corrected:
    """What a correction did. changed: something. skipped: something was touched since, and left alone."""

    changed: bool = False
    skipped: bool = False

    @property
    def clean(self) -> bool:
        """Nothing was different."""
        return not self.changed and not self.skipped


def correct(element: Element, correction: Correction, position: int) -> Corrected:
    """Put holds, total and terms right, and the level with them.

    position: where the correction stands in the log.
    """
    head, basis = element.head, correction.basis
    done = Corrected()
    if head.clock == NEVER or (basis < head.correctable_from and basis != head.correction_basis):
        # It was computed before something that it cannot know of: the next one will.
        done.skipped = True
        return done
    for wanted in correction.holds:
        _correct_hold(element, wanted, basis, position, done)
    if correction.difference:
        # Uses since then are no hindrance: they have added as much to the exact total.
        if max(head.counter_position, head.late_position) > basis:
            done.skipped = True
        else:
            total = max(0, head.total + correction.difference)
            head.level += total - head.total
            head.total = total
            head.counter_position = position
            done.changed = True
    if correction.terms is not None:
        _correct_terms(element, correction.terms, basis, position, done)
    if done.changed and basis != head.correction_basis:
        head.correctable_from, head.correction_basis = position, basis
    return done


def _correct_hold(element: Element, wanted: CorrectedHold, basis: int, position: int, done: Corrected) -> None:
    head, hold = element.head, element.holds.get(wanted.seat_id)
    lease_end = wanted.lease_end if wanted.quantity else None
    quantity = hold.quantity if hold is not None else 0
    if quantity == wanted.quantity and (hold is None or hold.lease_end == lease_end):
        return
    if (hold.position if hold is not None else head.late_position) > basis:
        done.skipped = True
        return
    done.changed = True
    head.level += wanted.quantity - quantity
    ids = hold.ids if hold is not None and hold.changed_at == wanted.changed_at else b""
    element.holds[wanted.seat_id] = Hold(wanted.quantity, wanted.changed_at, position, lease_end, ids)
    element.changed_holds.add(wanted.seat_id)
    element.closed.pop(wanted.seat_id, None)
    if not wanted.quantity:
        element.closed[wanted.seat_id] = None


def _correct_terms(element: Element, wanted: CorrectedTerms, basis: int, position: int, done: Corrected) -> None:
    head = element.head
    terms = terms_of(wanted.terms)
    labels = (wanted.customer, wanted.product, wanted.name, wanted.lease_policy)
    known = (head.terms_customer, head.terms_product, head.name, head.lease_policy)
    if terms == head.terms and labels == known:
        return
    if max(head.terms_position, head.late_position) > basis:
        done.skipped = True
        return
    done.changed = True
    head.terms, head.terms_at, head.terms_position = terms, wanted.changed_at, position
    head.terms_customer, head.terms_product, head.name, head.lease_policy = labels


def corrections_between(live: Element, exact: Element, basis: int) -> list[Correction]:
    """What makes the live state equal to the exact one, both as they are after the same events: at least one part.

    basis: the position of the last of these events.
    """
    holds = _different_holds(live, exact)
    terms = _terms_to_send(exact) if _terms_of(live) != _terms_of(exact) else None
    difference = exact.head.total - live.head.total
    parts = max(1, -(-len(holds) // HOLDS_PER_PART))
    return [
        Correction(
            basis,
            part,
            parts,
            tuple(holds[part * HOLDS_PER_PART : (part + 1) * HOLDS_PER_PART]),
            difference if part == 0 else 0,
            terms if part == 0 else None,
        )
        for part in range(parts)
    ]


def _different_holds(live: Element, exact: Element) -> Sequence[CorrectedHold]:
    different = []
    for seat, hold in exact.holds.items():
        known = live.holds.get(seat)
        if _open(known) != _open(hold):
            lease_end = hold.lease_end if hold.quantity else None
            different.append(CorrectedHold(seat, hold.quantity, lease_end, hold.changed_at))
    for seat, known in live.holds.items():
        if known.quantity and seat not in exact.holds:
            # Closed by a snapshot that does not name it.
            different.append(CorrectedHold(seat, 0, None, max(exact.head.snapshot_at, 0)))
    return different


def _open(hold: Hold | None) -> tuple[int, int | None]:
    return (hold.quantity, hold.lease_end) if hold is not None and hold.quantity else (0, None)


def _terms_of(element: Element) -> tuple[Terms | None, str | None, str | None, str | None, str | None]:
    head = element.head
    return head.terms, head.terms_customer, head.terms_product, head.name, head.lease_policy


def _terms_to_send(element: Element) -> CorrectedTerms | None:
    head = element.head
    if head.terms is None:
        return None
    limit, hard_limit, kind = head.terms.limit, head.terms.hard_limit, head.terms.kind
    overdraft = None
    if limit is not None:
        # Of the overdraft only its end is known here, and only that counts.
        unlimited = hard_limit is None
        overdraft = Overdraft(type="unlimited") if unlimited else Overdraft(type="absolute", value=hard_limit - limit)  # type: ignore[operator]
    return CorrectedTerms(
        ElementTerms(limit=limit, kind=kind, overdraft=overdraft),  # type: ignore[arg-type]
        head.terms_at, head.terms_customer, head.terms_product, head.name, head.lease_policy,
    )  # fmt: skip
