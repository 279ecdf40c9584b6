"""Batches as rows: what they are and how their items stand, never what is asked in them. Moves no money."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from farebox.billing.ledger import NO_RUN
from farebox.books.batches import cancelling
from farebox.clock import iso
from farebox.store.protocol import Row, Statement, Store

_BATCH: Final = (
    "id, account_id, key_id, way, state, price_version, percent, upstream, upstream_id, headers, wrapped_key, "
    "sealed_key, run_id, created_at, expires_at, cancel_at, ended_at, archived_at, items, succeeded, errored, "
    "canceled, expired"
)
_READ: Final = f"SELECT {_BATCH} FROM batch"  # noqa: S608
_NEW: Final = (
    "id, account_id, key_id, way, state, price_version, percent, upstream, headers, wrapped_key, sealed_key, run_id, "
    "lease_until, created_at, expires_at, items, held_nanos"
)
_ITEM: Final = "id, place, custom_id, model, caches_long, state, sends"
_ROWS: Final = 40
"""Rows written by one statement, and statements in one transaction: nobody else waits long."""
_STATEMENTS: Final = 10
_IDS: Final = 400
_PAGE: Final = 2_000
OPEN: Final = "'waiting', 'sent', 'answered'"
"""States of items whose holds have not ended."""
_LEASE_US: Final = 30_000_000
_FREE: Final = (
    "(lease_until < now_us() OR EXISTS (SELECT 1 FROM run r WHERE r.id = batch.run_id "
    "AND (r.stopped_at IS NOT NULL OR r.reaped_at IS NOT NULL)))"
)
"""Whether no process works on a batch: its lease has lapsed, or it was that of one that has gone."""
T = TypeVar("T")


class Batch(msgspec.Struct, frozen=True):
    """A batch. Moments are microseconds UTC; the last four figures count once it has ended."""

    id: str
    account_id: int
    key_id: int
    way: str
    state: str
    price_version: int
    percent: int
    upstream: str | None
    upstream_id: str | None
    headers: str
    wrapped_key: bytes | None
    sealed_key: bytes | None
    run_id: int
    created_us: int
    expires_us: int
    cancel_us: int | None
    ended_us: int | None
    archived_us: int | None
    items: int
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0

    @property
    def own(self) -> bool:
        """Whether Farebox runs it itself."""
        return self.way == "own"

    def shown(self, base: str) -> dict[str, Any]:
        """Give it as the API shows it; `base` is the address of batches that the client can reach."""
        ended = self.state == "ended"
        counts = (self.succeeded, self.errored, self.canceled, self.expired) if ended else (0, 0, 0, 0)
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": self.state if ended or self.state == "canceling" else "in_progress",
            "request_counts": {
                "processing": 0 if ended else self.items,
                **dict(zip(("succeeded", "errored", "canceled", "expired"), counts, strict=True)),
            },
            "created_at": iso(self.created_us),
            "expires_at": iso(self.expires_us),
            "ended_at": _moment(self.ended_us),
            "archived_at": _moment(self.archived_us),
            "cancel_initiated_at": _moment(self.cancel_us),
            "results_url": f"{base}/{self.id}/results" if ended and self.archived_us is None else None,
        }


class Item(msgspec.Struct, frozen=True, gc=False):
    """One request of a batch. Its id is also that of its hold, and then of its usage row."""

    id: bytes
    place: int
    custom_id: str
    model: str
    caches_long: bool
    state: str
    sends: int = 0


class Content(msgspec.Struct, frozen=True):
    """What is kept of an item of a batch that Farebox runs: sealed, and how to settle it once it is answered."""

    body: bytes | None
    result: bytes | None
    settle: str | None


class Records:
    """Reads and writes these rows. Everything may raise StoreUnavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def run_id(self) -> int:
        return self._store.run_id

    async def add(self, batch: Batch, items: Sequence[Item], bodies: Iterator[bytes | None], held_nanos: int) -> None:
        """Write a batch that is being made, and its items a few at a time."""
        values = (
            *(batch.id, batch.account_id, batch.key_id, batch.way, batch.state, batch.price_version, batch.percent),
            *(batch.upstream, batch.headers, batch.wrapped_key, batch.sealed_key, batch.run_id, 0, batch.created_us),
            *(batch.expires_us, batch.items, held_nanos),
        )
        await self._store.write([(f"INSERT INTO batch ({_NEW}) VALUES ({_marks(values)})", values)])  # noqa: S608
        for part in parts(items, _ROWS * _STATEMENTS):
            await self._store.write([_insert(batch.id, rows, bodies) for rows in parts(part, _ROWS)])

    async def find(self, batch_id: str, account_id: int) -> Batch | None:
        """Find a batch of an account. Another's is as unknown as one that never was."""
        rows = await self._store.fetch(f"{_READ} WHERE id = ? AND account_id = ?", (batch_id, account_id))
        found = _batches(rows)
        return found[0] if found and found[0].state != "creating" else None

    async def now(self, batch: Batch) -> Batch | None:
        """Read it again."""
        found = _batches(await self._store.fetch(f"{_READ} WHERE id = ?", (batch.id,)))
        return found[0] if found else None

    async def page(
        self, account_id: int, limit: int, after: str | None, before: str | None
    ) -> tuple[list[Batch], bool]:
        """Read some of an account's batches, newest first; tells whether there are more in that direction."""
        mine = f"{_READ} WHERE account_id = ? AND state <> 'creating'"
        if before is not None:
            sql, values = f"{mine} AND id > ? ORDER BY id LIMIT ?", (account_id, before, limit + 1)
            found = _batches(await self._store.fetch(sql, values))
            return found[:limit][::-1], len(found) > limit
        if after is not None:
            rows = await self._store.fetch(
                f"{mine} AND id < ? ORDER BY id DESC LIMIT ?", (account_id, after, limit + 1)
            )
        else:
            rows = await self._store.fetch(f"{mine} ORDER BY id DESC LIMIT ?", (account_id, limit + 1))
        found = _batches(rows)
        return found[:limit], len(found) > limit

    async def count_open(self, account_id: int) -> int:
        """Count an account's batches that are under way."""
        sql = "SELECT count(*) FROM batch WHERE account_id = ? AND state <> 'ended'"
        return int((await self._store.fetch(sql, (account_id,)))[0][0])

    async def stands_behind(self, batch: Batch, limit: int) -> bool:
        """Tell whether so many of its account's batches that are under way were made before it."""
        sql = "SELECT count(*) FROM batch WHERE account_id = ? AND state <> 'ended' AND id < ?"
        return int((await self._store.fetch(sql, (batch.account_id, batch.id)))[0][0]) >= limit

    async def under_way(self, way: str) -> list[Batch]:
        """Read all batches of a kind that have begun and not ended, oldest first."""
        sql = f"{_READ} WHERE way = ? AND state IN ('in_progress', 'canceling') ORDER BY id"
        return _batches(await self._store.fetch(sql, (way,)))

    async def abandoned(self) -> list[Batch]:
        """Read batches whose maker died while it made them."""
        alive = "SELECT 1 FROM run r WHERE r.id = batch.run_id AND r.stopped_at IS NULL AND r.reaped_at IS NULL"
        return _batches(await self._store.fetch(f"{_READ} WHERE state = 'creating' AND NOT EXISTS ({alive})"))

    async def keyless(self) -> list[Batch]:
        """Read batches under way whose results nobody can read any more: the only key that could works no longer."""
        key = (
            "SELECT 1 FROM api_key k WHERE k.id = batch.key_id "
            "AND (k.revoked_at IS NOT NULL OR coalesce(k.expires_at <= now_us(), FALSE))"
        )
        own = "way = 'own' AND state = 'in_progress' AND sealed_key IS NULL"
        return _batches(await self._store.fetch(f"{_READ} WHERE {own} AND EXISTS ({key})"))

    async def old(self, before_us: int) -> list[Batch]:
        """Read batches that were made before a moment, have ended and still have their contents."""
        sql = f"{_READ} WHERE state = 'ended' AND archived_at IS NULL AND created_at < ?"
        return _batches(await self._store.fetch(sql, (before_us,)))

    async def begin(self, batch: Batch, upstream_id: str | None) -> bool:
        """Let a batch begin that has been made; False when it was given up meanwhile."""
        sql = "UPDATE batch SET state = 'in_progress', upstream_id = ? WHERE id = ? AND state = 'creating'"
        return bool((await self._store.write([(sql, (upstream_id, batch.id))]))[0])

    async def cancel(self, batch: Batch, now_us: int) -> None:
        """Let nothing more of it be begun."""
        await self._store.write([cancelling(batch.account_id, batch.id, now_us)])

    async def end(self, batch: Batch, now_us: int) -> bool:
        """End a batch, with its counts, if no item of it is open any more; tells whether it did."""
        counts = ", ".join(
            f"{state} = (SELECT count(*) FROM batch_item i WHERE i.batch_id = batch.id AND i.state = '{state}')"  # noqa: S608
            for state in ("succeeded", "errored", "canceled", "expired")
        )
        charged = "SELECT sum(u.charged_nanos) FROM batch_item i JOIN usage u ON u.request_id = i.id"
        counts += f", charged_nanos = coalesce(({charged} WHERE i.batch_id = batch.id), 0)"
        sql = (
            f"UPDATE batch SET state = 'ended', ended_at = ?, {counts} WHERE id = ? AND state <> 'ended' "  # noqa: S608
            f"AND NOT EXISTS (SELECT 1 FROM batch_item i WHERE i.batch_id = batch.id AND i.state IN ({OPEN}))"
        )
        return bool((await self._store.write([(sql, (now_us, batch.id))]))[0])

    async def archive(self, batch: Batch, now_us: int) -> None:
        """Let go of the items of a batch that has ended; what is left is that it was."""
        sql = "UPDATE batch SET archived_at = ?, wrapped_key = NULL, sealed_key = NULL WHERE id = ?"
        await self._store.write([_no_items(batch), (sql, (now_us, batch.id))])

    async def delete(self, batch: Batch) -> None:
        """Take a batch and its items away."""
        await self._store.write([_no_items(batch), ("DELETE FROM batch WHERE id = ?", (batch.id,))])

    # items

    async def open_items(self, batch: Batch, limit: int = _PAGE, after: int = -1) -> list[Item]:
        """Read items whose holds have not ended, behind a place."""
        where = f"batch_id = ? AND state IN ({OPEN}) AND place > ? ORDER BY place LIMIT ?"
        return await self._items(where, batch.id, after, limit)

    async def answered(self, batch: Batch) -> list[tuple[Item, str]]:
        """Read items that have their answer and are still to be settled."""
        sql = f"SELECT {_ITEM}, settle FROM batch_item WHERE batch_id = ? AND state = 'answered' LIMIT ?"  # noqa: S608
        rows = await self._store.fetch(sql, (batch.id, _PAGE))
        return [(_item(row[:-1]), row[-1]) for row in rows]

    async def items(self, batch: Batch, after: int, limit: int = _PAGE) -> list[Item]:
        """Read items behind a place, in their order."""
        return await self._items("batch_id = ? AND place > ? ORDER BY place LIMIT ?", batch.id, after, limit)

    async def by_name(self, batch: Batch) -> dict[str, Item]:
        """Read all items, by what their customer calls them."""
        found: dict[str, Item] = {}
        last = -1
        while page := await self.items(batch, last):
            found.update((item.custom_id, item) for item in page)
            last = page[-1].place
        return found

    async def content(self, item: Item) -> Content:
        rows = await self._store.fetch("SELECT body, result, settle FROM batch_item WHERE id = ?", (item.id,))
        return Content(*rows[0]) if rows else Content(None, None, None)

    async def results(self, batch: Batch, after: int, limit: int) -> list[tuple[Item, bytes | None]]:
        """Read items with their sealed results, behind a place."""
        sql = f"SELECT {_ITEM}, result FROM batch_item WHERE batch_id = ? AND place > ? ORDER BY place LIMIT ?"  # noqa: S608
        rows = await self._store.fetch(sql, (batch.id, after, limit))
        return [(_item(row[:-1]), row[-1]) for row in rows]

    async def mark(self, items: Sequence[Item], state: str) -> None:
        """Note how items stand whose holds have ended. What was asked in them is let go."""
        for part in parts(items, _IDS):  # of none there is none
            ids = tuple(item.id for item in part)
            sql = (
                f"UPDATE batch_item SET state = ?, body = NULL, settle = NULL WHERE id IN ({_marks(ids)}) "  # noqa: S608
                f"AND state IN ({OPEN})"
            )
            await self._store.write([(sql, (state, *ids))])

    async def send(self, item: Item) -> bool:
        """Note, durably, that an item is about to be sent; False when its batch is being cancelled."""
        sql = (
            "UPDATE batch_item SET state = 'sent', sends = sends + 1 WHERE id = ? AND state IN ('waiting', 'sent') "
            "AND EXISTS (SELECT 1 FROM batch b WHERE b.id = batch_item.batch_id AND b.state = 'in_progress')"
        )
        return bool((await self._store.write([(sql, (item.id,))]))[0])

    async def answer(self, item: Item, result: bytes, settle: str) -> None:
        """Keep an item's sealed answer together with how it is to be settled."""
        sql = "UPDATE batch_item SET state = 'answered', result = ?, settle = ? WHERE id = ? AND state = 'sent'"
        await self._store.write([(sql, (result, settle, item.id))])

    # leases

    async def take(self, batch: Batch) -> bool:
        """Take a batch to work on, or keep it; False while another process has it."""
        sql = f"UPDATE batch SET run_id = ?, lease_until = now_us() + ? WHERE id = ? AND (run_id = ? OR {_FREE})"  # noqa: S608
        values = (self.run_id, _LEASE_US, batch.id, self.run_id)
        return bool((await self._store.write([(sql, values)]))[0])

    async def unattended(self) -> list[Batch]:
        """Read batches of Farebox's own that no process works on."""
        sql = f"{_READ} WHERE way = 'own' AND state IN ('in_progress', 'canceling') AND {_FREE} ORDER BY id"
        return _batches(await self._store.fetch(sql))

    async def strays(self) -> list[Row]:
        """Read standing holds of no batch that is under way: id, account and model."""
        return await self._store.fetch(
            "SELECT request_id, account_id, model FROM hold WHERE run_id = ? AND NOT EXISTS (SELECT 1 FROM "
            "batch_item i JOIN batch b ON b.id = i.batch_id WHERE i.id = hold.request_id AND b.state <> 'ended')",
            (NO_RUN,),
        )

    async def _items(self, where: str, *values: Any) -> list[Item]:
        rows = await self._store.fetch(f"SELECT {_ITEM} FROM batch_item WHERE {where}", values)  # noqa: S608
        return [_item(row) for row in rows]


def parts(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into parts of at most `size`."""
    return (things[begin : begin + size] for begin in range(0, len(things), size))


def _insert(batch_id: str, items: Sequence[Item], bodies: Iterator[bytes | None]) -> Statement:
    values: list[Any] = []
    for item in items:
        values += (item.id, batch_id, item.place, item.custom_id, item.model, int(item.caches_long), item.state)
        values.append(next(bodies))
    rows = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * len(items))
    columns = "id, batch_id, place, custom_id, model, caches_long, state, body"
    return f"INSERT INTO batch_item ({columns}) VALUES {rows}", tuple(values)  # noqa: S608


def _no_items(batch: Batch) -> Statement:
    return "DELETE FROM batch_item WHERE batch_id = ?", (batch.id,)


def _batches(rows: Sequence[Row]) -> list[Batch]:
    return [Batch(*row) for row in rows]


def _item(row: Row) -> Item:
    return Item(bytes(row[0]), row[1], row[2], row[3], bool(row[4]), row[5], row[6])


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _moment(at_us: int | None) -> str | None:
    return iso(at_us) if at_us is not None else None
