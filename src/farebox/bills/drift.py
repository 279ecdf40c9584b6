"""Drift: what was metered of each day and model beside what the upstream bills for it.

Metered is what calls came to at list prices, the waived ones included, since the upstream bills those as well.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from farebox.billing.pricing import Catalogue
from farebox.clock import DAY_US, day_start_us
from farebox.store.protocol import Reading, Statement, Store

_METERED: Final = (
    "SELECT model, coalesce(sum(list_nanos), 0), coalesce(sum(web_searches), 0), count(*) FROM usage "
    "WHERE at >= ? AND at < ? AND upstream IN ({}) GROUP BY model"
)


class Line(msgspec.Struct, frozen=True):
    """One model of one day: what was metered, and what is billed. Nano-dollars at list prices."""

    day: str
    model: str
    metered_nanos: int
    billed_nanos: int

    @property
    def differs_nanos(self) -> int:
        """Above zero: more is billed than was metered."""
        return self.billed_nanos - self.metered_nanos


class Day(msgspec.Struct, frozen=True):
    """A day of a bill, line by line."""

    bill: str
    day: str
    fetched_at_us: int
    lines: tuple[Line, ...]

    @property
    def metered_nanos(self) -> int:
        return sum(line.metered_nanos for line in self.lines)

    @property
    def billed_nanos(self) -> int:
        return sum(line.billed_nanos for line in self.lines)

    @property
    def differs_nanos(self) -> int:
        return self.billed_nanos - self.metered_nanos

    @property
    def most_different(self) -> list[Line]:
        """Give its lines, those first that differ most."""
        return sorted(self.lines, key=lambda line: -abs(line.differs_nanos))

    @property
    def share(self) -> float:
        """The difference as a share of the larger of the two, in percent."""
        return 100 * self.differs_nanos / max(self.metered_nanos, self.billed_nanos, 1)

    def drifts(self, percent: float, least_nanos: int) -> bool:
        """Tell whether bill and books are further apart than both limits."""
        return abs(self.share) > percent and abs(self.differs_nanos) > least_nanos


async def metered(
    store: Reading, catalogue: Catalogue, upstreams: Sequence[str], day: str, *, by_piece: str
) -> dict[str, int]:
    """Sum up what a day's calls at these upstreams came to at list, by model; searches under the name `by_piece`."""
    if not upstreams:
        return {}
    begin_us = day_start_us(day)
    marks = ", ".join("?" * len(upstreams))
    rows = await store.fetch(_METERED.format(marks), (begin_us, begin_us + DAY_US, *upstreams))
    sums: dict[str, int] = {}
    for name, list_nanos, searches, _ in rows:
        model = catalogue.find(name)
        pieces = searches * catalogue.per_use(model) if model is not None and searches else 0
        sums[name] = sums.get(name, 0) + list_nanos - pieces
        if pieces:
            sums[by_piece] = sums.get(by_piece, 0) + pieces
    return {name: nanos for name, nanos in sums.items() if nanos}


async def keep(
    store: Store, bill: str, day: str, ours: Mapping[str, int], theirs: Mapping[str, int], now_us: int
) -> Day:
    """Write down a day of a bill, in the place of what was known of it before."""
    lines = tuple(Line(day, model, ours.get(model, 0), theirs.get(model, 0)) for model in sorted({*ours, *theirs}))
    statements: list[Statement] = [("DELETE FROM bill_day WHERE bill = ? AND day = ?", (bill, day))]
    insert = (
        "INSERT INTO bill_day (bill, day, model, metered_nanos, billed_nanos, fetched_at) VALUES (?, ?, ?, ?, ?, ?)"
    )
    statements += [
        (insert, (bill, day, line.model, line.metered_nanos, line.billed_nanos, now_us))
        for line in lines or (Line(day, "", 0, 0),)  # that nothing was billed is known, too
    ]
    await store.write(statements)
    return Day(bill, day, now_us, lines)


async def days_of(store: Reading, bill: str | None = None, limit: int = 62) -> list[Day]:
    """Read the newest days of one bill, or of all."""
    where, params = ("WHERE bill = ?", (bill,)) if bill is not None else ("", ())
    newest = await store.fetch(
        f"SELECT bill, day FROM bill_day {where} GROUP BY bill, day ORDER BY day DESC, bill LIMIT ?",  # noqa: S608
        (*params, limit),
    )
    if not newest:
        return []
    rows = await store.fetch(
        "SELECT bill, day, model, metered_nanos, billed_nanos, fetched_at FROM bill_day "
        "WHERE day >= ? ORDER BY day DESC, bill, model",
        (newest[-1][1],),
    )
    found: dict[tuple[str, str], list[tuple[Line, int]]] = {(name, day): [] for name, day in newest}
    for name, day, model, ours, theirs, at_us in rows:
        if (name, day) in found:
            found[name, day].append((Line(day, model, ours, theirs), at_us))
    return [
        Day(name, day, max(at for _, at in lines), tuple(line for line, _ in lines if line.model))
        for (name, day), lines in found.items()
    ]


async def forget_old(store: Store, before_day: str) -> None:
    """Drop what is older than a day."""
    await store.write([("DELETE FROM bill_day WHERE day < ?", (before_day,))])
