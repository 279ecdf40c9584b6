"""Sources of rates: where each is asked, and how its answer is read. What is not understood to the letter is trouble.

A price is the bid, what a buyer offers for the coin, where the source tells one. Figures are exact: a Decimal from the
text of the answer to whole nano-dollars, rounded down. The shapes are those of the sources' public documentation.
"""

import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec
from msgspec import UNSET

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble
from farebox.http.errands import Reply
from farebox.money import NANOS_PER_USD
from farebox.payments.settings import RateSource

ASSETS: Final = ("BTC", "ETH", "USDT")
"""The coins that sources are asked about."""
FRESH_US: Final = 120 * US_PER_S
"""A price older than this counts no more."""
AHEAD_US: Final = 60 * US_PER_S
"""Clocks differ: a price from so little ahead counts as one of now."""

LEAST_NANOS: Final = NANOS_PER_USD // 1_000_000
MOST_NANOS: Final = NANOS_PER_USD * 1_000_000_000
"""No coin is worth less, or more: such a price is a mistake."""
_LEAST: Final = Decimal(LEAST_NANOS).scaleb(-9)
_MOST: Final = Decimal(MOST_NANOS).scaleb(-9)
_DIGITS: Final = 60
_PLAIN: Final = re.compile(r"\d{1,20}(\.\d{1,40})?", re.ASCII)
_WORDS: Final = 200
_COMPLAINTS: Final = ("error", "errors", "message", "msg", "reason", "status", "code")
_DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)


class Price(msgspec.Struct, frozen=True):
    """What a source says that a coin is worth: nano-dollars (of Binance: billionths of a USDT), and when that was."""

    bid_nanos: int
    at_us: int


class Question(msgspec.Struct, frozen=True):
    """One request to a source, and the assets that the answer is about."""

    target: str
    assets: tuple[str, ...]


