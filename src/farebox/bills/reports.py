"""What upstreams say that they bill: the cost report of the Anthropic admin API, and CSV files of others.

Sums of whole UTC days by model, in nano-dollars; what is billed by the piece stands under a name of its own.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal, DecimalException
from typing import Annotated, Final
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from farebox.clock import DAY_US, day_start_us, iso
from farebox.errors import FareboxError, InvalidRequest
from farebox.http.errands import Errands
from farebox.http.failures import UpstreamError
from farebox.secret import Secret

WEB_SEARCH: Final = "(web search)"
OTHER: Final = "(other)"
_URL: Final = "https://api.anthropic.com"
_VERSION: Final = "2023-06-01"
_NANOS_PER_CENT: Final = 10_000_000
_NANOS_PER_USD: Final = 1_000_000_000
_PAGES: Final = 50
_PAGE_BYTES: Final = 16 * 2**20
_WITHIN_S: Final = 60.0
_ROWS: Final = 100_000
_NAME_CHARS: Final = 100
_DAYS: Final = 400
_NAMES: Final = 500
"""Days of one file, and models of one day."""
CSV_BYTES: Final = 8 * 2**20
MOST_NANOS: Final = 10**18
"""A billion dollars a day and model: what is more is a mistake, and would not fit."""

Bill = dict[tuple[str, str], int]
"""Nano-dollars by day ("2026-11-22") and model."""


class BillSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[bills]]` of the configuration: whose bill it is, and how it is got."""

    name: str
    upstreams: tuple[str, ...]
    """Names of the upstreams that the bill is for: all that are paid for by it."""
    admin_key: Secret = Secret("")
    """A key of Anthropic's admin API (sk-ant-admin…). Empty: the bill comes as CSV."""
    workspace: str = ""
    """Only what is billed for this workspace (wrkspc_…); empty: the whole organisation."""
    base_url: str = _URL
    percent: Annotated[float, Meta(gt=0, le=100)] = 2.0
    """A day whose bill differs from what was metered by more than this share is told."""
    least_usd: Annotated[float, Meta(ge=0)] = 1.0
    """And by more than so many dollars."""


class BillTrouble(FareboxError):
    """A bill that could not be had, or read."""


class _Result(msgspec.Struct):
    amount: str
    currency: str = "USD"
    model: str | None = None
    cost_type: str | None = None
    workspace_id: str | None = None


class _Bucket(msgspec.Struct):
    starting_at: str
    results: list[_Result] = []


class _Page(msgspec.Struct):
    data: list[_Bucket]
    has_more: bool = False
    next_page: str | None = None


class Bills:
    """Asks for cost reports."""

    def __init__(self, errands: Errands) -> None:
        self._errands = errands

    async def fetch(self, settings: BillSettings, first_day: str, days: int) -> Bill:
        """Get the bill of some days (Anthropic admin API, "get cost report"). Raises BillTrouble."""
        begin_us = day_start_us(first_day)
        asked = {
            "starting_at": _moment(begin_us),
            "ending_at": _moment(begin_us + days * DAY_US),
            "bucket_width": "1d",
            "limit": str(min(days, 31)),
        }
        groups = [("group_by[]", "description"), ("group_by[]", "workspace_id")]
        found: Bill = {}
        page: str | None = None
        for _ in range(_PAGES):
            query = [*asked.items(), *groups, *([("page", page)] if page else [])]
            answer = await self._ask(settings, urlencode(query))
            for bucket in answer.data:
                _add(found, bucket, settings.workspace)
            page = answer.next_page if answer.has_more else None
            if page is None:
                return found
        raise BillTrouble(f"the cost report has more than {_PAGES} pages")

    async def _ask(self, settings: BillSettings, query: str) -> _Page:
        url = f"{settings.base_url.rstrip('/')}/v1/organizations/cost_report?{query}"
        headers = {
            "x-api-key": settings.admin_key.reveal(),
            "anthropic-version": _VERSION,
            "accept": "application/json",
        }
        try:
            reply = await self._errands.run("GET", url, headers, within_s=_WITHIN_S, most_bytes=_PAGE_BYTES)
        except (UpstreamError, ValueError) as error:
            raise BillTrouble(f"the cost report cannot be had: {error}") from error
        if reply.status != 200:
            raise BillTrouble(f"the cost report was answered {reply.status}{_words(reply.body)}")
        try:
            return msgspec.json.decode(reply.body, type=_Page)
        except msgspec.DecodeError as error:
            raise BillTrouble(f"the cost report has an unknown shape: {error}") from error


