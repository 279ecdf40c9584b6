"""Sources of rates on this machine, by real HTTP: they answer in the shapes of the real ones, or as badly as is asked.

`settings.payments.rates_url` points at it; the first part of a path is the source's name.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Literal

from farebox.http.exchange import Exchange
from farebox.http.server import HttpServer

Manner = Literal["right", "outlier", "stale", "error", "status", "other shape", "no json", "huge", "slow"]

_PAIRS: Final = {"BTC": "XXBTZUSD", "ETH": "XETHZUSD", "USDT": "USDTZUSD"}
_IDS: Final = {"BTC": "bitcoin", "ETH": "ethereum", "USDT": "tether"}
_ERRORS: Final = {
    "kraken": (200, {"error": ["EGeneral:Too many requests"]}),
    "coinbase": (404, {"message": "NotFound"}),
    "bitstamp": (404, {"status": "error", "reason": "Currency pair not supported", "code": "API0017"}),
    "binance": (400, {"code": -1121, "msg": "Invalid symbol."}),
    "coingecko": (429, {"status": {"error_code": 429, "error_message": "You've exceeded the Rate Limit."}}),
}
"""How each source says no."""


class FakeRates:
    """All sources. `prices`: dollars a coin, as all of them say; `manners`: how a source behaves, if not rightly."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.prices = {"BTC": Decimal("64390.10"), "ETH": Decimal("3120.55"), "USDT": Decimal("0.9998")}
        self.manners: dict[str, Manner] = {}
        self.asked: list[str] = []
        """Sources in the order of the requests."""
        self.url = ""
        self.now_s = now_s
        self.somebody_waits = asyncio.Event()
        """Set once a slow source has been asked."""
        self._closing = asyncio.Event()

    async def serve(self, exchange: Exchange) -> None:
        _, source, *rest = exchange.path.split("/")
        self.asked.append(source)
        manner = self.manners.get(source, "right")
        if manner == "slow":
            self.somebody_waits.set()
            await self._closing.wait()
        if manner == "error":
            status, said = _ERRORS[source]
            self._answer(exchange, status, said)
        elif manner == "status":
            exchange.respond(503, [], b"<html>down for maintenance</html>")
        elif manner == "no json":
            exchange.respond(200, [], b"<html>Just a moment...</html>")
        elif manner == "huge":
            exchange.respond(200, [], b"[" + b"0," * 200_000 + b"0]")
        elif manner == "other shape":
            self._answer(exchange, 200, {"data": [{"price": 1}]})
        else:
            self._answer(exchange, 200, self._right(source, "/".join(rest), exchange.query, manner))

    def close(self) -> None:
        """Let those go who wait for a slow source."""
        self._closing.set()

    def _answer(self, exchange: Exchange, status: int, said: object) -> None:
        exchange.respond(status, [(b"content-type", b"application/json")], json.dumps(said).encode())

    def _right(self, source: str, path: str, query: str, manner: Manner) -> object:
        now_s = self.now_s() - (600 if manner == "stale" else 0)
        bids = {asset: price * (Decimal("1.1") if manner == "outlier" else 1) for asset, price in self.prices.items()}
        asks = {asset: bid * Decimal("1.0001") for asset, bid in bids.items()}
        asset = _asset_of(source, path, query)
        if source == "kraken":
            pairs = {
                _PAIRS[one]: {"a": [str(asks[one]), "1", "1.000"], "b": [str(bids[one]), "2", "2.000"]} for one in bids
            }
            return {"error": [], "result": pairs}
        if source == "coinbase":
            moment = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            return {"bid": str(bids[asset]), "ask": str(asks[asset]), "price": str(bids[asset]), "time": moment}
        if source == "bitstamp":
            return {"bid": str(bids[asset]), "ask": str(asks[asset]), "timestamp": str(int(now_s))}
        if source == "binance":
            bid, ask = (f"{side[asset] / self.prices['USDT']:.8f}" for side in (bids, asks))
            return {"symbol": f"{asset}USDT", "bidPrice": bid, "bidQty": "1", "askPrice": ask, "askQty": "1"}
        return {_IDS[one]: {"usd": float(bids[one]), "last_updated_at": int(now_s)} for one in bids}


def _asset_of(source: str, path: str, query: str) -> str:
    """Give what a request is about, where it is about one asset alone."""
    if source == "binance":
        return query.removeprefix("symbol=").removesuffix("USDT")
    return path.removeprefix("products/").removeprefix("api/v2/ticker/").upper().partition("-")[0].split("USD/")[0]


@asynccontextmanager
async def serving_rates(now_s: Callable[[], float] = time.time, port: int = 0) -> AsyncIterator[FakeRates]:
    """Serve them on loopback; `url` is what the settings need."""
    fake = FakeRates(now_s)
    server = HttpServer(fake.serve, on_bad_request=lambda exchange, _: exchange.respond(400, [], b""))
    fake.url = f"http://127.0.0.1:{await server.listen('127.0.0.1', port)}"
    try:
        yield fake
    finally:
        fake.close()
        await server.close(1)
        await server.shut()
