"""Books as the first schema kept them: made by its own script, filled with what a real ledger wrote."""

import asyncio
from pathlib import Path
from typing import Any, Final

import apsw
import asyncpg

from farebox.store import postgres_schema, schema
from farebox.store.protocol import Row
from farebox.store.urls import is_postgres
from tests.databases import sqlite_path
from tests.history import History, write_history

_TABLES: Final = ("account", "api_key", "run", "price_list", "hold", "usage", "transfer", "day_close")


def write_old_books(url: str, scratch: Path, *, in_flight: int = 0) -> History:
    """Fill an empty database with books of schema 1: a few hundred calls, and some that never ended."""
    modern = scratch / "modern.db"
    history = asyncio.run(write_history(f"sqlite:///{modern}", in_flight=in_flight))
    if is_postgres(url):
        asyncio.run(_into_postgres(url, modern))
    else:
        _into_sqlite(sqlite_path(url), modern)
    return history


def _rows(modern: Path, table: str) -> tuple[list[str], list[Row]]:
    """Read a table's rows, without the columns that later schemas have added."""
    then = apsw.Connection(":memory:")
    then.execute(schema.script(1, "sqlite"))
    columns = [str(row[1]) for row in then.execute(f"PRAGMA table_info({table})")]
    connection = apsw.Connection(str(modern))
    try:
        rows: list[Any] = connection.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
        return columns, rows
    finally:
        connection.close()


def _into_sqlite(path: Path, modern: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(schema.script(1, "sqlite"))
    for table in _TABLES:
        columns, rows = _rows(modern, table)
        insert = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        connection.executemany(insert, rows)
    connection.pragma("user_version", 1)
    connection.close()


async def _into_postgres(url: str, modern: Path) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(postgres_schema._VERSIONS)
        await connection.execute(schema.script(1, "postgresql"))
        for table in _TABLES:
            columns, rows = _rows(modern, table)
            await connection.copy_records_to_table(table, records=rows, columns=columns)
        for table in ("account", "api_key"):
            await connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
            )
        await connection.execute("INSERT INTO schema_version (version) VALUES (1)")
    finally:
        await connection.close()