def read_csv(data: bytes) -> Bill:
    """Read a bill from CSV with the columns day, model and cost_usd; others are left alone.

    Raises InvalidRequest that names the line.
    """
    if len(data) > CSV_BYTES:
        raise InvalidRequest(f"the file is larger than {CSV_BYTES // 2**20} MiB: split it by months")
    try:
        lines = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        missing = {"day", "model", "cost_usd"} - set(lines.fieldnames or ())
        if missing:
            raise InvalidRequest(f"the first line names the columns; {', '.join(sorted(missing))} is missing there")
        found: Bill = {}
        names: Counter[str] = Counter()
        for number, line in enumerate(lines, 2):
            if number > _ROWS:
                raise InvalidRequest(f"the file has more than {_ROWS} lines: split it by months")
            key, nanos = _read_line(line, number)
            names[key[0]] += key not in found
            found[key] = found.get(key, 0) + nanos
            if abs(found[key]) > MOST_NANOS:
                raise InvalidRequest(f"line {number}: what {key[1]} costs on {key[0]} is more than can be")
            if len(names) > _DAYS or names[key[0]] > _NAMES:
                raise InvalidRequest(f"line {number}: a file has {_DAYS} days at most, and a day {_NAMES} models")
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"the file is no CSV in UTF-8: {error}") from None
    return found


def _read_line(line: Mapping[str | None, str | None], number: int) -> tuple[tuple[str, str], int]:
    day, model = (line["day"] or "").strip(), (line["model"] or "").strip()
    try:
        if _moment(day_start_us(day))[:10] != day:
            raise ValueError
    except ValueError:
        raise InvalidRequest(f"line {number}: day is as in 2026-11-22, got {day[:20]!r}") from None
    if not 0 < len(model) <= _NAME_CHARS or not model.isprintable():
        raise InvalidRequest(f"line {number}: model is missing, or no name")
    nanos = _nanos((line["cost_usd"] or "").strip().replace("$", "", 1), _NANOS_PER_USD)
    if nanos is None:
        raise InvalidRequest(f"line {number}: cost_usd is an amount as in 12.34, got {str(line['cost_usd'])[:20]!r}")
    currency = (line.get("currency") or "USD").strip().upper()
    if currency != "USD":
        raise InvalidRequest(f"line {number}: cost_usd is in US dollars, and currency says {currency[:20]!r}")
    return (day, model), nanos


def _add(found: Bill, bucket: _Bucket, workspace: str) -> None:
    day = bucket.starting_at[:10]
    for result in bucket.results:
        if workspace and result.workspace_id != workspace:
            continue
        nanos = _nanos(result.amount, _NANOS_PER_CENT)  # "lowest currency units", with a fraction
        if nanos is None or result.currency != "USD":
            raise BillTrouble(f"the cost report has an amount of {result.amount[:30]!r} {result.currency[:8]}")
        model = WEB_SEARCH if result.cost_type == "web_search" else (result.model or OTHER)[:_NAME_CHARS]
        found[day, model] = found.get((day, model), 0) + nanos
        if abs(found[day, model]) > MOST_NANOS:
            raise BillTrouble(f"the cost report has more than can be for {model} on {day}")


def _nanos(amount: str, unit: int) -> int | None:
    """Read an amount as nano-dollars, rounded to the nearest; None for what is none."""
    if not amount.isascii() or "_" in amount:
        return None
    try:
        value = Decimal(amount)
        if not value.is_finite() or abs(value * unit) > MOST_NANOS:
            return None
        return round(value * unit)
    except DecimalException:
        return None


def _moment(at_us: int) -> str:
    return iso(at_us)[:19] + "Z"


def _words(body: bytes) -> str:
    try:
        return f": {msgspec.json.decode(body)['error']['message']!s:.200}"
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
