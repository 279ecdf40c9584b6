"""Figures of the whole business: what was sold, what is owed to customers, and whether the books agree. Read only.

Closed days come from their sums, so that a year of many customers is as quick to read as a week of few.
"""

from typing import Final, Self

import msgspec

from farebox.books.sums import FOREVER, HOURS, first_open, sold_between
from farebox.clock import DAY_US, HOUR_US
from farebox.store.protocol import Reading

_BROKEN: Final = frozenset({"upstream_broke", "gateway_broke", "gateway_died"})
_SUMS: Final = "sum(charged_nanos), sum(list_nanos), sum(waived_nanos), sum(shortfall_nanos)"


class Piece(msgspec.Struct, frozen=True):
    """What one model and outcome came to in one hour, or, of a closed day, in one day."""

    at_us: int
    model: str
    outcome: str
    requests: int
    spend_nanos: int
    list_nanos: int
    waived_nanos: int
    shortfall_nanos: int


class Period(msgspec.Struct, frozen=True):
    """What the business did in some time. What calls cost is the list price of what the upstream reported."""

    requests: int
    broken: int
    """Calls that the upstream or the gateway broke off: free for customers."""
    refused: int
    """Calls that the upstream refused as wrong."""
    spend_nanos: int
    list_nanos: int
    waived_nanos: int
    shortfall_nanos: int
    deposits_nanos: int
    gifts_nanos: int

    def cost_nanos(self, percent: int) -> int:
        """Work out what the upstream charges, in percent of its list; rounded up."""
        return -(-self.list_nanos * percent // 100)

    def margin_nanos(self, percent: int) -> int:
        return self.spend_nanos - self.cost_nanos(percent)


class Sales:
    """Everything sold in the last days, read once for all questions."""

    def __init__(self, pieces: list[Piece], paid_in: list[tuple[int, str, int]]) -> None:
        self._pieces = pieces
        self._paid_in = paid_in

    @classmethod
    async def read(cls, store: Reading, first_day: int, now_us: int) -> Self:
        """Read what was sold since a day, counted from 1970, and all of the last 24 hours."""
        opened = await first_open(store)
        by_hour_us = max(first_day * DAY_US, (now_us // HOUR_US - HOURS + 1) * HOUR_US)
        pieces = []
        for begin_us, end_us, days in ((first_day * DAY_US, by_hour_us, True), (by_hour_us, FOREVER, False)):
            sql, values = sold_between(opened, begin_us, end_us, days=days)
            rows = await store.fetch(
                f"SELECT hour, model, outcome, sum(requests), {_SUMS} FROM ({sql}) AS calls "  # noqa: S608  fixed texts
                "GROUP BY hour, model, outcome",
                values,
            )
            pieces += [Piece(hour * HOUR_US, *rest) for hour, *rest in rows]
        paid_in = await store.fetch(
            "SELECT at, code, CASE WHEN credit_account LIKE 'customer:%' THEN amount_nanos ELSE -amount_nanos END "
            "FROM transfer WHERE at >= ? AND code IN ('deposit', 'promotion')",
            (first_day * DAY_US,),
        )
        return cls(pieces, paid_in)

    def since(self, at_us: int) -> Period:
        """Sum what was sold since the beginning of an hour of today or yesterday, or of a day before."""
        sold = [piece for piece in self._pieces if piece.at_us >= at_us]
        return Period(
            requests=sum(piece.requests for piece in sold),
            broken=sum(piece.requests for piece in sold if piece.outcome in _BROKEN),
            refused=sum(piece.requests for piece in sold if piece.outcome == "refused_upstream"),
            spend_nanos=sum(piece.spend_nanos for piece in sold),
            list_nanos=sum(piece.list_nanos for piece in sold),
            waived_nanos=sum(piece.waived_nanos for piece in sold),
            shortfall_nanos=sum(piece.shortfall_nanos for piece in sold),
            deposits_nanos=sum(nanos for at, code, nanos in self._paid_in if at >= at_us and code == "deposit"),
            gifts_nanos=sum(nanos for at, code, nanos in self._paid_in if at >= at_us and code == "promotion"),
        )

    def by_model(self, first: int, last: int, size_us: int) -> dict[str, list[int]]:
        """Give what was spent on each model in each step of a size, first and last included."""
        series: dict[str, list[int]] = {}
        for piece in self._pieces:
            step = piece.at_us // size_us
            if first <= step <= last:
                series.setdefault(piece.model, [0] * (last - first + 1))[step - first] += piece.spend_nanos
        return series


class Standing(msgspec.Struct, frozen=True):
    """What is owed to customers now, and whether balances are the sum of all entries."""

    accounts: int
    balances_nanos: int
    held_nanos: int
    calls_in_flight: int
    entries_nanos: int
    """What the entries of all customers add up to."""
    closed_day: str | None
    closed_at_us: int | None
    closed_sha256: str | None

    @property
    def is_proved(self) -> bool:
        return self.balances_nanos == self.entries_nanos


async def standing(store: Reading) -> Standing:
    """Compare balances with entries, in one statement: a call that ends meanwhile raises no false alarm."""
    last = await store.fetch("SELECT day, closed_at, sha256 FROM day_close ORDER BY day DESC LIMIT 1")
    sql, values = sold_between(await first_open(store), 0, FOREVER)
    rows = await store.fetch(
        "SELECT count(*), coalesce(sum(posted_nanos), 0), coalesce(sum(held_nanos), 0), coalesce(sum(open_holds), 0), "  # noqa: S608
        "(SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE credit_account LIKE 'customer:%') "
        "- (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE debit_account LIKE 'customer:%') "
        f"- (SELECT coalesce(sum(charged_nanos), 0) FROM ({sql}) AS calls) FROM account",
        values,
    )
    return Standing(*rows[0], *(last[0] if last else (None, None, None)))
