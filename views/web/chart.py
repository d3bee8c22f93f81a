"""The graph of an element's days: one Vega-Lite spec, drawn in the page by its own scripts, and here as SVG and PNG.

And a small one, for tables.
"""

import copy
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

SPEC_FILE = Path(__file__).parent / "charts" / "activity.vl.json"
WIDTH = 860

Theme = Literal["light", "dark"]

_BUNDLE_SNIPPET = "window.vegaEmbed = vegaEmbed;"
_PNG_SCALE = 2.0
_MOST_TICKS = 10

_DRAWN = ("day", "min", "max", "limit", "hard_limit", "activations", "deactivations", "denials", "units_used", "state")
_LEGEND = {
    theme: "Band: least to greatest level of each day. Green dashes: limit. "
    f"{ink} dashes: hard limit. Red: above the limit. Bars: taken or used (blue), given back (grey), refused (red)"
    for theme, ink in (("light", "Black"), ("dark", "White"))
}

_bundling = threading.Lock()
_bundle: list[bytes] = []


def drawn(usage: Mapping[str, Any], format: Literal["svg", "png"], theme: Theme = "light", width: int = WIDTH) -> bytes:
    """The graph as an image. usage: an answer of /usage. width: of the plot, in pixels; a PNG has twice as many."""
    # Loaded when it is needed: it brings a whole JavaScript engine.
    import vl_convert

    spec = _filled(usage, theme, width)
    if format == "png":
        return bytes(vl_convert.vegalite_to_png(spec, scale=_PNG_SCALE))
    return str(vl_convert.vegalite_to_svg(spec)).encode()


def spark(days: Sequence[Mapping[str, Any]]) -> Markup:
    """The greatest level of each day against the limit as a small SVG. days: of an element of the overdraft report.

    Not by a template: it took a second for a thousand elements.
    """
    top = max(1, *(day["max"] for day in days), *(day["limit"] or 0 for day in days))
    used, over = [], []
    for number, day in enumerate(days):
        high = 24 * day["max"] / top
        bought = 24 * day["limit"] / top if day["limit"] is not None else 24
        used.append(_bar(4 * number, 0, min(high, bought)))
        if high > bought:
            over.append(_bar(4 * number, bought, high))
    return Markup(
        f'<svg class="spark" viewBox="0 0 {4 * len(days)} 26" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="used" d="{"".join(used)}"/><path class="over" d="{"".join(over)}"/></svg>'
    )


def _bar(left: int, low: float, high: float) -> str:
    return f"M{left} {26 - low:.2f}V{26 - high:.2f}h3.2V{26 - low:.2f}z"


def scripts() -> bytes:
    """Vega-Embed, Vega-Lite and Vega as one script that sets `vegaEmbed`. Made once per process, which takes seconds."""
    with _bundling:
        if not _bundle:
            import vl_convert

            _bundle.append(vl_convert.javascript_bundle(_BUNDLE_SNIPPET).encode())
        return _bundle[0]


def scripts_version() -> str:
    """What changes when the scripts change, without making them."""
    from importlib.metadata import version

    return hashlib.sha256(f"{version('vl-convert-python')} {_BUNDLE_SNIPPET}".encode()).hexdigest()[:16]


def _filled(usage: Mapping[str, Any], theme: Theme, width: int) -> dict[str, Any]:
    spec = copy.deepcopy(_spec())
    spec["data"]["values"] = [{name: day[name] for name in _DRAWN} for day in usage["days"]]
    spec["title"]["text"] = f"{usage['entitlement']}, {usage['element']}"
    spec["title"]["subtitle"] = f"{_LEGEND[theme]}. Days of {usage['timezone']}"
    for plot in spec["vconcat"]:
        plot["width"] = width
    days = max(1, len(usage["days"]))
    values = {"ticks": min(_MOST_TICKS, days), "day_width": width / days}
    if theme == "dark":
        values |= spec["usermeta"]["dark"]
    for param in spec["params"]:
        param["value"] = values.get(param["name"], param["value"])
    return spec


def _spec() -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(SPEC_FILE.read_text("utf-8"))
    return spec
