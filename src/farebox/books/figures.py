"""Figures for the dashboard: what an account spent, by day or hour and by model, key or outcome. Read only.

Days that are closed never change, so they are summed once, as they are closed; only what is younger is added up anew.
That keeps a year of a busy account as quick to draw as a week of a quiet one.
"""

from typing import Final, Literal, Self

import msgspec

from farebox.clock import DAY_US, US_PER_S, day_start_us
from farebox.store.protocol import Reading, Statement

GroupBy = Literal["model", "key", "outcome"]
HOUR_US: Final = 3_600 * US_PER_S
_HOURS: Final = 24
_GROUPS: Final = {"model": "model", "key": "key_id", "outcome": "outcome"}
TOKENS: Final = "input_tokens + cache_write_5m_tokens + cache_write_1h_tokens + cache_read_tokens + output_tokens"
_DAY_COLUMNS: Final = (
    "account_id, day, key_id, model, outcome, requests, tokens, charged_nanos, list_nanos, waived_nanos, "
    "shortfall_nanos, last_at"
)
_DAY_SUMS: Final = (
    f"SELECT account_id, at / {DAY_US}, key_id, model, outcome, count(*), sum({TOKENS}), sum(charged_nanos), "  # noqa: S608
    "sum(list_nanos), sum(waived_nanos), sum(shortfall_nanos), max(at) FROM usage WHERE at >= ? AND at < ? "
    f"GROUP BY account_id, at / {DAY_US}, key_id, model, outcome"
)
_SESSION_COLUMNS: Final = (
    "account_id, day, session, agent, parent_agent, requests, tokens, charged_nanos, first_at, last_at"
)
_SESSION_SUMS: Final = (
    f"SELECT account_id, at / {DAY_US}, session, coalesce(agent, ''), coalesce(parent_agent, ''), count(*), "  # noqa: S608
    f"sum({TOKENS}), sum(charged_nanos), min(at), max(at) FROM usage "
    "WHERE at >= ? AND at < ? AND session IS NOT NULL "
    f"GROUP BY account_id, at / {DAY_US}, session, coalesce(agent, ''), coalesce(parent_agent, '')"
)
_KEPT: Final = {"usage_day": (_DAY_COLUMNS, _DAY_SUMS), "session_day": (_SESSION_COLUMNS, _SESSION_SUMS)}
"""The sums that are kept: table, columns, and how they are worked out from a day's calls."""


class Point(msgspec.Struct, frozen=True):
    """What one group came to in one step of time. `step` counts days, or hours, since 1970."""

    step: int
    group: str
    spend_nanos: int
    list_nanos: int
    tokens: int
    requests: int


class Only(msgspec.Struct, frozen=True):
    """Which calls a question is about; None is no condition."""

    key_id: int | None = None
    model: str | None = None
    outcome: str | None = None

    @property
    def columns(self) -> dict[str, int | str]:
        """Give the conditions there are, by column."""
        found = {"key_id": self.key_id, "model": self.model, "outcome": self.outcome}
        return {column: value for column, value in found.items() if value is not None}


class Use(msgspec.Struct, frozen=True):
    """What a key was used for in all."""

    last_at_us: int
    requests: int
    spend_nanos: int


def sum_day(day: str) -> list[Statement]:
    """Make the statements that sum a day's usage, to be written with its close: never without, never twice."""
    begin_us = day_start_us(day)
    bounds = (begin_us, begin_us + DAY_US)
    return [(f"INSERT INTO {table} ({columns}) {sums}", bounds) for table, (columns, sums) in _KEPT.items()]


def wrong_sums(day: int) -> list[Statement]:
    """Make the questions how many of a closed day's sums are not what its calls come to, or are missing."""
    bounds = (day * DAY_US, (day + 1) * DAY_US, day)
    compare = (
        "SELECT (SELECT count(*) FROM (SELECT * FROM right_ones EXCEPT SELECT * FROM kept) AS missing), "
        "(SELECT count(*) FROM (SELECT * FROM kept EXCEPT SELECT * FROM right_ones) AS wrong)"
    )
    return [
        (f"WITH right_ones AS ({sums}), kept AS (SELECT {columns} FROM {table} WHERE day = ?) {compare}", bounds)  # noqa: S608
        for table, (columns, sums) in _KEPT.items()
    ]


async def first_open_day(store: Reading) -> int:
    """Give the day after the last closed one, in days since 1970: what begins before it is in the sums."""
    rows = await store.fetch("SELECT max(day) FROM day_close")
    return day_start_us(rows[0][0]) // DAY_US + 1 if rows[0][0] else 0


class _Piece(msgspec.Struct, frozen=True):
    """What one key, model and outcome came to in one recent hour."""

    hour: int
    key_id: int
    model: str
    outcome: str
    requests: int
    tokens: int
    charged_nanos: int
    list_nanos: int
    last_at_us: int

    def name(self, group: GroupBy) -> str:
        return str(self.key_id) if group == "key" else self.model if group == "model" else self.outcome


_ALL: Final = Only()


