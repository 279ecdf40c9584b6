"""Rails: the ways money comes in. A rail says what to pay and where; its watcher reports what it sees of payments.

Neither moves money: `deposits.Deposits` alone does, from what watchers report.
"""

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
        places = f"{rest:0{self.decimals}d}".rstrip("0") if self.decimals else ""
        return f"{whole}.{places}" if places else str(whole)


class Rate(Struct, frozen=True):
    """What a coin is worth: the median of the sources that were fresh, less the spread. Stored as JSON."""

    nanos: int
    """Nano-dollars for one whole coin, the spread taken off."""
    at: int
    """When it was made, in microseconds."""
    spread_ppm: int
    sources: dict[str, int]
    """Nano-dollars a coin, as each source said."""


class Quote(Struct, frozen=True):
    """What to pay until when."""

    units: int
    address: str
    rate: Rate
    needed: int
    """Confirmations until it is credited, if that much is paid."""
    lasts_s: int
    reference: str = ""
    """A processor's own name for it."""


class Sighting(Struct, frozen=True, kw_only=True):
    """What a watcher sees of one payment now. Telling it again, late, or after it was undone does no harm."""

    rail: str
    ident: str
    """The payment's identity on its rail, the same however often it is mined: txid:vout, tx hash:ordinal of the log."""
    asset: str
    address: str
    units: int
    confirmations: int
    """1: in the newest block. 0: in no block. Below: it can come no more (conflicting, dropped)."""
    final: bool = False
    """It is so deep that its watcher will look at it no more."""
    seen_us: int
    """When it, or what it replaces, was first seen anywhere: the quote that held then is the one that counts."""
    tx: str | None = None
    block: str | None = None
    height: int | None = None
    topup_id: str | None = None
    """Where the rail knows which top-up it is for; else its address tells."""


class Rail(Protocol):
    """One way for money to come in."""

    name: str
    """What top-ups and payments are marked with in the books."""
    assets: tuple[Asset, ...]
    simulated: bool
    """No real money comes by it."""

    async def why_not(self, asset: Asset, now_us: int) -> str:
        """Say why an asset is not to be had now, for customers; empty when it is."""
        ...

    def least_nanos(self, asset: Asset) -> int:
        """Give the least that one may ask to pay."""
        ...

    async def quote(self, account_id: int, asset: Asset, amount_nanos: int, now_us: int) -> Quote:
        """Say what a customer has to pay. Raises InvalidRequest where nothing can be quoted now."""
        ...

    async def rate(self, asset: str, now_us: int) -> Rate | None:
        """Give what a coin is worth now; None where nobody can say."""
        ...

    def needed(self, asset: str, worth_nanos: int | None) -> int:
        """Give the confirmations that a payment of that worth needs; settings.FINAL: until its chain calls it final."""
        ...

    def uri(self, asset: Asset, address: str, units: int) -> str:
        """Write what a wallet reads out of a QR code."""
        ...

    def tx_url(self, tx: str) -> str:
        """Link to a transaction where people can look at it; empty where there is no such place."""
        ...


class Tip(Struct, frozen=True):
    """The newest block a watcher has seen. `at_us` is when it was made."""

    height: int
    block: str
    at_us: int


class Watcher(Protocol):
    """Looks at one chain or processor, and tells `Deposits` of every payment that is not final."""

    name: str
    """The rail's name."""
    pause_s: float

    async def look(self, now_us: int) -> Tip:
        """Look once: read, tell, and only then move the cursor. Whatever stops it, the next look begins there again.

        Raises RailTrouble.
        """
        ...

    async def close(self) -> None: ...
