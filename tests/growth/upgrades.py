"""How long books of the step before sums by the hour take to come to the present one, with so many calls in them."""

import asyncio
import time
from typing import Any, Final

import apsw
import asyncpg

from farebox.clock import DAY_US, day_of
from farebox.store import postgres_schema, schema
from farebox.store.postgres import numbered
from farebox.store.upgrade import upgrade
from farebox.store.urls import is_postgres
from tests.databases import sqlite_path
from tests.growth.books import Size, fill_calls, people

_BEFORE: Final = 5
_PEOPLE_STEP: Final = 3
_CLOSE: Final = "INSERT INTO day_close VALUES (?, 0, 0, '', '', 0)"


async def upgrade_s(url: str, size: Size, now_us: int) -> float:
    """Fill an empty database with calls of so many days, all of them closed and summed by the day, and bring it up."""
    begin_us = now_us - size.days * DAY_US
    closed = [(_CLOSE, (day_of(begin_us + number * DAY_US),)) for number in range(size.days - 1)]
    statements = [*people(size, begin_us), *closed]
    if is_postgres(url):
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(postgres_schema._VERSIONS)
            for version in range(1, _BEFORE + 1):
                await connection.execute(schema.script(version, "postgresql"))
                await connection.execute("INSERT INTO schema_version (version) VALUES ($1)", version)
            for sql, values in statements:
                await connection.execute(numbered(sql), *values)
            await fill_calls(url, size, now_us)
            await connection.execute(_day_sums("postgresql"))
            await connection.execute("ANALYZE")
        finally:
            await connection.close()
    else:
        await asyncio.to_thread(_make_file, url, statements)
        await fill_calls(url, size, now_us)
        await asyncio.to_thread(_run_in_file, url, [(_day_sums("sqlite"), ())])
    began = time.monotonic()
    await upgrade(url, lambda _: None)
    return time.monotonic() - began


def _make_file(url: str, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
    connection = apsw.Connection(str(sqlite_path(url)))
    connection.execute("PRAGMA journal_mode=WAL")
    for version in range(1, _BEFORE + 1):
        connection.execute(schema.script(version, "sqlite"))
    connection.pragma("user_version", _BEFORE)
    connection.close()
    _run_in_file(url, statements)


def _run_in_file(url: str, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
    connection = apsw.Connection(str(sqlite_path(url)))
    with connection:
        for sql, values in statements:
            connection.execute(sql, values)
    connection.close()


def _day_sums(dialect: schema.Dialect) -> str:
    """Give what the step that brought sums by the day made them with."""
    text = schema.script(_PEOPLE_STEP, dialect)
    return text[text.index("INSERT INTO usage_day") :].partition(";")[0]
