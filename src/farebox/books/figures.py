"""Figures for the dashboard: what an account spent, by day and by model or key. Read only."""

from typing import Final, Literal

import msgspec

from farebox.clock import DAY_US
from farebox.store.protocol import Store

GroupBy = Literal["model", "key", "status"]
_GROUPS: Final = {"model": "model", "key": "key_id", "status": "status"}


class Point(msgspec.Struct, frozen=True):
    """What one group came to on one day. `day` counts days since 1970."""

    day: int
    group: str
    spend_nanos: int
    tokens: int
    requests: int


async def by_day(store: Store, account_id: int, since_us: int, until_us: int, group: GroupBy) -> list[Point]:
    """Sum an account's calls by day and group, oldest first."""
    column = _GROUPS[group]
    rows = await store.fetch(
        f"SELECT at / {DAY_US} AS day, {column} AS name, sum(charged_nanos), "  # noqa: S608  fixed texts
        "sum(input_tokens + cache_write_5m_tokens + cache_write_1h_tokens + cache_read_tokens + output_tokens), "
        "count(*) FROM usage WHERE account_id = ? AND at >= ? AND at < ? "
        f"GROUP BY at / {DAY_US}, {column} ORDER BY day",
        (account_id, since_us, until_us),
    )
    return [Point(day, str(name), spend, tokens, requests) for day, name, spend, tokens, requests in rows]


async def last_used(store: Store, account_id: int) -> dict[int, tuple[int, int, int]]:
    """Give for each key of an account when it was used last, for how many calls, and what they cost."""
    rows = await store.fetch(
        "SELECT key_id, max(at), count(*), sum(charged_nanos) FROM usage WHERE account_id = ? GROUP BY key_id",
        (account_id,),
    )
    return {key_id: (at, calls, nanos) for key_id, at, calls, nanos in rows}
