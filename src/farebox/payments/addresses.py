"""Addresses that customers pay to: each belongs to one account for ever, and is quoted until money has come to it.

Positions below a key are given out in turn, one counter for all chains that the key is used on: what is sent on the
wrong one still belongs to the customer whose address it is.
"""

import asyncio
from typing import Final

from msgspec import Struct

from farebox.errors import BrokenInvariant, StoreConflict
from farebox.payments.keys import ExtendedKey, Family
from farebox.store.protocol import Store

USUAL_GAP: Final = 20
"""How many unused addresses in a row wallets look past before they stop, where nothing else is set (BIP44)."""
_TRIES: Final = 100
_COLUMNS: Final = (
    "id, family, address, key_id, position, account_id, rail, asset, created_at, used_at, looked_at, swept_at"
)


class DepositAddress(Struct, frozen=True):
    """One address as it stands in the books."""

    id: int
    family: Family
    address: str
    key_id: int
    position: int
    account_id: int
    rail: str
    asset: str
    created_at_us: int
    used_at_us: int | None
    looked_at_us: int
    swept_at_us: int | None

    @property
    def path(self) -> str:
        """Where it is below the account's key."""
        return f"0/{self.position}"


class Gap(Struct, frozen=True):
    """How far addresses of a key have been given out and used, and what that asks of the operator's wallet."""

    highest_issued: int | None
    highest_used: int | None
    run: int
    """The most addresses in a row that nobody has used, with a used one behind them."""
    waiting: int
    """Addresses behind the last used one that have been given out."""

    @property
    def limit(self) -> int:
        """The least gap limit with which a wallet sees all that came, and whatever may come to what was given out."""
        return max(USUAL_GAP, self.run + 1, self.waiting)


class Addresses:
    """Gives out addresses and finds them again. Any number of processes may do so at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ids: dict[str, int] = {}
        self._turn = asyncio.Lock()

    async def open_key(self, key: ExtendedKey, now_us: int) -> int:
        """Give the number that a key has in the books, writing it there the first time."""
        known = self._ids.get(key.fingerprint)
        if known is None:
            new = (
                "INSERT INTO watch_key (fingerprint, family, created_at) VALUES (?, ?, ?) "
                "ON CONFLICT (fingerprint) DO NOTHING"
            )
            await self._store.write([(new, (key.fingerprint, key.family, now_us))])
            known = await self.find_key(key)
            assert known is not None
            self._ids[key.fingerprint] = known
        return known

    async def find_key(self, key: ExtendedKey) -> int | None:
        """Give the number that a key has in the books; None where nothing was ever done with it."""
        rows = await self._store.fetch("SELECT id FROM watch_key WHERE fingerprint = ?", (key.fingerprint,))
        return int(rows[0][0]) if rows else None

    async def fresh(self, account_id: int, rail: str, asset: str, key: ExtendedKey, now_us: int) -> str:
        """Give an account's address for an asset: the one it has as long as nothing came there, else a new one."""
        key_id = await self.open_key(key, now_us)
        async with self._turn:
            for _ in range(_TRIES):
                if found := await self._unused(account_id, rail, asset, key_id):
                    return found
                if made := await self._make(account_id, rail, asset, key, key_id, now_us):
                    return made
        raise BrokenInvariant(f"watch_key {key_id} gives no new address: its next positions are always taken")

    async def all_of(self, family: Family) -> list[DepositAddress]:
        return await self._select("WHERE family = ? ORDER BY id", family)

    async def of_asset(self, rail: str, asset: str) -> list[DepositAddress]:
        return await self._select("WHERE rail = ? AND asset = ? ORDER BY id", rail, asset)

    async def of_key(self, key_id: int) -> list[DepositAddress]:
        return await self._select("WHERE key_id = ? ORDER BY position", key_id)

    async def export(self) -> list[DepositAddress]:
        """Give the addresses that money came to: what there is to sweep, key by key."""
        return await self._select("WHERE used_at IS NOT NULL ORDER BY key_id, position")

    async def gap(self, key_id: int) -> Gap:
        """Tell how far the addresses of a key have been given out and used."""
        ends = (
            "SELECT max(position), max(CASE WHEN used_at IS NOT NULL THEN position END) FROM deposit_address "
            "WHERE key_id = ?"
        )
        between = (
            "SELECT max(position - before - 1) FROM (SELECT position, lag(position, 1, -1) OVER (ORDER BY position) "
            "AS before FROM deposit_address WHERE key_id = ? AND used_at IS NOT NULL) AS used"
        )
        ((issued, used),) = await self._store.fetch(ends, (key_id,))
        ((run,),) = await self._store.fetch(between, (key_id,))
        behind = -1 if used is None else used
        return Gap(issued, used, run or 0, 0 if issued is None else issued - behind)

    async def created_us(self, key_id: int, position: int) -> int | None:
        """Tell when the first address at a position or behind it was given out; None where none was."""
        where = "SELECT min(created_at) FROM deposit_address WHERE key_id = ? AND position >= ?"
        ((at_us,),) = await self._store.fetch(where, (key_id, position))
        return None if at_us is None else int(at_us)

    async def _unused(self, account_id: int, rail: str, asset: str, key_id: int) -> str:
        rows = await self._store.fetch(
            "SELECT address FROM deposit_address WHERE account_id = ? AND rail = ? AND asset = ? AND key_id = ? "
            "AND used_at IS NULL",
            (account_id, rail, asset, key_id),
        )
        return str(rows[0][0]) if rows else ""

    async def _make(self, account_id: int, rail: str, asset: str, key: ExtendedKey, key_id: int, now_us: int) -> str:
        """Write down the next address of a key. Empty where another process was faster: look again."""
        ((position,),) = await self._store.fetch(
            "SELECT coalesce(max(position) + 1, 0) FROM deposit_address WHERE key_id = ?", (key_id,)
        )
        while (address := key.address(position)) is None or await self._was_paid_to(address):
            position += 1
        new = (
            "INSERT INTO deposit_address (family, address, key_id, position, account_id, rail, asset, created_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        )
        try:
            # Another process may have taken the position, or made this account's address: both are unique.
            await self._store.write([(new, (key.family, address, key_id, position, account_id, rail, asset, now_us))])
        except StoreConflict:
            return ""
        return address

    async def _was_paid_to(self, address: str) -> bool:
        """Whether money came to an address that nobody has: newer books had given it to somebody, who may pay again."""
        return bool(await self._store.fetch("SELECT 1 FROM payment WHERE address = ? LIMIT 1", (address,)))

    async def _select(self, where: str, *params: str | int) -> list[DepositAddress]:
        rows = await self._store.fetch(f"SELECT {_COLUMNS} FROM deposit_address {where}", params)  # noqa: S608  fixed
        return [DepositAddress(*row) for row in rows]
