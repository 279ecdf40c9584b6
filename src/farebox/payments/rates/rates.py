"""Rates: what coins are worth, by the median of at least two sources that were asked a moment ago; else by nobody.

Prices are kept in the books, so that all processes go by the same ones, and an old price never counts: it is better to
quote nothing than to guess.
"""

import asyncio
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING
from typing import Final

from msgspec import Struct

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble
from farebox.http.errands import Errands
from farebox.http.failures import UpstreamError
from farebox.money import NANOS_PER_USD
from farebox.payments.rails import Rate
from farebox.payments.rates.sources import (
    AHEAD_US,
    ASSETS,
    FRESH_US,
    LEAST_NANOS,
    MOST_NANOS,
    SOURCES,
    Price,
    Question,
    Source,
)
from farebox.payments.settings import PaymentSettings
from farebox.store.protocol import Statement, Store

QUORUM: Final = 2
"""Sources that must agree."""
APART_PERCENT: Final = 2
"""A price that is further than this from the median is left out."""
USDT_FLOOR_NANOS: Final = NANOS_PER_USD * 97 // 100
"""Below this a USDT is no dollar any more, and nobody knows what it will be worth in an hour: it is not quoted."""
PAUSE_US: Final = 30 * US_PER_S
"""How long a source is left alone after it has answered."""
DEMAND_US: Final = 60 * US_PER_S
"""Where nobody has asked for prices for so long, whoever needs one asks."""
_FIRST_WAIT_US: Final = 5 * US_PER_S
_LONGEST_WAIT_US: Final = 300 * US_PER_S
_MOST_BYTES: Final = 256 * 1024
_PPM_PER_PERCENT: Final = 10_000
_PPM: Final = 1_000_000
_WELL: Final = (
    "INSERT INTO rate (id, source, asset, bid_nanos, at, tried_at) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) "
    "DO UPDATE SET bid_nanos = excluded.bid_nanos, at = excluded.at, tried_at = excluded.tried_at, error = NULL"
)
_ILL: Final = (
    "INSERT INTO rate (id, source, asset, tried_at, error) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
    "SET tried_at = excluded.tried_at, error = excluded.error"
)

Told = dict[tuple[str, str], Price | RailTrouble]
"""By source and asset: what was said, or why not."""


class SourceHealth(Struct, frozen=True):
    """How a source is, about one asset. Moments and price are None until it has answered for the first time."""

    source: str
    asset: str
    bid_nanos: int | None
    at_us: int | None
    tried_at_us: int | None
    error: str | None
    counts: bool
    """Whether its price is fresh enough to be gone by."""

    def age_s(self, now_us: int) -> int | None:
        """Give how old its price is."""
        return None if self.at_us is None else max(0, now_us - self.at_us) // US_PER_S


