"""Figures for the dashboard: what an account spent, by day or hour and by model, key or outcome. Read only.

Days that are closed never change, so they are summed once, as they are closed; only what is younger is added up anew.
That keeps a year of a busy account as quick to draw as a week of a quiet one.
"""

from typing import Final, Literal

import msgspec

from farebox.clock import DAY_US, US_PER_S, day_start_us
from farebox.store.protocol import Reading, Statement, Store

GroupBy = Literal["model", "key", "outcome"]
HOUR_US: Final = 3_600 * US_PER_S
_GROUPS: Final = {"model": "model", "key": "key_id", "outcome": "outcome"}
_TOKENS: Final = "input_tokens + cache_write_5m_tokens + cache_write_1h_tokens + cache_read_tokens + output_tokens"
_SUM_DAY: Final = (
    "INSERT INTO usage_day "  # noqa: S608  fixed texts
    f"SELECT account_id, at / {DAY_US}, key_id, model, outcome, count(*), sum({_TOKENS}), sum(charged_nanos), "
    "sum(list_nanos), max(at) FROM usage WHERE at >= ? AND at < ? "
    f"GROUP BY account_id, at / {DAY_US}, key_id, model, outcome"
)


class Point(msgspec.Struct, frozen=True):
    """What one group came to in one step of time. `step` counts days, or hours, since 1970."""

    step: int
    group: str
    spend_nanos: int
    list_nanos: int
    tokens: int
    requests: int


class Use(msgspec.Struct, frozen=True):
    """What a key was used for in all."""

    last_at_us: int
    requests: int
    spend_nanos: int


def sum_day(day: str) -> Statement:
    """Make the statement that sums a day's usage, to be written with its close: never without, never twice."""
    begin_us = day_start_us(day)
    return _SUM_DAY, (begin_us, begin_us + DAY_US)


async def first_open_day(store: Reading) -> int:
    """Give the day after the last closed one, in days since 1970: what begins before it is in the sums."""
    rows = await store.fetch("SELECT max(day) FROM day_close")
    return day_start_us(rows[0][0]) // DAY_US + 1 if rows[0][0] else 0


async def by_day(store: Store, account_id: int, first_day: int, last_day: int, group: GroupBy) -> list[Point]:
    """Sum an account's calls by day and group, oldest first; both days included."""
    column = _GROUPS[group]
    open_day = await first_open_day(store)
    rows = await store.fetch(
        "SELECT day, name, sum(charged), sum(list), sum(tokens), sum(requests) FROM ("  # noqa: S608  fixed texts
        f"SELECT day, {column} AS name, charged_nanos AS charged, list_nanos AS list, tokens, requests "
        "FROM usage_day WHERE account_id = ? AND day >= ? AND day <= ? AND day < ? "
        f"UNION ALL SELECT at / {DAY_US} AS day, {column}, charged_nanos, list_nanos, {_TOKENS}, 1 "
        "FROM usage WHERE account_id = ? AND at >= ? AND at < ?) AS parts GROUP BY day, name ORDER BY day",
        (
            *(account_id, first_day, last_day, open_day),
            *(account_id, max(first_day, open_day) * DAY_US, (last_day + 1) * DAY_US),
        ),
    )
    return [Point(row[0], str(row[1]), *row[2:]) for row in rows]


async def by_hour(store: Store, account_id: int, first_hour: int, last_hour: int, group: GroupBy) -> list[Point]:
    """Sum an account's calls by hour and group, oldest first; both hours included. Meant for a day or two."""
    column = _GROUPS[group]
    rows = await store.fetch(
        f"SELECT at / {HOUR_US} AS hour, {column} AS name, sum(charged_nanos), sum(list_nanos), "  # noqa: S608
        f"sum({_TOKENS}), count(*) FROM usage WHERE account_id = ? AND at >= ? AND at < ? "
        f"GROUP BY at / {HOUR_US}, {column} ORDER BY hour",
        (account_id, first_hour * HOUR_US, (last_hour + 1) * HOUR_US),
    )
    return [Point(row[0], str(row[1]), *row[2:]) for row in rows]


async def use_of_keys(store: Store, account_id: int) -> dict[int, Use]:
    """Give for each key of an account that was ever used when that was last, for how many calls and what they cost."""
    open_day = await first_open_day(store)
    rows = await store.fetch(
        "SELECT key_id, max(last_at), sum(requests), sum(charged) FROM ("
        "SELECT key_id, last_at, requests, charged_nanos AS charged FROM usage_day WHERE account_id = ? AND day < ? "
        "UNION ALL SELECT key_id, at, 1, charged_nanos FROM usage WHERE account_id = ? AND at >= ?"
        ") AS parts GROUP BY key_id",
        (account_id, open_day, account_id, open_day * DAY_US),
    )
    return {key_id: Use(last_at, requests, charged) for key_id, last_at, requests, charged in rows}


def charged_after(account_id: int, at_us: int, open_day: int) -> Statement:
    """Make the statement that sums what was charged to an account after a moment."""
    whole = max(at_us // DAY_US + 1, 0)
    sql = (
        "SELECT coalesce(sum(charged), 0) FROM ("
        "SELECT charged_nanos AS charged FROM usage_day WHERE account_id = ? AND day >= ? AND day < ? "
        "UNION ALL SELECT charged_nanos FROM usage WHERE account_id = ? AND at > ? AND at < ? "
        "UNION ALL SELECT charged_nanos FROM usage WHERE account_id = ? AND at >= ?) AS parts"
    )
    return sql, (
        *(account_id, whole, open_day),
        *(account_id, at_us, whole * DAY_US),
        *(account_id, max(whole, open_day) * DAY_US),
    )