class Figures:
    """An account's figures at one moment: calls of open days and of the last day are read once, for all questions.

    Questions may be about some of the calls only.
    """

    def __init__(self, store: Reading, account_id: int, open_day: int, first_hour: int, recent: list[_Piece]) -> None:
        self._store = store
        self._account_id = account_id
        self._open_day = open_day
        self._first_hour = first_hour
        self._recent = recent

    @classmethod
    async def read(cls, store: Reading, account_id: int, now_us: int) -> Self:
        """Read what is young enough to be added up anew."""
        open_day = await first_open_day(store)
        first_hour = min(open_day * _HOURS, now_us // HOUR_US - _HOURS)
        recent = await _pieces(store, account_id, first_hour * HOUR_US, 2**62)
        return cls(store, account_id, open_day, first_hour, recent)

    async def by_day(self, first_day: int, last_day: int, group: GroupBy, only: Only = _ALL) -> list[Point]:
        """Sum calls by day and group, oldest first; both days included."""
        column = _GROUPS[group]
        conditions = "".join(f" AND {name} = ?" for name in only.columns)
        rows = await self._store.fetch(
            f"SELECT day, {column}, sum(charged_nanos), sum(list_nanos), sum(tokens), sum(requests) "  # noqa: S608
            f"FROM usage_day WHERE account_id = ? AND day >= ? AND day <= ? AND day < ?{conditions} "
            f"GROUP BY day, {column}",
            (self._account_id, first_day, last_day, self._open_day, *only.columns.values()),
        )
        begins_at = max(first_day, self._open_day) * _HOURS
        wanted = _some(self._recent, begins_at, (last_day + 1) * _HOURS - 1, only)
        closed = [Point(row[0], str(row[1]), *row[2:]) for row in rows]
        return sorted([*closed, *_sum(wanted, group, _HOURS)], key=lambda point: (point.step, point.group))

    async def in_days(self, first_day: int, last_day: int, only: Only = _ALL) -> Point:
        """Sum all calls of these days, both included, into one figure; its step is the first day."""
        conditions = "".join(f" AND {name} = ?" for name in only.columns)
        (closed,) = await self._store.fetch(
            "SELECT coalesce(sum(charged_nanos), 0), coalesce(sum(list_nanos), 0), coalesce(sum(tokens), 0), "  # noqa: S608
            "coalesce(sum(requests), 0) FROM usage_day "
            f"WHERE account_id = ? AND day >= ? AND day <= ? AND day < ?{conditions}",
            (self._account_id, first_day, last_day, self._open_day, *only.columns.values()),
        )
        begins_at = max(first_day, self._open_day) * _HOURS
        young = _some(self._recent, begins_at, (last_day + 1) * _HOURS - 1, only)
        return Point(
            first_day,
            "",
            closed[0] + sum(piece.charged_nanos for piece in young),
            closed[1] + sum(piece.list_nanos for piece in young),
            closed[2] + sum(piece.tokens for piece in young),
            closed[3] + sum(piece.requests for piece in young),
        )

    async def by_hour(self, first_hour: int, last_hour: int, group: GroupBy, only: Only = _ALL) -> list[Point]:
        """Sum calls by hour and group, oldest first; both hours included."""
        pieces = self._recent
        if first_hour < self._first_hour:
            begin_us, end_us = first_hour * HOUR_US, min(self._first_hour, last_hour + 1) * HOUR_US
            pieces = [*await _pieces(self._store, self._account_id, begin_us, end_us), *pieces]
        return _sum(_some(pieces, first_hour, last_hour, only), group, 1)

    async def of_keys(self) -> dict[int, Use]:
        """Give for each key that was ever used when that was last, for how many calls and what they cost."""
        rows = await self._store.fetch(
            "SELECT key_id, max(last_at), sum(requests), sum(charged_nanos) FROM usage_day "
            "WHERE account_id = ? AND day < ? GROUP BY key_id",
            (self._account_id, self._open_day),
        )
        uses = {key_id: Use(last_at, requests, charged) for key_id, last_at, requests, charged in rows}
        for piece in self._recent:
            if piece.hour >= self._open_day * _HOURS:
                was = uses.get(piece.key_id, Use(0, 0, 0))
                uses[piece.key_id] = Use(
                    max(was.last_at_us, piece.last_at_us),
                    was.requests + piece.requests,
                    was.spend_nanos + piece.charged_nanos,
                )
        return uses


async def _pieces(store: Reading, account_id: int, begin_us: int, end_us: int) -> list[_Piece]:
    """Add up the calls between two moments by hour."""
    rows = await store.fetch(
        f"SELECT at / {HOUR_US} AS hour, key_id, model, outcome, count(*), sum({TOKENS}), "  # noqa: S608
        "sum(charged_nanos), sum(list_nanos), max(at) FROM usage WHERE account_id = ? AND at >= ? AND at < ? "
        f"GROUP BY at / {HOUR_US}, key_id, model, outcome",
        (account_id, begin_us, end_us),
    )
    return [_Piece(*row) for row in rows]


def _some(pieces: list[_Piece], first_hour: int, last_hour: int, only: Only) -> list[_Piece]:
    wanted = only.columns.items()
    return [
        piece
        for piece in pieces
        if first_hour <= piece.hour <= last_hour and all(getattr(piece, name) == value for name, value in wanted)
    ]


def _sum(pieces: list[_Piece], group: GroupBy, hours: int) -> list[Point]:
    """Sum by steps of so many hours, oldest first."""
    sums: dict[tuple[int, str], Point] = {}
    for piece in pieces:
        at = (piece.hour // hours, piece.name(group))
        was = sums.get(at, Point(*at, 0, 0, 0, 0))
        sums[at] = Point(
            *at,
            was.spend_nanos + piece.charged_nanos,
            was.list_nanos + piece.list_nanos,
            was.tokens + piece.tokens,
            was.requests + piece.requests,
        )
    return [sums[at] for at in sorted(sums)]


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
