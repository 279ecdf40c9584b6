"""Chain and books compared, address by address, by another road than the watchers': what differs becomes an incident.

An address whose payments are not final yet is left for the next time. One that has sent (the operator has swept it) may
hold less than the books say came, never more.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from farebox.errors import RailTrouble
from farebox.payments.incidents import opened
from farebox.payments.rails import Asset
from farebox.payments.records import Payment, select_payments
from farebox.store.protocol import Statement, Store

_PAGE: Final = 500


class Holding(msgspec.Struct, frozen=True):
    """What an address holds by its chain, as deep as nothing can be undone. Units are of the asset's smallest."""

    units: int
    has_sent: bool


class ChainView(Protocol):
    """Answers what addresses hold, without asking what its watcher has seen."""

    async def holdings(self, asset: str, addresses: Sequence[str]) -> dict[str, Holding]:
        """Give what each address holds of an asset. Raises RailTrouble."""
        ...

    async def addresses(self, asset: str) -> list[str]:
        """Give the addresses where money of that asset counts."""
        ...


class Outcome(msgspec.Struct, frozen=True):
    """One asset of one rail, compared."""

    rail: str
    asset: str
    at_us: int
    looked_at: int
    chain_units: int
    books_units: int
    differences: tuple[str, ...] = ()
    error: str = ""
    """Why it could not be compared."""


class Reconciler:
    """Compares, and writes down what came of it."""

    def __init__(self, store: Store, views: Mapping[str, ChainView], assets: Mapping[str, Sequence[Asset]]) -> None:
        self._store = store
        self._views = views
        self._assets = assets

    async def compare(self, now_us: int) -> list[Outcome]:
        """Compare all rails that a chain can be asked about. A rail that does not answer is told, and left."""
        outcomes = []
        for rail, view in self._views.items():
            for asset in self._assets.get(rail, ()):
                try:
                    outcomes.append(await self._compare(rail, asset, view, now_us))
                except RailTrouble as trouble:
                    outcomes.append(Outcome(rail, asset.code, now_us, 0, 0, 0, error=str(trouble)))
        return outcomes

    async def is_due(self, now_us: int, every_us: int) -> bool:
        """Whether the last comparison is so long ago that another is due."""
        rows = await self._store.fetch("SELECT max(at) FROM reconciliation")
        return rows[0][0] is None or bool(now_us - rows[0][0] >= every_us)

    async def _compare(self, rail: str, asset: Asset, view: ChainView, now_us: int) -> Outcome:
        addresses = await view.addresses(asset.code)
        paid = await self._paid(rail, asset.code)
        chain_units = books_units = looked_at = 0
        differences: list[str] = []
        statements: list[Statement] = []
        for begin in range(0, len(addresses), _PAGE):
            some = addresses[begin : begin + _PAGE]
            holdings = await view.holdings(asset.code, some)
            for address in some:
                payments = paid.get(address, [])
                if any(not one.final and one.state not in {"gone", "stray"} for one in payments):
                    continue
                holding = holdings[address]
                booked = sum(int(one.units) for one in payments if one.state in {"crediting", "credited", "stray"})
                looked_at, chain_units, books_units = looked_at + 1, chain_units + holding.units, books_units + booked
                if holding.units > booked or (holding.units < booked and not holding.has_sent):
                    held, known = asset.show(holding.units), asset.show(booked)
                    words = f"{address} on {asset.network} holds {held} {asset.code}, the books know of {known} there"
                    differences.append(words)
                    statements.append(opened("difference", f"{rail}:{asset.code}:{address}", words, now_us))
        values = (rail, asset.code, now_us, looked_at, str(chain_units), str(books_units), len(differences))
        insert = (
            "INSERT INTO reconciliation (rail, asset, at, looked_at, chain_units, books_units, differences) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        await self._store.write([(insert, values), *statements])
        return Outcome(rail, asset.code, now_us, looked_at, chain_units, books_units, tuple(differences))

    async def _paid(self, rail: str, asset: str) -> dict[str, list[Payment]]:
        by_address: dict[str, list[Payment]] = {}
        for payment in await select_payments(self._store, "WHERE rail = ? AND asset = ?", (rail, asset)):
            by_address.setdefault(payment.address, []).append(payment)
        return by_address


async def last_outcomes(store: Store) -> list[Outcome]:
    """Give the last comparison of each asset of each rail."""
    rows = await store.fetch(
        "SELECT rail, asset, at, looked_at, chain_units, books_units, differences FROM reconciliation r "
        "WHERE at = (SELECT max(at) FROM reconciliation l WHERE l.rail = r.rail AND l.asset = r.asset) "
        "ORDER BY rail, asset"
    )
    return [
        Outcome(rail, asset, at, looked_at, int(chain), int(books), ("",) * differences)
        for rail, asset, at, looked_at, chain, books, differences in rows
    ]
