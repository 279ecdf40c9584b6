"""Rails: the ways money comes in. A rail quotes what to pay and where; what arrives is told to `Topups`."""

from typing import Protocol

from msgspec import Struct


class Asset(Struct, frozen=True):
    """What can be paid with: its ticker, its name, the network it moves on, and the decimals of its smallest unit."""

    code: str
    name: str
    network: str
    decimals: int

    def show(self, units: int) -> str:
        """Write an amount in coins, exactly, with all the decimals that are not zero."""
        whole, rest = divmod(units, 10**self.decimals)
        places = f"{rest:0{self.decimals}d}".rstrip("0")
        return f"{whole}.{places}" if places else str(whole)


class Quote(Struct, frozen=True):
    """What to pay until when. `rate` says for people what one coin is worth and who says so."""

    units: int
    address: str
    rate: str
    needed: int
    """Confirmations until it is credited."""
    lasts_s: int


class Rail(Protocol):
    """One way for money to come in."""

    name: str
    """What top-ups are marked with in the books."""
    assets: tuple[Asset, ...]
    simulated: bool
    """No real money comes by it."""

    async def quote(self, asset: Asset, amount_nanos: int) -> Quote:
        """Say what a customer has to pay. Raises InvalidRequest where nothing can be quoted now."""
        ...
