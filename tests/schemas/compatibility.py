"""Finds what in a JSON Schema breaks those who rely on an older one.

Careful rather than clever: what it cannot tell to be harmless is a break. It knows the keywords that our schemas use.
"""

from collections.abc import Iterator
from typing import Any, Literal

Side = Literal["reads", "writes"]

# Words for people.
_NOTES = {"$schema", "$id", "$comment", "title", "description", "examples"}


def breaks(old: dict[str, Any], new: dict[str, Any], side: Side) -> list[str]:
    """What breaks: one line each, with the place in the schema; none if nothing does.

    side: `reads`: Seatmark reads these records, so what the old schema accepts the new one must accept; `writes`: it writes
    them, so what the new schema accepts the old one must (whoever reads them ignores fields that it does not name).
    """
    wide, narrow = (old, new) if side == "reads" else (new, old)
    return sorted(set(_narrower(wide, narrow, "", side)))


def _narrower(wide: Any, narrow: Any, place: str, side: Side) -> Iterator[str]:
    """Where `narrow` may refuse what `wide` accepts."""
    if not isinstance(wide, dict) or not isinstance(narrow, dict):
        if wide != narrow:
            yield f"{place}: {wide!r} and {narrow!r}"
        return
    for keyword in sorted((set(wide) | set(narrow)) - _NOTES):
        before, after, here = wide.get(keyword), narrow.get(keyword), f"{place}/{keyword}"
        if before == after or (after is None and keyword not in ("properties", "$defs", "allOf")):
            # Equal, or a condition that is no more.
            continue
        if keyword in ("properties", "$defs", "patternProperties"):
            yield from _fields(before or {}, after or {}, here, side)
        elif keyword in ("items", "additionalProperties", "propertyNames") and before is not None:
            yield from _narrower(before, after, here, side)
        elif keyword == "required":
            yield from (f"{here}: {name!r} is required by one" for name in sorted(set(after) - set(before or ())))
        elif keyword in ("enum", "type"):
            yield from _values(before, after, here)
        elif keyword in ("minimum", "minLength", "minItems", "minProperties", "exclusiveMinimum"):
            if before is None or after > before:
                yield f"{here}: at least {before} and at least {after}"
        elif keyword in ("maximum", "maxLength", "maxItems", "maxProperties", "exclusiveMaximum"):
            if before is None or after < before:
                yield f"{here}: at most {before} and at most {after}"
        elif keyword == "allOf":
            yield from _all_of(before or [], after or [], here, side)
        else:
            yield f"{here}: {before!r} and {after!r}"


def _fields(wide: dict[str, Any], narrow: dict[str, Any], place: str, side: Side) -> Iterator[str]:
    for name in sorted(set(wide) | set(narrow)):
        here = f"{place}/{name}"
        if name in wide and name in narrow:
            yield from _narrower(wide[name], narrow[name], here, side)
        elif side == "reads" and name in wide:
            yield f"{here}: a field that is read no more"
        elif side == "writes" and name in narrow:
            yield f"{here}: a field that is written no more"


def _values(before: Any, after: Any, place: str) -> Iterator[str]:
    """`enum` and `type`: lists of what is allowed; without, anything is."""
    allowed = after if isinstance(after, list) else [after]
    if before is None:
        yield f"{place}: anything, and only {allowed}"
        return
    given = before if isinstance(before, list) else [before]
    # Whole numbers are numbers.
    missing = [value for value in given if value not in allowed and not (value == "integer" and "number" in allowed)]
    if missing:
        yield f"{place}: {missing} is accepted by one only"


def _all_of(wide: list[Any], narrow: list[Any], place: str, side: Side) -> Iterator[str]:
    """Conditions are told apart by what they are about. One for a type that the other does not know is no break."""
    before = {repr(part.get("if", part)): part for part in wide}
    after = {repr(part.get("if", part)): part for part in narrow}
    known = _kinds(wide)
    for about, part in after.items():
        if about in before:
            yield from _narrower(before[about], part, f"{place}/{about}", side)
        elif "if" not in part or known & _kinds([part]) or not _kinds([part]):
            yield f"{place}: one has the condition {about}"


def _kinds(parts: list[Any]) -> set[str]:
    """The types of events that conditions are about."""
    abouts = [part.get("if", {}).get("properties", {}).get("type", {}) for part in parts]
    return {about["const"] for about in abouts if "const" in about}
