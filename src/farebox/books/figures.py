"""Figures for the dashboard: what an account spent, by day or hour and by model, key or outcome. Read only.

Made from the sums of days and hours (books.sums); only the calls of the hour that is not closed are added up anew. That
keeps a year of a busy account as quick to draw as a week of a quiet one.
"""

from typing import Final, Literal, Self

import msgspec

from farebox.books.sums import FOREVER, HOURS, Open, calls_between, first_open
from farebox.clock import HOUR_US
from farebox.store.protocol import Reading

GroupBy = Literal["model", "key", "outcome"]
_GROUPS: Final = {"model": "model", "key": "key_id", "outcome": "outcome"}


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

    def __init__(self, store: Reading, account_id: int, opened: Open, first_hour: int, recent: list[_Piece]) -> None:
        self._store = store
        self._account_id = account_id
        self._open_day = opened.day
        self._opened = opened
        self._first_hour = first_hour
        self._recent = recent

    @classmethod
    async def read(cls, store: Reading, account_id: int, now_us: int) -> Self:
        """Read what is young enough to be added up by the hour."""
        opened = await first_open(store)
        first_hour = min(opened.day * HOURS, now_us // HOUR_US - HOURS)
        recent = await _pieces(store, account_id, opened, first_hour * HOUR_US, FOREVER)
        return cls(store, account_id, opened, first_hour, recent)

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
        begins_at = max(first_day, self._open_day) * HOURS
        wanted = _some(self._recent, begins_at, (last_day + 1) * HOURS - 1, only)
        closed = [Point(row[0], str(row[1]), *row[2:]) for row in rows]
        return sorted([*closed, *_sum(wanted, group, HOURS)], key=lambda point: (point.step, point.group))

    async def in_days(self, first_day: int, last_day: int, only: Only = _ALL) -> Point:
        """Sum all calls of these days, both included, into one figure; its step is the first day."""
        conditions = "".join(f" AND {name} = ?" for name in only.columns)
        (closed,) = await self._store.fetch(
            "SELECT coalesce(sum(charged_nanos), 0), coalesce(sum(list_nanos), 0), coalesce(sum(tokens), 0), "  # noqa: S608
            "coalesce(sum(requests), 0) FROM usage_day "
            f"WHERE account_id = ? AND day >= ? AND day <= ? AND day < ?{conditions}",
            (self._account_id, first_day, last_day, self._open_day, *only.columns.values()),
        )
        begins_at = max(first_day, self._open_day) * HOURS
        young = _some(self._recent, begins_at, (last_day + 1) * HOURS - 1, only)
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
            pieces = [*await _pieces(self._store, self._account_id, self._opened, begin_us, end_us), *pieces]
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
            if piece.hour >= self._open_day * HOURS:
                was = uses.get(piece.key_id, Use(0, 0, 0))
                uses[piece.key_id] = Use(
                    max(was.last_at_us, piece.last_at_us),
                    was.requests + piece.requests,
                    was.spend_nanos + piece.charged_nanos,
                )
        return uses


async def _pieces(store: Reading, account_id: int, opened: Open, begin_us: int, end_us: int) -> list[_Piece]:
    """Add up the calls between two moments by hour."""
    sql, values = calls_between(opened, begin_us, end_us, "account_id = ?", (account_id,), days=False)
    rows = await store.fetch(
        "SELECT hour, key_id, model, outcome, sum(requests), sum(tokens), sum(charged_nanos), sum(list_nanos), "  # noqa: S608
        f"max(last_at) FROM ({sql}) AS calls GROUP BY hour, key_id, model, outcome",
        values,
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
