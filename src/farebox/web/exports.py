"""Tables as files, CSV or JSON, written while they are read: memory does not grow with them."""

import csv
import io
from collections.abc import AsyncIterator, Mapping
from typing import Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import StreamingResponse

Cell = str | int | None
Format = Literal["csv", "json"]

MOST_ROWS: Final = 100_000
_ROWS_AT_ONCE: Final = 500
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def format_of(request: Request) -> Format:
    """Tell by its address which kind of file is asked for."""
    return "csv" if request.scope["path"].endswith(".csv") else "json"


def export(
    rows: AsyncIterator[Mapping[str, Cell]], columns: tuple[str, ...], name: str, kind: Format
) -> StreamingResponse:
    """Answer with a file of these rows."""
    body, media_type = (_csv(rows, columns), "text/csv") if kind == "csv" else (_json(rows), "application/json")
    headers = {"content-disposition": f'attachment; filename="{name}.{kind}"'}
    return StreamingResponse(body, media_type=media_type, headers=headers)


async def _csv(rows: AsyncIterator[Mapping[str, Cell]], columns: tuple[str, ...]) -> AsyncIterator[str]:
    page = io.StringIO()
    writer = csv.writer(page)
    writer.writerow(columns)
    written = 0
    async for row in rows:
        writer.writerow([_harmless(row[column]) for column in columns])
        written += 1
        if written % _ROWS_AT_ONCE == 0:
            yield page.getvalue()
            page.seek(0)
            page.truncate()
    yield page.getvalue()


async def _json(rows: AsyncIterator[Mapping[str, Cell]]) -> AsyncIterator[str]:
    page: list[str] = []
    before = "[\n"
    async for row in rows:
        page.append(before + msgspec.json.encode(dict(row)).decode())
        before = ",\n"
        if len(page) == _ROWS_AT_ONCE:
            yield "".join(page)
            page = []
    yield "".join(page) + ("[]\n" if before == "[\n" else "\n]\n")


def _harmless(cell: Cell) -> Cell:
    """Keep a text from being taken for a formula by the program that opens the file (OWASP, "CSV Injection")."""
    if isinstance(cell, str) and cell.startswith(_FORMULA) and not _is_number(cell):
        return "'" + cell
    return cell


def _is_number(text: str) -> bool:
    return text[:1] == "-" and text[1:].replace(".", "", 1).isdecimal()
