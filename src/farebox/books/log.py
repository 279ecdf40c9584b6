"""A customer's log of calls: filtered pages, newest first, and one call with every line of its price. Read only."""

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from farebox.billing.pricing import PPM, Catalogue, Model
from farebox.billing.usage import Line, Usage
from farebox.books.prices import price_list
from farebox.ids import show_request_id
from farebox.store.protocol import Store

LOOKED_AT: Final = 10_000
"""Calls that one page looks through at most for those that a filter wants; the next page looks further."""

_usage: Final = msgspec.json.Decoder(Usage)
_CLASSES: Final = {
    "input": "Input",
    "cache_write_5m": "Cache write, 5 minutes",
    "cache_write_1h": "Cache write, 1 hour",
    "cache_read": "Cache read",
    "output": "Output",
}


class LoggedCall(msgspec.Struct, frozen=True):
    """One admitted call as its customer sees it. The fields are columns of `usage`."""

    request_id: bytes
    at: int
    key_id: int
    kind: str
    model: str
    asked_model: str
    price_version: int
    input_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int
    output_tokens: int
    web_searches: int
    detail: str | None
    cost_nanos: int
    list_nanos: int
    charged_nanos: int
    shortfall_nanos: int
    waived_nanos: int
    status: int
    outcome: str
    stop_reason: str | None
    message_id: str | None
    attempts: int
    streamed: int
    first_byte_us: int | None
    duration_us: int
    session: str | None
    agent: str | None
    parent_agent: str | None
    held_nanos: int | None
    tries: str | None

    @property
    def id(self) -> str:
        return show_request_id(self.request_id)

    @property
    def place(self) -> "Place":
        return Place(self.at, self.request_id)

    @property
    def usage(self) -> Usage:
        """The usage as it was priced: the whole of it where it was kept, else what the columns say."""
        if self.detail is not None:
            return _usage.decode(self.detail)
        line = Line(
            self.model,
            self.input_tokens,
            self.cache_write_5m_tokens,
            self.cache_write_1h_tokens,
            self.cache_read_tokens,
            self.output_tokens,
        )
        return Usage((line,), self.web_searches)


class Place(msgspec.Struct, frozen=True):
    """A place between two calls of the log: just before (older than) the one named."""

    at_us: int
    request_id: bytes


class Wanted(msgspec.Struct, frozen=True):
    """Which calls are wanted; None is no condition."""

    model: str | None = None
    key_id: int | None = None
    outcome: str | None = None
    since_us: int = 0
    session: str | None = None


class LogPage(msgspec.Struct, frozen=True):
    """A page of the log. `older` is where the next one begins; None: there is nothing older."""

    calls: list[LoggedCall]
    older: Place | None


class PricedLine(msgspec.Struct, frozen=True):
    """A line of a call's price: so many at this price, and at the upstream's list, per million or each."""

    what: str
    model: str
    count: int
    sell_price: int
    list_price: int
    each: bool = False

    @property
    def sell_pico(self) -> int:
        """What it comes to, in nano-dollars × 10⁶: lines are exact, only their sum is rounded."""
        return self.count * self.sell_price * (PPM if self.each else 1)

    @property
    def list_pico(self) -> int:
        return self.count * self.list_price * (PPM if self.each else 1)


class Bill(msgspec.Struct, frozen=True):
    """How a call's price came about. `notes` name what multiplies lines, or stood in for a price that was missing."""

    lines: list[PricedLine]
    notes: list[str]


_COLUMNS: Final = ", ".join(LoggedCall.__struct_fields__)


