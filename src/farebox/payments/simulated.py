"""A simulated rail: top-ups that nobody pays for, to see every state of the page. Marked as such wherever it shows."""

import secrets
from typing import Final

from farebox.money import NANOS_PER_USD
from farebox.payments.deposits import Deposits
from farebox.payments.quoting import units_for
from farebox.payments.rails import Asset, Quote, Rate, Sighting, Tip
from farebox.payments.records import Topup, unfinished
from farebox.store.protocol import Store

_LASTS_S: Final = 30 * 60
_WORTH: Final = {"BTC": 100_000, "ETH": 4_000, "USDT": 1}
"""Dollars a coin: round figures, so that nobody takes them for a market's."""
_NEEDED: Final = {"BTC": 2, "ETH": 4, "USDT": 4}


class SimulatedRail:
    """See Rail."""

    name: str = "simulated"
    simulated: bool = True
    assets: tuple[Asset, ...] = (
        Asset("BTC", "Bitcoin", "Bitcoin", 8),
        Asset("ETH", "Ether", "Ethereum", 18),
        Asset("USDT", "Tether", "Ethereum", 6),
    )

    async def why_not(self, asset: Asset, now_us: int) -> str:  # noqa: ARG002  there is always some
        return ""

    def least_nanos(self, asset: Asset) -> int:  # noqa: ARG002  the same for all
        return NANOS_PER_USD

    async def quote(self, account_id: int, asset: Asset, amount_nanos: int, now_us: int) -> Quote:  # noqa: ARG002  anybody's
        rate = simulated_rate(asset.code, now_us)
        return Quote(
            units=units_for(amount_nanos, rate.nanos, asset),
            address=f"simulated-{secrets.token_hex(14)}",
            rate=rate,
            needed=_NEEDED[asset.code],
            lasts_s=_LASTS_S,
        )

    async def rate(self, asset: str, now_us: int) -> Rate | None:
        return simulated_rate(asset, now_us) if asset in _WORTH else None

    def needed(self, asset: str, worth_nanos: int | None) -> int:  # noqa: ARG002  the same for all
        return _NEEDED.get(asset, 1)

    def uri(self, asset: Asset, address: str, units: int) -> str:  # noqa: ARG002  no wallet reads it
        return address

    def tx_url(self, tx: str) -> str:  # noqa: ARG002  there is none
        return ""


def simulated_rate(asset: str, now_us: int) -> Rate:
    """Give what a simulated coin is worth, always the same."""
    nanos = _WORTH[asset] * NANOS_PER_USD
    return Rate(nanos, now_us, 0, {"simulated": nanos})


def simulated_payment(topup: Topup, units: int, now_us: int) -> Sighting:
    """Pay a top-up, in thought."""
    return Sighting(
        rail=topup.rail,
        ident=topup.id,
        asset=topup.asset,
        address=topup.address,
        units=units,
        confirmations=0,
        seen_us=now_us,
        topup_id=topup.id,
    )


class SimulatedWatcher:
    """See Watcher: each look is another confirmation."""

    name: str = SimulatedRail.name
    pause_s: float = 2.0

    def __init__(self, store: Store, deposits: Deposits) -> None:
        self._store = store
        self._deposits = deposits

    async def look(self, now_us: int) -> Tip:
        sightings = [
            Sighting(
                rail=one.rail,
                ident=one.ident,
                asset=one.asset,
                address=one.address,
                units=int(one.units),
                confirmations=one.confirmations + 1,
                final=one.confirmations + 1 >= one.needed,
                seen_us=one.seen_at_us,
                topup_id=one.topup_id,
            )
            for one in await unfinished(self._store, self.name)
        ]
        await self._deposits.apply(sightings, now_us)
        return Tip(0, "", now_us)

    async def close(self) -> None:
        pass
