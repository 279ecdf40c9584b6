"""Rails of chains that the operator's own node watches: an address of the account's own, the market's rate, a depth."""

from typing import Final, Protocol

from farebox.clock import US_PER_S
from farebox.errors import InvalidRequest
from farebox.money import NANOS_PER_USD
from farebox.payments.addresses import Addresses
from farebox.payments.keys import ExtendedKey
from farebox.payments.quoting import units_for
from farebox.payments.rails import Asset, Quote, Rate
from farebox.payments.rates.rates import Rates
from farebox.payments.settings import Depth, PaymentSettings, blocks_for
from farebox.store.protocol import Store

BEHIND_US: Final = 10 * 60 * US_PER_S
"""A watcher that has not got through for so long is behind: what it watches is not offered."""


class WriteUri(Protocol):
    """Writes what a wallet reads out of a QR code."""

    def __call__(self, asset: Asset, address: str, units: int) -> str: ...


class CoinRail:
    """See Rail. `links` is where people look at a transaction, with `{}` for it; empty: nowhere."""

    simulated: bool = False

    def __init__(
        self,
        name: str,
        assets: tuple[Asset, ...],
        store: Store,
        addresses: Addresses,
        rates: Rates,
        key: ExtendedKey,
        settings: PaymentSettings,
        *,
        depths: tuple[Depth, ...],
        least_usd: int,
        write_uri: WriteUri,
        links: str = "",
    ) -> None:
        self.name = name
        self.assets = assets
        self._store = store
        self._addresses = addresses
        self._rates = rates
        self._key = key
        self._settings = settings
        self._depths = depths
        self._least_usd = least_usd
        self._write_uri = write_uri
        self._links = links

    async def why_not(self, asset: Asset, now_us: int) -> str:
        rows = await self._store.fetch("SELECT looked_at FROM watcher WHERE name = ?", (self.name,))
        looked_at = rows[0][0] if rows else None
        if looked_at is None or now_us - looked_at > BEHIND_US:
            return f"{asset.network} cannot be watched at the moment: choose another coin, or come back a little later"
        if await self._rates.now(asset.code, now_us) is None:
            return f"nobody can say at the moment what {asset.code} is worth: choose another coin, or come back later"
        return ""

    def least_nanos(self, asset: Asset) -> int:  # noqa: ARG002  the same for all of a chain
        return self._least_usd * NANOS_PER_USD

    async def quote(self, account_id: int, asset: Asset, amount_nanos: int, now_us: int) -> Quote:
        rate = await self._rates.now(asset.code, now_us)
        if rate is None:
            raise InvalidRequest(f"nobody can say at the moment what {asset.code} is worth: try again in a minute")
        return Quote(
            units=units_for(amount_nanos, rate.nanos, asset),
            address=await self._addresses.fresh(account_id, self.name, asset.code, self._key, now_us),
            rate=rate,
            needed=self.needed(asset.code, amount_nanos),
            lasts_s=self._settings.quote_minutes * 60,
        )

    async def rate(self, asset: str, now_us: int) -> Rate | None:
        return await self._rates.now(asset, now_us)

    def needed(self, asset: str, worth_nanos: int | None) -> int:  # noqa: ARG002  the same for all of a chain
        return blocks_for(self._depths, worth_nanos)

    def uri(self, asset: Asset, address: str, units: int) -> str:
        return self._write_uri(asset, address, units)

    def tx_url(self, tx: str) -> str:
        return self._links.format(tx) if self._links else ""
