"""BTCPay Server as a rail: Bitcoin and Lightning through the operator's own processor.

An invoice there is a top-up here, and its rate is the one that the server has locked. What came is read from the
server's API alone: a webhook only says where to look now rather than in a minute. So a webhook that is lost costs
nothing but time, and one that lies nothing at all.
"""

import secrets
from collections.abc import Callable
from typing import Final

from farebox.clock import US_PER_S
from farebox.errors import InvalidRequest, RailTrouble
from farebox.money import NANOS_PER_USD
from farebox.payments.btcpay_api import CHAIN, LIGHTNING, BtcpayApi, Method, SpeedPolicy
from farebox.payments.quoting import worth
from farebox.payments.rails import Asset, Quote, Rate
from farebox.payments.rates.rates import Rates
from farebox.payments.settings import PaymentSettings
from farebox.payments.uris import bitcoin_uri
from farebox.store.protocol import Store

NAME: Final = "btcpay"
ORDER: Final = "farebox-"
"""How the order ids of our invoices begin: a store may have others."""
BITCOIN: Final = Asset("BTC", "Bitcoin", "Bitcoin", 8)
BY_LIGHTNING: Final = Asset("BTC-LN", "Bitcoin", "Lightning", 8)
"""Also in satoshis: what is less than one of a payment is not counted."""
BEHIND_US: Final = 10 * 60 * US_PER_S
"""A server that has not answered for so long is not offered."""
SPEEDS: Final[tuple[tuple[int | None, SpeedPolicy, int], ...]] = (
    (100, "MediumSpeed", 1),
    (1000, "LowMediumSpeed", 2),
    (None, "LowSpeed", 6),
)
"""Below so many dollars: the policy of an invoice, and the confirmations that it stands for."""
_MOST_PERCENT: Final = 103
_LEAST_PERCENT: Final = 75
"""What the server's rate may be of the market's. It may be lower by a spread of its own, and not much higher."""
_DUE_PERCENT: Final = (99, 125)
"""What an invoice may ask of what was wanted: a network fee may come on top."""
_ADDRESS_CHARS: Final = 1500


class BtcpayRail:
    """See Rail. `warn` is told why no invoice could be made."""

    name: str = NAME
    simulated: bool = False

    def __init__(
        self,
        store: Store,
        api: BtcpayApi,
        rates: Rates,
        settings: PaymentSettings,
        *,
        chain: bool,
        lightning: bool,
        warn: Callable[..., object],
    ) -> None:
        self.assets: tuple[Asset, ...] = (BITCOIN,) * chain + (BY_LIGHTNING,) * lightning
        self._store = store
        self._api = api
        self._rates = rates
        self._settings = settings
        self._warn = warn

    async def why_not(self, asset: Asset, now_us: int) -> str:
        rows = await self._store.fetch("SELECT looked_at FROM watcher WHERE name = ?", (self.name,))
        looked_at = rows[0][0] if rows else None
        if looked_at is None or now_us - looked_at > BEHIND_US:
            return f"{asset.network} cannot be watched at the moment: choose another coin, or come back a little later"
        return ""

    def least_nanos(self, asset: Asset) -> int:  # noqa: ARG002  the same for both
        return self._settings.least_usd * NANOS_PER_USD

    async def quote(self, account_id: int, asset: Asset, amount_nanos: int, now_us: int) -> Quote:  # noqa: ARG002  whose it is stays here
        wanted = LIGHTNING if asset.code == BY_LIGHTNING.code else CHAIN
        try:
            invoice = await self._api.create_invoice(
                amount_nanos,
                f"{ORDER}{secrets.token_hex(8)}",
                wanted,
                lasts_minutes=self._settings.quote_minutes,
                speed=_speed(amount_nanos)[0],
            )
            methods = await self._api.methods(invoice.id) or []
            method = next((one for one in methods if one.id == wanted), None)
            if method is None:
                raise RailTrouble(f"invoice {invoice.id} cannot be paid by {wanted}: the store does not offer it")
            await self._look_over(method, amount_nanos, now_us)
        except RailTrouble as trouble:
            self._warn("quote_failed", rail=self.name, asset=asset.code, error=str(trouble))
            raise InvalidRequest(
                f"{asset.network} cannot be paid by at the moment: choose another coin, or try again in a minute"
            ) from trouble
        return Quote(
            units=method.due_satoshis,
            address=method.destination,
            rate=Rate(method.rate_nanos, now_us, 0, {self.name: method.rate_nanos}),
            needed=self.needed(asset.code, amount_nanos),
            lasts_s=self._settings.quote_minutes * 60,
            reference=invoice.id,
        )

    async def rate(self, asset: str, now_us: int) -> Rate | None:
        return await self._rates.now("BTC", now_us) if asset in {BITCOIN.code, BY_LIGHTNING.code} else None

    def needed(self, asset: str, worth_nanos: int | None) -> int:
        return 1 if asset == BY_LIGHTNING.code else _speed(worth_nanos)[1]

    def uri(self, asset: Asset, address: str, units: int) -> str:
        return f"lightning:{address}" if asset.code == BY_LIGHTNING.code else bitcoin_uri(address, units)

    def tx_url(self, tx: str) -> str:  # noqa: ARG002  the server does not tell which chain it is on
        return ""

    async def _look_over(self, method: Method, amount_nanos: int, now_us: int) -> None:
        """Refuse what nobody should pay: no address, a rate far from the market's, an amount that does not fit it."""
        place, begins = method.destination, "ln" if method.id == LIGHTNING else ""
        readable = place.isascii() and place.isalnum() and len(place) <= _ADDRESS_CHARS
        if not readable or not place.lower().startswith(begins):
            raise RailTrouble(f"{place[:100]!r} is nothing that can be paid by {method.id}")
        if method.rate_nanos <= 0 or method.due_satoshis <= 0:
            raise RailTrouble(f"{method.due_satoshis} satoshis at {method.rate_nanos} nano-dollars a coin are no quote")
        due = worth(method.due_satoshis, method.rate_nanos, BITCOIN.decimals) * 100
        if not amount_nanos * _DUE_PERCENT[0] <= due <= amount_nanos * _DUE_PERCENT[1]:
            raise RailTrouble(f"{amount_nanos} nano-dollars were asked for, the invoice is about {due // 100}")
        market = await self._rates.now("BTC", now_us)
        if market is None:
            return
        bid = market.nanos * 1_000_000 // (1_000_000 - market.spread_ppm)
        if not bid * _LEAST_PERCENT <= method.rate_nanos * 100 <= bid * _MOST_PERCENT:
            raise RailTrouble(f"its rate is {method.rate_nanos} nano-dollars a coin, the market's is {bid}")


def _speed(worth_nanos: int | None) -> tuple[SpeedPolicy, int]:
    """Give how sure an invoice must be of its payments; of unknown worth, as sure as the dearest."""
    for below_usd, policy, blocks in SPEEDS:
        if below_usd is None or (worth_nanos is not None and worth_nanos < below_usd * NANOS_PER_USD):
            return policy, blocks
    return SPEEDS[-1][1:]
