"""A simulated rail: top-ups that nobody pays for, to see every state of the page. Marked as such wherever it shows."""

import secrets
from decimal import ROUND_UP, Decimal
from typing import Final

from farebox.money import NANOS_PER_USD
from farebox.payments.rails import Asset, Quote

_LASTS_S: Final = 30 * 60
_WORTH: Final = {"BTC": Decimal(100_000), "ETH": Decimal(4_000), "USDT": Decimal(1)}
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

    async def quote(self, asset: Asset, amount_nanos: int) -> Quote:
        coins = Decimal(amount_nanos) / NANOS_PER_USD / _WORTH[asset.code]
        units = int((coins * 10**asset.decimals).to_integral_value(ROUND_UP))
        return Quote(
            units=units,
            address=f"simulated-{secrets.token_hex(14)}",
            rate=f"1 {asset.code} = ${_WORTH[asset.code]:,} (simulated)",
            needed=_NEEDED[asset.code],
            lasts_s=_LASTS_S,
        )