class Rates:
    """Asks the sources of the settings, and says what a coin is worth.

    `within_s` is how long a source may take to answer. `warn` logs that nobody can say any more what a coin is worth.
    """

    def __init__(
        self,
        store: Store,
        settings: PaymentSettings,
        *,
        within_s: float = 10.0,
        warn: Callable[..., object] = lambda *_, **__: None,
    ) -> None:
        self._store = store
        self._sources = tuple(one for one in SOURCES if one.name in settings.rates)
        self._elsewhere = settings.rates_url.rstrip("/")
        self._spread_ppm = int((settings.spread_percent * _PPM_PER_PERCENT).to_integral_value(ROUND_CEILING))
        self._errands = Errands(allow_private=bool(settings.rates_url))
        self._within_s = within_s
        self._turn = asyncio.Lock()
        self._failures: dict[str, int] = {}
        self._due_us: dict[str, int] = {}
        self._warn = warn
        self._unknown: set[str] = set()

    async def refresh(self, now_us: int) -> None:
        """Ask all sources that are due, at once. A job; as often as one likes, and by several at once.

        Raises StoreUnavailable; what is wrong with a source is written down, not raised.
        """
        async with self._turn:  # who has waited finds that no source is due
            due = [source for source in self._sources if self._is_due(source, now_us)]
            if not due:
                return
            told: Told = {}
            for answers in await asyncio.gather(*(self._ask(source, now_us) for source in due)):
                told |= answers
            for source in due:
                self._rest(source, told, now_us)
            await self._in_dollars([source for source in due if source.in_usdt], told, now_us)
            # in one order, so that two processes never wait for each other's rows
            await self._store.write([_statement(*key, told[key], now_us) for key in sorted(told)])
            await self._tell(now_us)

    def _is_due(self, source: Source, now_us: int) -> bool:
        """Whether a source has been left alone for long enough; also where the clock was set back since."""
        return not now_us < self._due_us.get(source.name, 0) <= now_us + _LONGEST_WAIT_US

    async def now(self, asset: str, now_us: int) -> Rate | None:
        """Give what a coin is worth, the spread taken off; None where no quorum of sources says so.

        Asks the sources itself where nobody has lately. Raises StoreUnavailable.
        """
        if asset not in ASSETS:
            return None
        rows = await self._rows(asset)
        if not any(-AHEAD_US <= now_us - (one.tried_at_us or 0) <= DEMAND_US for one in rows):
            await self.refresh(now_us)
            rows = await self._rows(asset)
        agreed = agree(_fresh(rows, now_us))
        if agreed is None:
            return None
        nanos, sources = agreed
        if asset == "USDT":
            if nanos < USDT_FLOOR_NANOS:
                return None
            nanos = min(nanos, NANOS_PER_USD)
        nanos = nanos * (_PPM - self._spread_ppm) // _PPM
        return Rate(nanos=nanos, at=now_us, spread_ppm=self._spread_ppm, sources=sources)

    async def health(self, now_us: int) -> list[SourceHealth]:
        """Tell how each source is, about each asset it knows, in the order of the sources; for the operator."""
        known = {(one.source, one.asset): one for asset in ASSETS for one in await self._rows(asset)}
        rows = []
        for source in self._sources:
            for asset in source.assets:
                one = known.get((source.name, asset)) or _Row(source.name, asset, None, None, None, None)
                counts = bool(_fresh([one], now_us))
                rows.append(
                    SourceHealth(source.name, asset, one.bid_nanos, one.at_us, one.tried_at_us, one.error, counts)
                )
        return rows

    async def _rows(self, asset: str) -> "list[_Row]":
        """Give what the sources of the settings have said last."""
        rows = await self._store.fetch(
            "SELECT source, asset, bid_nanos, at, tried_at, error FROM rate WHERE asset = ? ORDER BY source", (asset,)
        )
        names = {source.name for source in self._sources}
        return [_Row(*row) for row in rows if row[0] in names]

    async def _ask(self, source: Source, now_us: int) -> Told:
        """Ask one source all that it knows."""
        answers = await asyncio.gather(*(self._put(source, question, now_us) for question in source.questions))
        return {(source.name, asset): told for answer in answers for asset, told in answer.items()}

    async def _put(self, source: Source, question: Question, now_us: int) -> dict[str, Price | RailTrouble]:
        base = f"{self._elsewhere}/{source.name}" if self._elsewhere else source.base
        headers = {"accept": "application/json", "user-agent": "Farebox", "connection": "close"}
        try:
            reply = await self._errands.run(
                "GET", base + question.target, headers, within_s=self._within_s, most_bytes=_MOST_BYTES
            )
        except (UpstreamError, ValueError) as error:
            return dict.fromkeys(question.assets, RailTrouble(f"{source.name} cannot be asked: {error}"))
        told: dict[str, Price | RailTrouble] = {}
        for asset in question.assets:
            try:
                told[asset] = source.read(reply, asset, now_us)
            except RailTrouble as trouble:
                told[asset] = trouble
        return told

    async def _tell(self, now_us: int) -> None:
        """Log once that no quorum says what a coin is worth, and once that there is one again."""
        for asset in ASSETS:
            rows = await self._rows(asset)
            if agree(_fresh(rows, now_us)) is None:
                if asset not in self._unknown:
                    said = {one.source: one.error or f"{one.bid_nanos} nano-dollars" for one in rows}
                    self._warn("rate_unknown", asset=asset, sources=said)
                self._unknown.add(asset)
            elif asset in self._unknown:
                self._warn("rate_known_again", asset=asset)
                self._unknown.discard(asset)

    def _rest(self, source: Source, told: Told, now_us: int) -> None:
        """Leave a source alone for a while: the longer, the more often it has failed in a row."""
        if any(isinstance(told[source.name, asset], Price) for asset in source.assets):
            self._failures[source.name], wait_us = 0, PAUSE_US
        else:
            failures = self._failures[source.name] = self._failures.get(source.name, 0) + 1
            wait_us = min(_LONGEST_WAIT_US, _FIRST_WAIT_US << min(failures - 1, 10))
        self._due_us[source.name] = now_us + wait_us

    async def _in_dollars(self, sources: list[Source], told: Told, now_us: int) -> None:
        """Turn prices in USDT into dollars, at what the other sources say now that a USDT is worth."""
        if not sources:
            return
        heard = _fresh(await self._rows("USDT"), now_us)
        heard |= {
            name: one.bid_nanos for (name, asset), one in told.items() if asset == "USDT" and isinstance(one, Price)
        }
        usdt = agree(heard)
        for source in sources:
            for asset in source.assets:
                price = told[source.name, asset]
                if isinstance(price, Price):
                    told[source.name, asset] = _convert(source.name, price, usdt[0] if usdt else None)


