"""How the ledger's state stands in its changelog topic: MessagePack arrays, one record for each thing that changes alone.

Keys are arrays that begin with a letter: `c` cursor of the partition, `h` head of an element, `s` hold of a seat, `i` block
of remembered ids, `o` a new owner of the partition, which has no value. Values are the structs of the domain as arrays; no
value means that the thing is gone.
"""

from typing import Any

import msgspec
from msgspec import Struct

from processors.domain.element import Element, Head
from processors.domain.holds import Hold, IdBlock
from processors.domain.ledger import Changes, Ledger
from schemas.errors import Explained

# Raised when the layout of a record changes; state of another layout is refused, and rebuilt from the raw log.
STATE_VERSION = 2

CURSOR_KEY = msgspec.msgpack.encode(("c",))
OWNER_KEY = msgspec.msgpack.encode(("o",))


class Cursor(Struct, frozen=True, array_like=True):
    """How far a source partition is applied.

    incarnation: of the source topic. epoch: how many incarnations this state has lived through. offset: the last applied
    record's. timezone: the reporting time zone that the day rows in this state are in.
    """

    state_version: int
    incarnation: str
    epoch: int
    offset: int
    timezone: str


class UnreadableState(Explained):
    """A changelog record that this version cannot read."""


StateRecord = tuple[bytes, bytes | None]

_encoder = msgspec.msgpack.Encoder()
_keys = msgspec.msgpack.Decoder(list[Any])
# Not strict: a number beyond 64 bits stands as text.
_heads = msgspec.msgpack.Decoder(Head, strict=False)
_holds = msgspec.msgpack.Decoder(Hold)
_blocks = msgspec.msgpack.Decoder(IdBlock)
_checkpoints = msgspec.msgpack.Decoder(tuple[int, bytes, dict[str, Hold], list[IdBlock]])
_cursors = msgspec.msgpack.Decoder(Cursor)


def encode_changes(changes: Changes, cursor: Cursor) -> list[StateRecord]:
    """The records that bring a changelog from before these changes to after them."""
    encode = _encoder.encode
    records: list[StateRecord] = [(encode(("h", head.entitlement, head.element)), _encode_head(head)) for head in changes.heads]
    for head, seat, hold in changes.holds:
        records.append((encode(("s", head.entitlement, head.element, seat)), None if hold is None else encode(hold)))
    for head, number, block in changes.blocks:
        records.append((encode(("i", head.entitlement, head.element, number)), None if block is None else encode(block)))
    records.append(encode_cursor(cursor))
    return records


def _encode_head(head: Head) -> bytes:
    try:
        return _encoder.encode(head)
    except OverflowError:
        # MessagePack ends at 64 bits, and a counter of bytes can have more unit-milliseconds in a day.
        return _encoder.encode(_large_numbers_as_text(msgspec.to_builtins(head, builtin_types=(bytes,))))


def _large_numbers_as_text(node: Any) -> Any:
    if isinstance(node, list | tuple):
        return [_large_numbers_as_text(value) for value in node]
    return str(node) if isinstance(node, int) and abs(node) >= 2**63 else node


def encode_cursor(cursor: Cursor) -> StateRecord:
    """The record of a partition's cursor."""
    return CURSOR_KEY, _encoder.encode(cursor)


def restore(ledger: Ledger, key: bytes, value: bytes | None) -> Cursor | None:
    """Put one changelog record into a ledger; the cursor, if it is one.

    Records of one key must come in the order in which they were written. Call `finish_restore` after the last.
    Raises UnreadableState: a record of another version, or not one of ours.
    """
    try:
        if key == CURSOR_KEY:
            return _cursors.decode(value or b"")
        if key == OWNER_KEY:
            return None
        letter, entitlement, element_name, *rest = _keys.decode(key)
        if len(rest) != (0 if letter == "h" else 1):
            raise ValueError("it has too few or too many parts")
        element = ledger.elements.get((entitlement, element_name))
        if element is None:
            element = ledger.elements[entitlement, element_name] = Element(Head(entitlement, element_name))
        if letter == "h":
            element.head = _heads.decode(value or b"")
        elif letter == "s" and value is None:
            element.holds.pop(rest[0], None)
        elif letter == "s":
            element.holds[rest[0]] = _holds.decode(value or b"")
        elif letter == "i":
            element.blocks = [block for block in element.blocks if block.number != rest[0]]
            if value is not None:
                element.blocks.append(_blocks.decode(value))
        else:
            raise UnreadableState(f"a state record with the unknown key {key!r}")
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise UnreadableState(
            f"the state record with key {key!r} cannot be read ({error}): it is of another version of Seatmark, or damaged. "
            "Run the version that wrote it"
        ) from error
    return None


def finish_restore(ledger: Ledger) -> None:
    """Put in order what the order of a changelog does not tell: closed holds in the order of their closing, blocks of ids."""
    for element in ledger.elements.values():
        _put_in_order(element)


def _put_in_order(element: Element) -> None:
    closed = [(hold.position, seat) for seat, hold in element.holds.items() if not hold.quantity]
    element.closed = {seat: None for _, seat in sorted(closed)}
    blocks = sorted(element.blocks, key=lambda block: block.number)
    element.blocks = []
    for block in blocks:
        element.add_block(block)


def element_records(element: Element) -> list[StateRecord]:
    """The changelog records of one element alone."""
    head, encode = element.head, _encoder.encode
    name = (head.entitlement, head.element)
    return [
        (encode(("h", *name)), _encode_head(head)),
        *((encode(("s", *name, seat)), encode(hold)) for seat, hold in element.holds.items()),
        *((encode(("i", *name, block.number)), encode(block)) for block in element.blocks),
    ]


def encode_element(element: Element) -> bytes:
    """A whole element in one piece: a checkpoint of the exact fold."""
    return _encoder.encode((STATE_VERSION, _encode_head(element.head), element.holds, element.blocks))


def decode_element(checkpoint: bytes) -> Element:
    """The element of a checkpoint. Raises UnreadableState: it is of another version."""
    try:
        version, head, holds, blocks = _checkpoints.decode(checkpoint)
        if version != STATE_VERSION:
            raise UnreadableState(f"a checkpoint with the layout {version}, and this version reads {STATE_VERSION}")
        element = Element(_heads.decode(head), holds, blocks=blocks)
    except msgspec.DecodeError as error:
        raise UnreadableState(f"a checkpoint that cannot be read ({error})") from error
    _put_in_order(element)
    return element
