"""Commands that read through the web API: `usage`, `overdrafts`."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from schemas.errors import Explained
from seatmark.console import Format, print_csv, print_json, print_rows, say
from seatmark.settings import load_settings

_SECONDS = 60.0

FormatOption = Annotated[Format, typer.Option("--format", help="table for people, json or csv for programs")]


class ApiFailed(Explained):
    """The web API cannot be reached, or refuses; the message says what it said."""


def usage(
    entitlement: Annotated[str, typer.Argument(help="the entitlement's id")],
    element: Annotated[str | None, typer.Option(help="`seats`, or a feature; default: seats, else the only one")] = None,
    days: Annotated[int, typer.Option(help="how many days, the last one included")] = 30,
    to: Annotated[str | None, typer.Option(metavar="DAY", help="the last day, such as 2026-01-31; default: today")] = None,
    format: FormatOption = Format.table,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="also draw the graph, to a file .svg or .png")] = None,
) -> None:
    """How an entitlement was used: least and greatest level, and the limits, of each day."""
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise typer.BadParameter(f"--plot: expected a file .svg or .png, got {plot}")
    asked = {"element": element, "days": days, "to": to}
    path = f"/api/v1/entitlements/{quote(entitlement, safe='')}/usage"
    document = get(load_settings().url, path, {name: value for name, value in asked.items() if value is not None})
    if plot is not None:
        _plot(document, plot)
    if format is Format.json:
        print_json(document)
    elif format is Format.csv:
        print_csv(document["days"])
    else:
        print_usage(document)


def _plot(document: dict[str, Any], file: Path) -> None:
    from views.web.chart import drawn

    image = drawn(document, "png" if file.suffix == ".png" else "svg")
    try:
        file.write_bytes(image)
    except OSError as error:
        raise ApiFailed(f"cannot write the graph to {file}: {error.strerror}") from error
    say(f"the graph is in {file}")


def print_usage(document: dict[str, Any]) -> None:
    """The table of `usage` for people."""
    rows = [
        {**day, "overdraft": _duration(day["overdraft_seconds"]), "limit": _limit(day, "limit"),
         "hard_limit": _limit(day, "hard_limit")}
        for day in document["days"]
    ]  # fmt: skip
    columns = {
        "day": "day", "min": "min", "max": "max", "closing": "closing", "limit": "limit", "hard_limit": "hard limit",
        "overdraft": "in overdraft", "activations": "taken", "denials": "refused", "state": "state",
    }  # fmt: skip
    print_rows(rows, columns, title=f"{document['entitlement']}, {document['element']} ({document['timezone']})")


def overdrafts(format: FormatOption = Format.table) -> None:
    """Who is above the limit now, and by how much."""
    document = get(load_settings().url, "/api/v1/overdrafts", {"now": True})
    if format is Format.json:
        print_json(document)
    elif format is Format.csv:
        print_csv([{name: value for name, value in row.items() if name != "days"} for row in document["overdrafts"]])
    else:
        print_overdrafts(document)


def print_overdrafts(document: dict[str, Any]) -> None:
    """The table of `overdrafts` for people."""
    columns = {
        "customer": "customer", "product": "product", "entitlement": "entitlement", "element": "element", "level": "level",
        "limit": "limit", "hard_limit": "hard limit", "state": "state", "since": "since (UTC)",
    }  # fmt: skip
    rows = [{**row, "since": row["since"] and row["since"][:19].replace("T", " ")} for row in document["overdrafts"]]
    print_rows(rows, columns, title="In overdraft now")


def get(url: str, path: str, parameters: dict[str, Any]) -> Any:
    """The JSON document at a path of the web API, asked for with SEATMARK_TOKEN. Raises ApiFailed."""
    import httpx

    token = load_settings().token.get_secret_value()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        response = httpx.get(url + path, params=parameters, headers=headers, timeout=_SECONDS)
    except httpx.TransportError as error:
        raise ApiFailed(f"no answer from {url} ({error}): is Seatmark up? SEATMARK_URL says where it is") from error
    if response.is_success:
        return response.json()
    try:
        problem = response.json()
        said = problem.get("detail") or problem["title"]
        raise ApiFailed(f"{said}. SEATMARK_TOKEN is what the command line sends" if response.status_code == 401 else said)
    except (ValueError, KeyError, AttributeError) as error:
        raise ApiFailed(f"{url} answered with {response.status_code}: is that Seatmark?") from error


def _limit(day: dict[str, Any], field: str) -> Any:
    if day[field] is None:
        return "unlimited" if day["terms_known"] else None
    return day[field]


def _duration(seconds: float) -> str | None:
    if not seconds:
        return None
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else "< 1 min"