async def page_of_log(store: Store, account_id: int, wanted: Wanted, before: Place | None, size: int) -> LogPage:
    """Give the newest calls before a place. A filter that fits few may give fewer than `size` and still go on."""
    place = before or Place(2**62, b"")
    floor = []
    sparse = wanted.model is not None or wanted.key_id is not None or wanted.outcome is not None
    if sparse and wanted.session is None:  # those of a session are found by themselves, not by looking through all
        floor = await store.fetch(
            "SELECT at, request_id FROM usage WHERE account_id = ? AND at >= ? AND (at, request_id) < (?, ?) "
            "ORDER BY at DESC, request_id DESC LIMIT 1 OFFSET ?",
            (account_id, wanted.since_us, place.at_us, place.request_id, LOOKED_AT),
        )
    conditions = ["account_id = ?", "at >= ?", "(at, request_id) < (?, ?)"]
    values: list[int | str | bytes] = [account_id, floor[0][0] if floor else wanted.since_us]
    values += [place.at_us, place.request_id]
    if floor:
        conditions.append("(at, request_id) >= (?, ?)")
        values += floor[0]
    for column, value in (
        *(("session", wanted.session), ("model", wanted.model)),
        *(("key_id", wanted.key_id), ("outcome", wanted.outcome)),
    ):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    rows = await store.fetch(
        f"SELECT {_COLUMNS} FROM usage WHERE {' AND '.join(conditions)} "  # noqa: S608  fixed texts
        "ORDER BY at DESC, request_id DESC LIMIT ?",
        (*values, size + 1),
    )
    calls = [LoggedCall(*row) for row in rows[:size]]
    if len(rows) > size:
        return LogPage(calls, calls[-1].place)
    return LogPage(calls, Place(*floor[0]) if floor else None)


async def whole_log(store: Store, account_id: int, wanted: Wanted, most: int) -> AsyncIterator[LoggedCall]:
    """Give the newest calls that are wanted, at most so many, page by page."""
    place: Place | None = None
    given = 0
    while given < most:
        page = await page_of_log(store, account_id, wanted, place, min(1000, most - given))
        for call in page.calls:
            yield call
        given += len(page.calls)
        place = page.older
        if place is None:
            return


async def find_call(store: Store, account_id: int, request_id: bytes) -> LoggedCall | None:
    """Find one of an account's own calls."""
    rows = await store.fetch(
        f"SELECT {_COLUMNS} FROM usage WHERE request_id = ? AND account_id = ?",  # noqa: S608  fixed texts
        (request_id, account_id),
    )
    return LoggedCall(*rows[0]) if rows else None


async def bill_of(store: Store, call: LoggedCall) -> Bill:
    """Work out the lines of a call's price, from its tokens and the price version pinned when it was let in."""
    catalogue = await price_list(store, call.price_version)
    asked = catalogue.find(call.asked_model) if catalogue is not None else None
    if catalogue is None or asked is None:
        return Bill([], [f"price version {call.price_version} has no price for {call.asked_model}"])
    return itemise(call.usage, asked, catalogue)


def itemise(usage: Usage, asked: Model, catalogue: Catalogue) -> Bill:
    """Work out the lines of a usage's price, line by line as `Catalogue.price` sums them up."""
    lines: list[PricedLine] = []
    notes = list(catalogue.price(usage, asked).doubts)
    for line in usage.lines:
        model = catalogue.answered_by(line.model, asked) or asked
        lines += _lines(line, model)
        notes += _factors(line, model)
    pieces = usage.web_searches + usage.unpriced_uses
    if pieces:
        price = catalogue.per_use(asked)
        lines.append(PricedLine("Web searches", asked.id, pieces, price, price, each=True))
    return Bill(lines, list(dict.fromkeys(notes)))


def _lines(line: Line, model: Model) -> list[PricedLine]:
    tariff = model.tariff(line.prompt_tokens, fast=line.fast)
    found = [
        PricedLine(name, model.id, count, getattr(tariff.sell, field), getattr(tariff.list, field))
        for field, name in _CLASSES.items()
        if (count := getattr(line, field)) or field in {"input", "output"}
    ]
    if line.unpriced:
        found.append(PricedLine("Other tokens", model.id, line.unpriced, tariff.sell.dearest, tariff.list.dearest))
    return found


def _factors(line: Line, model: Model) -> list[str]:
    notes = []
    if line.fast and model.fast_rates is not None:
        notes.append(f"{model.id} at its fast rates")
    if line.geo_us and model.geo_us_ppm != PPM:
        notes.append(f"{model.id} in the US only: × {model.geo_us_ppm / PPM:g}")
    if line.batch and model.batch_ppm != PPM:
        notes.append(f"{model.id} in a batch: × {model.batch_ppm / PPM:g}")
    if line.percent != 100:
        notes.append(f"in a batch that is run here: × {line.percent / 100:g}")
    if any(line.prompt_tokens > band.above_tokens for band in model.bands):
        notes.append(f"{model.id} at its rates for long prompts: {line.prompt_tokens:,} tokens")
    return notes
