"""Sealed books: a database that nobody else writes to, from the first look to the last, in one transaction.

For moving books from one database to another. What is filled in is seen here alone until `commit`; whatever ends the
process before that leaves the database as it was.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import apsw
import asyncpg

from farebox.clock import DAY_US, US_PER_S, steady_clock
from farebox.errors import StoreUnavailable
from farebox.ids import began_at_us
from farebox.store import postgres_schema, schema, sqlite
from farebox.store.postgres import numbered, one_connection
from farebox.store.postgres_connections import FAILED, words
from farebox.store.protocol import Reading, Row
from farebox.store.upgrade import upgrade
from farebox.store.urls import is_postgres, without_password

T = TypeVar("T")

_MONTH_US: Final = 28 * DAY_US
"""No month is shorter: among the beginnings of such steps and their ends is a moment of every month."""
_FIRST_MONTH_US: Final = 1_577_836_800 * US_PER_S
"""January 2020. What claims to be of another time, until 2100, has no month of its own."""
_LAST_MONTH_US: Final = 4_102_444_800 * US_PER_S
_SESSION: Final = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": "10s",
    "tcp_keepalives_idle": "30",  # a machine that is gone seals nothing for long
}


class Sealed(Reading, Protocol):
    """The books in one transaction: reads see what was filled in before them."""

    where: str
    """The database, for people."""

    async def columns(self, table: str) -> list[str]:
        """Name a table's columns."""
        ...

    async def fill(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Insert rows. Raises StoreUnavailable; nothing but leaving makes sense then."""
        ...

    async def settle_in(self) -> None:
        """After the last row: make ids of new rows follow those filled in."""
        ...

    async def commit(self) -> None:
        """Make everything filled in durable and visible, at once. Raises StoreUnavailable."""
        ...


@asynccontextmanager
async def open_sealed(url: str, *, create: bool) -> AsyncIterator[Sealed]:
    """Open a database that nobody serves; `create` makes the tables where there are none.

    Raises StoreUnavailable: also for a database that is served or in use, and for another schema.
    """
    if create:
        await upgrade(url, lambda _: None)
    if is_postgres(url):
        async with one_connection(url, _SESSION) as connection:
            yield await _PostgresSealed.open(connection, without_password(url))
        return
    sealed = await asyncio.to_thread(_SqliteSealed, sqlite.database_path(url))
    try:
        yield sealed
    finally:
        await sealed.close()


class _SqliteSealed:
    """See Sealed: one connection, for which the lock of a serving process is held."""

    shared = False

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        if not path.exists():
            raise StoreUnavailable(f"there is no database at {path}")
        self._lock = sqlite.lock(path)
        try:
            self._connection = sqlite.connect(path, steady_clock())
            try:
                self._begin()
            except BaseException:
                self._connection.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise
        self._thread = ThreadPoolExecutor(1, "farebox-sealed")

    def _begin(self) -> None:
        wrong = schema.advice(f"the database {self.where}", int(str(self._connection.pragma("user_version"))))
        if wrong is not None:
            raise StoreUnavailable(wrong)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except apsw.BusyError as error:
            raise StoreUnavailable(f"another command is writing to {self.where}; try again") from error

    async def fetch(self, sql: str, params: tuple[Any, ...] = (), *, patience_s: float | None = None) -> list[Row]:  # noqa: ARG002  nobody else waits
        return await self._run(lambda: self._connection.execute(sql, params).fetchall())

    async def is_served(self) -> bool:
        return False

    async def check_itself(self) -> list[tuple[str, int, list[str]]]:
        return await sqlite.find_faults(self.fetch)

    async def columns(self, table: str) -> list[str]:
        return [name for (name,) in await self.fetch("SELECT name FROM pragma_table_info(?)", (table,))]

    async def fill(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        insert = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
        await self._run(lambda: self._connection.executemany(insert, rows))

    async def settle_in(self) -> None:
        """Do nothing: a new row gets an id above all others."""

    async def commit(self) -> None:
        await self._run(lambda: self._connection.execute("COMMIT"))

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        self._connection.close()  # takes back what was not committed
        os.close(self._lock)

    async def _run(self, task: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, task)
        except apsw.Error as error:
            raise StoreUnavailable(f"the database {self.where}: {error}") from error


class _PostgresSealed:
    """See Sealed: one connection, with every table locked against writing."""

    shared = True

    def __init__(self, connection: asyncpg.Connection, where: str) -> None:
        self.where = where
        self._connection = connection
        self._months: set[int] = set()

    @classmethod
    async def open(cls, connection: asyncpg.Connection, where: str) -> "_PostgresSealed":
        """Begin; whoever serves is found before anything is locked, and whoever starts meanwhile afterwards."""
        await postgres_schema.check_schema(connection, where)
        await postgres_schema.refuse_if_served(connection)
        await connection.execute("BEGIN")
        try:
            await connection.execute(f"LOCK TABLE {', '.join(schema.TABLES)}, lease IN SHARE ROW EXCLUSIVE MODE")
        except asyncpg.LockNotAvailableError as error:
            raise StoreUnavailable(f"the database {where} is in use by another command; try again") from error
        await postgres_schema.refuse_if_served(connection)
        return cls(connection, where)

    async def fetch(self, sql: str, params: tuple[Any, ...] = (), *, patience_s: float | None = None) -> list[Row]:  # noqa: ARG002  nobody else waits
        return [tuple(record) for record in await self._run(self._connection.fetch(numbered(sql), *params))]

    async def is_served(self) -> bool:
        return False

    async def check_itself(self) -> list[tuple[str, int, list[str]]]:
        faults: list[tuple[str, int, list[str]]] = await self._run(postgres_schema.find_faults(self._connection))
        return faults

    async def columns(self, table: str) -> list[str]:
        rows = await self.fetch(
            "SELECT column_name::text FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name = ? ORDER BY ordinal_position",
            (table,),
        )
        return [name for (name,) in rows]

    async def fill(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        if table == "usage":
            place = columns.index("request_id")
            for began_us in sorted({began_at_us(row[place]) // _MONTH_US * _MONTH_US for row in rows}):
                if _FIRST_MONTH_US <= began_us < _LAST_MONTH_US and began_us not in self._months:
                    self._months.add(began_us)
                    await self.fetch(
                        "SELECT make_usage_month(?), make_usage_month(?)", (began_us, began_us + _MONTH_US)
                    )
        await self._run(self._connection.copy_records_to_table(table, records=rows, columns=columns))

    async def settle_in(self) -> None:
        for table in schema.TABLES:
            sequence = await self._run(
                self._connection.fetchval(
                    "SELECT pg_get_serial_sequence($1, attname) FROM pg_attribute "
                    "WHERE attrelid = $1::regclass AND attidentity <> ''",
                    table,
                )
            )
            if sequence is not None:
                highest = (await self.fetch(f"SELECT max({schema.TABLES[table]}) FROM {table}"))[0][0]  # noqa: S608
                if highest is not None:
                    await self.fetch("SELECT setval(?::text::regclass, ?)", (sequence, highest))
            await self._run(self._connection.execute(f"ANALYZE {table}"))

    async def commit(self) -> None:
        await self._run(self._connection.execute("COMMIT"))

    async def _run(self, task: Any) -> Any:
        try:
            return await task
        except FAILED as error:
            raise StoreUnavailable(f"the database {self.where}: {words(error)}") from error
