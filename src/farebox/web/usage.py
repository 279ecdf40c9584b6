"""Usage as a picture and as a table: what was asked for in the address, read from the books and laid out in columns."""

from typing import Final, Self, cast

import msgspec
from starlette.datastructures import QueryParams

from farebox.books.figures import HOUR_US, Figures, GroupBy, Point
from farebox.clock import DAY_US, day_of, iso
from farebox.web.charts import Chart, stack

METRICS: Final = ("spend", "tokens", "requests")
GROUPS: Final = {"model": "model", "key": "key", "status": "outcome"}
RANGES: Final = {"24h": 24, "7d": 7, "30d": 30, "90d": 90}


class Asked(msgspec.Struct, frozen=True):
    """What a usage chart shows, as its address says; whatever is no choice is the usual one."""

    metric: str
    group: str
    range: str

    @classmethod
    def read(cls, query: QueryParams) -> Self:
        metric, group, range_ = (query.get(name, "") for name in ("metric", "by", "range"))
        return cls(
            metric if metric in METRICS else METRICS[0],
            group if group in GROUPS else "model",
            range_ if range_ in RANGES else "30d",
        )

    @property
    def hourly(self) -> bool:
        return self.range == "24h"

    def address(self, **changes: str) -> str:
        """Write the query of a chart that differs in this."""
        values = {"metric": self.metric, "by": self.group, "range": self.range, **changes}
        return "?" + "&".join(f"{name}={value}" for name, value in values.items())


class Usage(msgspec.Struct, frozen=True):
    """A chart with everything around it. `rows` are its columns as a table: when, a figure a series, the sum."""

    asked: Asked
    chart: Chart
    labels: list[str]
    points: list[Point]
    """All there is by step and group, whatever the metric."""
    last_step: int

    @property
    def total(self) -> int:
        return sum(self.chart.totals)

    @property
    def rows(self) -> list[tuple[str, list[int], int]]:
        """The columns that have something in them, newest first."""
        chart = self.chart
        columns = zip(self.labels, *chart.columns, strict=True) if chart.columns else ()
        found = [(str(label), list(values), sum(values)) for label, *values in columns]
        return [row for row in found[::-1] if row[2]]

    def spent(self, steps: int) -> int:
        """Sum what was charged in the last so many steps."""
        return sum(point.spend_nanos for point in self.points if point.step > self.last_step - steps)


async def look_at_usage(figures: Figures, asked: Asked, names: dict[int, str], now_us: int) -> Usage:
    """Lay out the usage that is asked for. `names` are those of the account's keys."""
    length = RANGES[asked.range]
    size_us = HOUR_US if asked.hourly else DAY_US
    last = now_us // size_us
    first = last - length + 1
    group = cast("GroupBy", GROUPS[asked.group])
    points = figures.by_hour(first, last, group) if asked.hourly else await figures.by_day(first, last, group)
    series: dict[str, list[int]] = {}
    for point in points:
        figure = {"spend": point.spend_nanos, "tokens": point.tokens, "requests": point.requests}[asked.metric]
        name = show_group(asked.group, point.group, names)
        series.setdefault(name, [0] * length)[point.step - first] += figure
    labels = [_label(step * size_us, hourly=asked.hourly) for step in range(first, last + 1)]
    return Usage(asked, stack(series, length), labels, points, last)


def show_group(group: str, name: str, names: dict[int, str]) -> str:
    """Name a series for people."""
    if group == "key":
        return names.get(int(name), f"key {name}")
    return name.replace("_", " ") if group == "status" else name


def _label(at_us: int, *, hourly: bool) -> str:
    return iso(at_us)[:13].replace("T", " ") + ":00" if hourly else day_of(at_us)
