"""Books of any size, written by the database itself: accounts with keys, calls at real prices, and what they paid in.

All of it by the rules, so that the audit holds; only that nobody made these calls.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import apsw
import asyncpg
import msgspec

from farebox.books.days import close_days, close_hours
from farebox.books.prices import pin_prices
from farebox.books.sums import first_open, sum_day
from farebox.clock import DAY_US, US_PER_S, day_of
from farebox.config.load import default_offer
from farebox.store.open import open_store
from farebox.store.protocol import Store
from farebox.store.urls import is_postgres
from tests.databases import sqlite_path

KEYS: Final = 4
_PORTION: Final = 250_000
_PAID_IN: Final = 100 * 10**9
_COLUMNS: Final = (
    "request_id, at, account_id, key_id, kind, model, asked_model, price_version, input_tokens, output_tokens, "
    "cost_nanos, list_nanos, charged_nanos, shortfall_nanos, waived_nanos, status, outcome, stop_reason, message_id, "
    "upstream, upstream_request_id, attempts, streamed, first_byte_us, duration_us, session, agent, held_nanos"
)
_DIALECT: Final = {
    "sqlite": {
        "numbers": "(WITH RECURSIVE r (n) AS (SELECT {least} UNION ALL SELECT n + 1 FROM r WHERE n < {most}) "
        "SELECT n FROM r)",
        "id": "unhex(printf('%012x7000%016x', at / 1000, n))",
        "message": "'msg_01' || printf('%022x', n)",
        "request": "'req_01' || printf('%022x', n)",
        "session": "printf('%08x-0000-4000-8000-%012x', account_id, n / 400)",
    },
    "postgresql": {
        "numbers": "(SELECT n FROM generate_series({least}::bigint, {most}::bigint) n)",
        "id": "decode(lpad(to_hex(at / 1000), 12, '0') || '7000' || lpad(to_hex(n), 16, '0'), 'hex')",
        "message": "'msg_01' || lpad(to_hex(n), 22, '0')",
        "request": "'req_01' || lpad(to_hex(n), 22, '0')",
        "session": "lpad(to_hex(account_id), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(n / 400), 12, '0')",
    },
}


class Size(msgspec.Struct, frozen=True):
    """How much there is: every third call is the first account's."""

    calls: int
    days: int
    accounts: int


class Filled(msgspec.Struct):
    """What it took to fill the books, in seconds, and the longest that closing an hour or a day took."""

    fill_s: float = 0.0
    hours_s: float = 0.0
    hour_s: float = 0.0
    day_s: float = 0.0


async def fill(
    url: str,
    size: Size,
    now_us: int,
    tell: Callable[[str], None],
    *,
    digests: bool | None = None,
    months: bool = True,
) -> Filled:
    """Write calls evenly over these days until now, and the sums of all hours and days that are over.

    Days are closed by true digests or none, or by what takes no time (None); months get their partitions, or not.
    """
    filled = Filled()
    begin_us = now_us - size.days * DAY_US
    store = await open_store(url, clock=lambda: begin_us)
    try:
        prices = await pin_prices(store, default_offer()[0], begin_us)
        await _people(store, size, begin_us)
        if is_postgres(url) and months:
            for month in range(0, size.days + 28, 28):
                await store.fetch("SELECT make_usage_month(?)", (begin_us + month * DAY_US,))
    finally:
        await store.close()
    began = time.monotonic()
    await fill_calls(url, size, now_us, prices.version, tell)
    filled.fill_s = time.monotonic() - began
    store = await open_store(url, clock=lambda: now_us)
    try:
        await _balance(store, begin_us)
        if digests is None:
            await _close(store, begin_us, now_us, filled, tell)
        elif digests:
            await close_hours(store, now_us)
            await close_days(store, now_us)
        analyze = ["ANALYZE"] if is_postgres(url) else []
        for statement in analyze:
            await store.write([(statement, ())], patience_s=900)
    finally:
        await store.close()
    return filled


async def fill_calls(
    url: str, size: Size, now_us: int, version: int = 1, tell: Callable[[str], None] = lambda _: None
) -> None:
    """Write the calls alone, at the prices of a version."""
    begin_us = now_us - size.days * DAY_US
    if is_postgres(url):
        await _fill_postgres(url, size, begin_us, now_us, version, tell)
    else:
        _fill_sqlite(url, size, begin_us, now_us, version, tell)


def _insert(kind: str, size: Size, begin_us: int, now_us: int, version: int, least: int, most: int) -> str:
    words = _DIALECT[kind]
    step = (now_us - begin_us) // size.calls
    numbers = words["numbers"].format(least=least, most=most)
    # four calls of five in three hundred, in a row that never repeats: prices, users and ends do not march in step
    who = f"CASE WHEN n % 3 = 0 THEN 1 ELSE 2 + (n * 7919 / 3) % {size.accounts - 1} END"
    placed = f"SELECT n, {begin_us} + n * {step} AS at, {who} AS account_id FROM {numbers} AS numbers"
    model = "CASE n % 7 WHEN 0 THEN 'claude-opus-4-6' WHEN 1 THEN 'claude-haiku-4-5' ELSE 'claude-sonnet-4-6' END"
    tokens = "1000 + n % 500 AS input_tokens, 100 + n % 70 AS output_tokens"
    told = f"SELECT n, at, account_id, {model} AS model, {tokens} FROM ({placed}) AS placed"
    sell = (
        "CASE model WHEN 'claude-opus-4-6' THEN input_tokens * 7500 + output_tokens * 37500 "
        "WHEN 'claude-haiku-4-5' THEN input_tokens * 400 + output_tokens * 2000 "
        "ELSE input_tokens * 1500 + output_tokens * 7500 END"
    )
    priced = f"SELECT told.*, {sell} AS cost FROM ({told}) AS told"
    return (
        f"INSERT INTO usage ({_COLUMNS}) SELECT {words['id']}, at, account_id, "
        f"(account_id - 1) * {KEYS} + 1 + n % {KEYS}, 'exact', model, model, {version}, input_tokens, output_tokens, "
        "cost, 2 * cost, cost, 0, 0, 200, CASE WHEN n % 50 = 0 THEN 'client_gone' ELSE 'finished' END, 'end_turn', "
        f"{words['message']}, 'anthropic', {words['request']}, 1, 1, 400000 + n % 1000, 2000000, "
        f"CASE WHEN n % 2 = 0 THEN {words['session']} END, CASE WHEN n % 6 = 0 THEN 'agent-' || (n % 5) END, 20000000 "
        f"FROM ({priced}) AS priced"
    )