class Source(msgspec.Struct, frozen=True):
    """One source. `pick` takes bid, ask and time for an asset out of an answer; UNSET: it tells none."""

    name: RateSource
    base: str
    questions: tuple[Question, ...]
    pick: Callable[[Any, str], tuple[Any, Any, Any]]
    in_usdt: bool = False
    """Its prices are in USDT, not in dollars."""

    @property
    def assets(self) -> tuple[str, ...]:
        """What it knows prices of."""
        return tuple(asset for question in self.questions for asset in question.assets)

    def read(self, reply: Reply, asset: str, now_us: int) -> Price:
        """Read what an answer says of one asset. Raises RailTrouble, which says what is odd about it."""
        try:
            answer = _DECODER.decode(reply.body) if reply.status == 200 else _decode_anything(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RailTrouble(f"{self.name} answers with no JSON: {error}") from error
        if reply.status != 200:
            raise RailTrouble(f"{self.name} answers with status {reply.status}{_complaint(answer)}")
        if isinstance(answer, dict) and (answer.get("error") or answer.get("errors")):
            raise RailTrouble(f"{self.name} answers with an error{_complaint(answer)}")
        try:
            bid, ask, at = self.pick(answer, asset)
        except (KeyError, TypeError, IndexError) as error:
            raise RailTrouble(f"{self.name} answers in a form that is not known{_complaint(answer)}") from error
        price = self._dollars(bid, asset)
        if ask is not UNSET and self._dollars(ask, asset) < price:
            raise RailTrouble(f"{self.name} says that {asset} is bought for more than it is sold: {bid!s:.60}")
        whole, part = price.as_integer_ratio()  # a product of Decimals would be rounded
        return Price(whole * NANOS_PER_USD // part, now_us if at is UNSET else self._moment(at, asset, now_us))

    def _dollars(self, told: Any, asset: str) -> Decimal:
        """Read a price: plain decimals as text, or a JSON number."""
        known = isinstance(told, (int, Decimal)) and not isinstance(told, bool)
        if not known and not (isinstance(told, str) and _PLAIN.fullmatch(told)):
            raise RailTrouble(f"{self.name} says what is no price of {asset}: {told!r:.60}")
        price = Decimal(told)
        if len(price.as_tuple().digits) > _DIGITS or not _LEAST <= price <= _MOST:
            raise RailTrouble(f"{self.name} says what cannot be the price of {asset}: {told!s:.60}")
        return price

    def _moment(self, told: Any, asset: str, now_us: int) -> int:
        """Read when a price was made; not long ago, and not ahead."""
        try:
            at_us = _read_moment(told)
        except (ValueError, OverflowError) as error:
            raise RailTrouble(f"{self.name} says no known time of its price of {asset}: {told!r:.60}") from error
        if at_us > now_us + AHEAD_US:
            raise RailTrouble(f"{self.name} tells a price of {asset} from {(at_us - now_us) // US_PER_S} s ahead")
        if at_us < now_us - FRESH_US:
            raise RailTrouble(f"{self.name} tells a price of {asset} that is {(now_us - at_us) // US_PER_S} s old")
        return min(at_us, now_us)


def _decode_anything(body: bytes) -> Any:
    """Read what comes with a bad status: often a page for people."""
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _read_moment(told: Any) -> int:
    """Read seconds since 1970, or a moment as RFC 3339 writes it, into microseconds. Raises ValueError."""
    if isinstance(told, str) and "-" in told:
        moment = datetime.fromisoformat(told)
        if moment.tzinfo is None:
            raise ValueError("a moment without its zone")
        return int(moment.timestamp() * US_PER_S)
    if isinstance(told, bool) or not isinstance(told, (int, str)) or not re.fullmatch(r"\d{9,11}", str(told), re.ASCII):
        raise ValueError("no seconds since 1970")
    return int(told) * US_PER_S


def _complaint(answer: Any) -> str:
    """Give what a source says about what is wrong, where it says anything."""
    said = {name: answer[name] for name in _COMPLAINTS if answer.get(name)} if isinstance(answer, dict) else {}
    text = ", ".join(f"{name}: {value}" for name, value in said.items())
    return f": {''.join(char for char in text if char.isprintable())[:_WORDS]}" if text else ""


def _from_kraken(answer: Any, asset: str) -> tuple[Any, Any, Any]:
    """https://docs.kraken.com/api, "Get Ticker Information": arrays of price, whole lot volume, lot volume; no time."""
    pair = answer["result"][{"BTC": "XXBTZUSD", "ETH": "XETHZUSD", "USDT": "USDTZUSD"}[asset]]
    return pair["b"][0], pair["a"][0], UNSET


def _from_coinbase(answer: Any, _: str) -> tuple[Any, Any, Any]:
    """https://docs.cdp.coinbase.com/exchange, "Get product ticker": the time is that of the last trade."""
    return answer["bid"], answer["ask"], answer["time"]


def _from_bitstamp(answer: Any, _: str) -> tuple[Any, Any, Any]:
    """https://www.bitstamp.net/api, "Ticker"."""
    return answer["bid"], answer["ask"], answer["timestamp"]


def _from_binance(answer: Any, asset: str) -> tuple[Any, Any, Any]:
    """https://developers.binance.com, spot, "Symbol order book ticker"; no time."""
    if answer["symbol"] != f"{asset}USDT":
        raise KeyError("symbol")
    return answer["bidPrice"], answer["askPrice"], UNSET


_COINGECKO_IDS: Final = {"BTC": "bitcoin", "ETH": "ethereum", "USDT": "tether"}


def _from_coingecko(answer: Any, asset: str) -> tuple[Any, Any, Any]:
    """https://docs.coingecko.com, "Coin price by ids": one price, no bid; made anew about once a minute."""
    told = answer[_COINGECKO_IDS[asset]]
    return told["usd"], UNSET, told["last_updated_at"]


SOURCES: Final = (
    Source(
        "kraken",
        "https://api.kraken.com",
        (Question("/0/public/Ticker?pair=XBTUSD,ETHUSD,USDTUSD", ASSETS),),
        _from_kraken,
    ),
    Source(
        "coinbase",
        "https://api.exchange.coinbase.com",
        tuple(Question(f"/products/{asset}-USD/ticker", (asset,)) for asset in ASSETS),
        _from_coinbase,
    ),
    Source(
        "bitstamp",
        "https://www.bitstamp.net",
        tuple(Question(f"/api/v2/ticker/{asset.lower()}usd/", (asset,)) for asset in ASSETS),
        _from_bitstamp,
    ),
    Source(
        "binance",
        "https://data-api.binance.vision",
        tuple(Question(f"/api/v3/ticker/bookTicker?symbol={asset}USDT", (asset,)) for asset in ("BTC", "ETH")),
        _from_binance,
        in_usdt=True,
    ),
    Source(
        "coingecko",
        "https://api.coingecko.com",
        (
            Question(
                f"/api/v3/simple/price?ids={','.join(_COINGECKO_IDS.values())}&vs_currencies=usd"
                "&include_last_updated_at=true&precision=full",
                ASSETS,
            ),
        ),
        _from_coingecko,
    ),
)
