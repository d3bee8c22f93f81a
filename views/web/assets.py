"""Static files under addresses that hold a hash of what is in them, so that a browser may keep them for ever."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Response

from views.web import chart
from views.web.problems import Problem

_STATIC = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".json": "application/json"}
_FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}


@dataclass(frozen=True)
class _Asset:
    version: str
    media_type: str
    content: Callable[[], bytes]


def _of_file(path: Path) -> _Asset:
    content = path.read_bytes()
    return _Asset(hashlib.sha256(content).hexdigest()[:16], _TYPES[path.suffix], lambda: content)


def _all() -> dict[str, _Asset]:
    assets = {path.name: _of_file(path) for path in [*_STATIC.iterdir(), chart.SPEC_FILE]}
    # Made when it is asked for first, so its version is that of what it is made from.
    assets["vega.js"] = _Asset(chart.scripts_version(), _TYPES[".js"], chart.scripts)
    return assets


_ASSETS = _all()

router = APIRouter()


def static(name: str) -> str:
    """The address of a static file. Raises KeyError: there is none of that name."""
    return f"/static/{_ASSETS[name].version}/{name}"


@router.get("/static/{version}/{name}", include_in_schema=False)
def static_file(version: str, name: str) -> Response:
    """A static file; an old version's address is not answered with the new one."""
    asset = _ASSETS.get(name)
    if asset is None or asset.version != version:
        raise Problem(404, "not-found", f"there is no static file {name!r} of this version: load the page again")
    return Response(asset.content(), media_type=asset.media_type, headers=_FOR_EVER)