def _portions(calls: int) -> list[tuple[int, int]]:
    return [(least, min(least + _PORTION, calls) - 1) for least in range(0, calls, _PORTION)]


async def _fill_postgres(
    url: str, size: Size, begin_us: int, now_us: int, version: int, tell: Callable[[str], None]
) -> None:
    connection = await asyncpg.connect(url, server_settings={"synchronous_commit": "off", "jit": "off"})
    try:
        for least, most in _portions(size.calls):
            await connection.execute(_insert("postgresql", size, begin_us, now_us, version, least, most))
            tell(f"{most + 1:,} calls written")
    finally:
        await connection.close()


def _fill_sqlite(url: str, size: Size, begin_us: int, now_us: int, version: int, tell: Callable[[str], None]) -> None:
    connection = apsw.Connection(str(sqlite_path(url)))
    connection.execute("PRAGMA synchronous=OFF; PRAGMA cache_size=-500000; PRAGMA temp_store=MEMORY")
    for least, most in _portions(size.calls):
        connection.execute(_insert("sqlite", size, begin_us, now_us, version, least, most))
        tell(f"{most + 1:,} calls written")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def people(size: Size, begin_us: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Make the statements that open accounts and make their keys."""
    statements: list[tuple[str, tuple[Any, ...]]] = []
    for number in range(1, size.accounts + 1):
        account = "INSERT INTO account (id, email, plan, created_at) VALUES (?, ?, 'pro', ?)"
        statements.append((account, (number, f"customer{number}@example.com", begin_us)))
        for key in range(KEYS):
            key_id = (number - 1) * KEYS + 1 + key
            made = "INSERT INTO api_key (id, account_id, name, hash, hint, created_at) VALUES (?, ?, ?, ?, ?, ?)"
            values = (key_id, number, f"key {key}", key_id.to_bytes(32, "big"), "sk-cc-none…none", begin_us)
            statements.append((made, values))
    return statements


async def _people(store: Store, size: Size, begin_us: int) -> None:
    await store.write(people(size, begin_us))
    if store.shared:  # ids that were given by hand are not asked for again
        for table in ("account", "api_key"):
            follow = f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
            await store.fetch(follow)


async def _close(store: Store, begin_us: int, now_us: int, filled: Filled, tell: Callable[[str], None]) -> None:
    """Close hours as a server does; days with their sums, but without the digests, which take a while."""
    began = time.monotonic()
    days = (now_us - begin_us) // DAY_US + 1
    for number in range(days):
        day = day_of(begin_us + number * DAY_US)
        end_us = (begin_us // DAY_US + number + 1) * DAY_US
        hour_began = time.monotonic()
        await close_hours(store, now_us, min(end_us, now_us - 60 * US_PER_S))
        filled.hour_s = max(filled.hour_s, (time.monotonic() - hour_began) / 24)
        if end_us + 3600 * US_PER_S < now_us:
            day_began = time.monotonic()
            close = "INSERT INTO day_close VALUES (?, 0, 0, '', '', 0)"
            await store.write([*sum_day(day), (close, (day,))], patience_s=60)
            filled.day_s = max(filled.day_s, time.monotonic() - day_began)
        tell(f"{day} summed")
    filled.hours_s = time.monotonic() - began
    assert (await first_open(store)).hour * 3600 * US_PER_S > now_us - 2 * 3600 * US_PER_S


async def _balance(store: Store, begin_us: int) -> None:
    """Let everybody have paid for what they used, and a little more."""
    spent = {int(row[0]): 0 for row in await store.fetch("SELECT id FROM account")}
    ((last_us,),) = await store.fetch("SELECT max(at) FROM usage")
    for day_us in range(begin_us, last_us + 1, DAY_US):  # as they lie: by account each would be looked up by itself
        charged = (
            "SELECT account_id, sum(charged_nanos) FROM (SELECT account_id, charged_nanos FROM usage "
            "WHERE at >= ? AND at < ? ORDER BY at LIMIT 1000000000) AS calls GROUP BY account_id"
        )
        for account_id, nanos in await store.fetch(charged, (day_us, day_us + DAY_US), patience_s=900):
            spent[account_id] += int(nanos)
    statements: list[tuple[str, tuple[Any, ...]]] = []
    for account_id, nanos in spent.items():
        paid = "INSERT INTO transfer VALUES (?, ?, 'house:cash', ?, ?, 'deposit', 'growth', '')"
        statements.append((paid, (f"paid:{account_id}", begin_us, f"customer:{account_id}", nanos + _PAID_IN)))
        rich = "UPDATE account SET posted_nanos = ?, topped_up_nanos = ? WHERE id = ?"
        statements.append((rich, (_PAID_IN, nanos + _PAID_IN, account_id)))
    await store.write(statements)
