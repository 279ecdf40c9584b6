"""Usage as a picture and as a table: what was asked for in the address, read from the books and laid out in columns."""

import re
from typing import Final, Self, cast

import msgspec
from starlette.datastructures import QueryParams

from farebox.books.figures import Figures, GroupBy, Only, Point
from farebox.clock import DAY_US, HOUR_US, day_of, day_start_us, iso
from farebox.web.charts import Chart, stack

METRICS: Final = ("spend", "tokens", "requests")
GROUPS: Final = {"model": "model", "key": "key", "status": "outcome"}
RANGES: Final = {"24h": 24, "7d": 7, "30d": 30, "90d": 90}


class Asked(msgspec.Struct, frozen=True):
    """What a usage chart shows, as its address says; whatever is no choice is the usual one."""

    metric: str
    group: str
    range: str
    key: str = ""
    """The number of the one key it is about; empty: all."""
    day: str = ""
    """The one day it shows hour by hour; empty: the range until now."""
    fixed: bool = False
    """Whether the page is about that key anyway, so that addresses need not say so."""

    @classmethod
    def read(cls, query: QueryParams, key: str = "") -> Self:
        metric, group, range_, asked_key, day = (
            query.get(name, "") for name in ("metric", "by", "range", "key", "day")
        )
        return cls(
            metric if metric in METRICS else METRICS[0],
            group if group in GROUPS else "model",
            range_ if range_ in RANGES else "30d",
            key or (asked_key if asked_key.isascii() and asked_key.isdecimal() and len(asked_key) < 19 else ""),
            day if _is_day(day) else "",
            fixed=bool(key),
        )

    @property
    def hourly(self) -> bool:
        return bool(self.day) or self.range == "24h"

    @property
    def only(self) -> Only:
        return Only(key_id=int(self.key) if self.key else None)

    @property
    def span(self) -> str:
        """Say in words which time it shows."""
        if self.day:
            return f"on {self.day}"
        return "in the last 24 hours" if self.hourly else f"in the last {self.range[:-1]} days"

    def address(self, **changes: str) -> str:
        """Write the query of a chart that differs in this. Another range leaves the day that was looked at."""
        values = {"metric": self.metric, "by": self.group, "range": self.range}
        values |= {"key": "" if self.fixed else self.key, "day": "" if "range" in changes else self.day, **changes}
        return "?" + "&".join(f"{name}={value}" for name, value in values.items() if value)

    def file(self, kind: str) -> str:
        """Write the address of the same figures as a file."""
        return f"/dashboard/usage.{kind}" + (self.address(key=self.key) if self.key else self.address())


class Usage(msgspec.Struct, frozen=True):
    """A chart with everything around it. `rows` are its columns as a table: when, a figure a series, the sum."""

    asked: Asked
    chart: Chart
    labels: list[str]
    points: list[Point]
    """All there is by step and group, whatever the metric."""
    last_step: int
    before: int | None
    """What the period before came to, as long as this one; None of hours."""

    @property
    def change(self) -> int | None:
        """Give the change against the period before, in percent; None where there was nothing to compare with."""
        return round(100 * (self.total - self.before) / self.before) if self.before else None

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


async def look_at_usage(figures: Figures, asked: Asked, names: dict[int, str], now_us: int) -> Usage:
    """Lay out the usage that is asked for. `names` are those of the account's keys."""
    length = 24 if asked.hourly else RANGES[asked.range]
    size_us = HOUR_US if asked.hourly else DAY_US
    last = now_us // size_us if not asked.day else day_start_us(asked.day) // HOUR_US + length - 1
    first = last - length + 1
    group = cast("GroupBy", GROUPS[asked.group])
    read = figures.by_hour if asked.hourly else figures.by_day
    points = await read(first, last, group, asked.only)
    before = None
    if not asked.hourly:
        before = _figure(await figures.in_days(first - length, first - 1, asked.only), asked.metric)
    series: dict[str, list[int]] = {}
    for point in points:
        name = show_group(asked.group, point.group, names)
        series.setdefault(name, [0] * length)[point.step - first] += _figure(point, asked.metric)
    labels = [_label(step * size_us, hourly=asked.hourly) for step in range(first, last + 1)]
    return Usage(asked, stack(series, length), labels, points, last, before)


def _figure(point: Point, metric: str) -> int:
    return {"spend": point.spend_nanos, "tokens": point.tokens, "requests": point.requests}[metric]


def _is_day(text: str) -> bool:
    """Tell whether a text names a day since 1970, as `day_of` does."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
        return False
    try:
        return day_start_us(text) >= 0
    except ValueError:
        return False


def show_group(group: str, name: str, names: dict[int, str]) -> str:
    """Name a series for people."""
    if group == "key":
        return names.get(int(name), f"key {name}")
    return name.replace("_", " ") if group == "status" else name


def _label(at_us: int, *, hourly: bool) -> str:
    return iso(at_us)[:13].replace("T", " ") + ":00" if hourly else day_of(at_us)
