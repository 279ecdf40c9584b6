"""Moving the books: every row from one database into another, an empty one, and proof that nothing changed on the way.

Both are sealed meanwhile: nobody serves or writes either. The old books are only read. The new ones are one
transaction, committed after every proof has held: a move that ends before, however it ends, leaves nothing behind.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from farebox.billing.ledger import NO_RUN
from farebox.books.audit import Progress, audit
from farebox.books.spool import waiting_in
from farebox.errors import FareboxError, StoreUnavailable
from farebox.store.protocol import Reading, Row
from farebox.store.schema import TABLES
from farebox.store.sealed import Sealed, open_sealed

_PAGE: Final = 5_000


async def move(source_url: str, target_url: str, *, spools: Sequence[Path], tell: Progress) -> dict[str, int]:
    """Move the books; answers the rows of each table. `tell` hears of each stage as the audit's does.

    `spools` are where calls may wait that are not in the old books yet. Raises FareboxError for books that are not
    finished, not empty or not sound, and StoreUnavailable; nothing has been moved then.
    """
    async with open_sealed(source_url, create=False) as source:
        await _refuse_unfinished(source, spools)
        async with open_sealed(target_url, create=True) as target:
            await _refuse_filled(target)
            await _prove(source, "old", tell)
            rows = {}
            for table in TABLES:
                rows[table] = await _copy(source, target, table, tell)
            await target.settle_in()
            await _prove(target, "new", tell)
            await _commit(target)
    return rows


async def _refuse_unfinished(source: Sealed, spools: Sequence[Path]) -> None:
    """Refuse books whose last process died: starting and stopping it is what ends its calls as they must be ended."""
    for directory in spools:
        waiting = waiting_in(directory)
        if waiting:
            raise FareboxError(
                f"{waiting} calls wait in {directory} to be booked in {source.where}: start farebox on it, wait until "
                "farebox_spooled is 0, stop it, then move"
            )
    held = (await source.fetch("SELECT count(*) FROM hold WHERE expired_at IS NULL AND run_id <> ?", (NO_RUN,)))[0][0]
    if held:
        raise FareboxError(
            f"{source.where} holds money for {held} calls of a process that died: start farebox on it, "
            "wait until `farebox audit` finds no such hold, stop it, then move"
        )


async def _refuse_filled(target: Sealed) -> None:
    filled = [table for table in TABLES if (await target.fetch(f"SELECT count(*) FROM {table}"))[0][0]]  # noqa: S608
    if filled:
        raise FareboxError(
            f"{target.where} has books in it already ({', '.join(filled)}): move into a new, empty database"
        )


async def _prove(books: Reading, which: str, tell: Progress) -> None:
    checks = await audit(books, on_progress=lambda name, done, total: tell(f"{which} books: {name}", done, total))
    broken = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    if broken:
        raise FareboxError(f"the {which} books do not hold, nothing was moved; {'; '.join(broken)}")


async def _commit(target: Sealed) -> None:
    try:
        await target.commit()
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{error}; the books may have arrived or not: move again, and if that finds them there, they have"
        ) from error


async def _copy(source: Sealed, target: Sealed, table: str, tell: Progress) -> int:
    """Copy a table, then read it back: both sides must have the same rows, to the last character."""
    columns = await target.columns(table)
    if set(columns) != set(await source.columns(table)):
        raise FareboxError(f"{table} has other columns in {source.where} than in {target.where}")
    total = int((await source.fetch(f"SELECT count(*) FROM {table}"))[0][0])  # noqa: S608
    read, written = hashlib.sha256(), hashlib.sha256()
    done = 0
    async for rows in _pages(source, table, columns):
        await target.fill(table, columns, rows)
        _feed(read, rows)
        done += len(rows)
        tell(f"copy {table}", done, total)
    back = 0
    async for rows in _pages(target, table, columns):
        _feed(written, rows)
        back += len(rows)
        tell(f"compare {table}", back, total)
    if not done == back == total or read.digest() != written.digest():
        raise FareboxError(f"{table} did not arrive as it was: {total} rows left, {back} came; nothing was moved")
    return done


async def _pages(books: Sealed, table: str, columns: Sequence[str]) -> AsyncIterator[list[Row]]:
    """Read a table in the order of its key, which both kinds of database sort alike."""
    key = TABLES[table]
    place = columns.index(key)
    select = f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608
    rows = await books.fetch(f"{select} ORDER BY {key} LIMIT ?", (_PAGE,))
    while rows:
        yield rows
        rows = await books.fetch(f"{select} WHERE {key} > ? ORDER BY {key} LIMIT ?", (rows[-1][place], _PAGE))


def _feed(digest: "hashlib._Hash", rows: Sequence[Row]) -> None:
    for row in rows:
        digest.update(msgspec.json.encode(row))
