"""Tables as CSV, sent as they are read."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastapi.responses import StreamingResponse
from pydantic import BaseModel

MEDIA_TYPE = "text/csv"
# A spreadsheet takes a text that begins like this for a formula, and runs it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ROWS_AT_ONCE = 500


def csv_response(model: type[BaseModel], rows: Iterable[Mapping[str, Any]], filename: str) -> StreamingResponse:
    """Rows with the columns of an answer's model, but for lists. Texts that a spreadsheet would run get a `'` in front."""
    columns = [name for name, field in model.model_fields.items() if not str(field.annotation).startswith("list")]
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in filename)
    headers = {"content-disposition": f'attachment; filename="{safe.encode("ascii", "replace").decode().replace("?", "_")}"'}
    return StreamingResponse(_lines(columns, rows), media_type="text/csv; charset=utf-8", headers=headers)


def _lines(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for number, row in enumerate(rows, 1):
        writer.writerow([_cell(row[column]) for column in columns])
        if number % _ROWS_AT_ONCE == 0:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value