class _Row(Struct, frozen=True):
    """A row of the table `rate`."""

    source: str
    asset: str
    bid_nanos: int | None
    at_us: int | None
    tried_at_us: int | None
    error: str | None


def agree(prices: Mapping[str, int]) -> tuple[int, dict[str, int]] | None:
    """Give the median of prices by source, and those it was made of; None without a quorum.

    What is too far from a first median is left out; a quorum must remain.
    """
    if len(prices) < QUORUM:
        return None
    first = _median(list(prices.values()))
    close = {name: price for name, price in prices.items() if abs(price - first) * 100 <= first * APART_PERCENT}
    return (_median(list(close.values())), close) if len(close) >= QUORUM else None


def _median(values: list[int]) -> int:
    """Give the middle one, or what lies between the two in the middle, rounded down."""
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) // 2


def _fresh(rows: "list[_Row]", now_us: int) -> dict[str, int]:
    """Give the prices that are not too old, and not from ahead, by source."""
    return {
        one.source: one.bid_nanos
        for one in rows
        if one.bid_nanos is not None and one.at_us is not None and -AHEAD_US <= now_us - one.at_us <= FRESH_US
    }


def _convert(source: str, price: Price, usdt_nanos: int | None) -> Price | RailTrouble:
    """Turn a price in USDT into dollars, rounded down."""
    if usdt_nanos is None:
        return RailTrouble(f"{source} quotes in USDT, and no two others say what that is worth")
    nanos = price.bid_nanos * usdt_nanos // NANOS_PER_USD
    if not LEAST_NANOS <= nanos <= MOST_NANOS:
        return RailTrouble(f"{source} says what cannot be a price, with a USDT of {usdt_nanos} nano-dollars: {nanos}")
    return Price(nanos, price.at_us)


def _statement(source: str, asset: str, told: Price | RailTrouble, now_us: int) -> Statement:
    """Make the statement that writes down what was said; a failure leaves the last price, whose age then decides."""
    key = (f"{source}:{asset}", source, asset)
    if isinstance(told, Price):
        return _WELL, (*key, told.bid_nanos, told.at_us, now_us)
    return _ILL, (*key, now_us, str(told))
