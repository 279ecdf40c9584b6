"""Bar charts, drawn on the server: geometry in percent, so that bars stretch with the page and text does not."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

MOST_SERIES: Final = 5
OTHER: Final = "other"
_STEPS: Final = (1, 2, 5, 10)


class Bar(msgspec.Struct, frozen=True):
    """One piece of a stacked bar; figures are percent of the chart's area."""

    series: int
    column: int
    x: float
    y: float
    width: float
    height: float


class Tick(msgspec.Struct, frozen=True):
    """A line across the chart: how far from the top, in percent, and the value it stands for."""

    y: float
    value: int


class Chart(msgspec.Struct, frozen=True):
    """A stacked bar chart. `totals` has the sum of each column, `sums` that of each series, `slots` its colour."""

    names: list[str]
    bars: list[Bar]
    ticks: list[Tick]
    columns: list[list[int]]
    totals: list[int]
    sums: list[int]
    slots: list[int]


def stack(values: Mapping[str, Sequence[int]], columns: int) -> Chart:
    """Draw series of values, a value a column, the largest series at the bottom; those beyond the fifth as one."""
    order = sorted(values, key=lambda name: (-sum(values[name]), name))
    names = order[:MOST_SERIES]
    rows = [list(values[name]) for name in names]
    if len(order) > MOST_SERIES:
        names[-1:] = [OTHER]
        rows[-1:] = [[sum(column) for column in zip(*(values[name] for name in order[MOST_SERIES - 1 :]), strict=True)]]
    totals = [sum(row[column] for row in rows) for column in range(columns)]
    top, step = _scale(max(totals, default=0))
    bars = []
    for column in range(columns):
        height_below = 0.0
        for series, row in enumerate(rows):
            height = 100 * row[column] / top
            if height > 0:
                y = 100 - height_below - height
                width = 100 / columns
                bars.append(Bar(series, column, _r(column * width + width * 0.14), _r(y), _r(width * 0.72), _r(height)))
            height_below += height
    ticks = [Tick(_r(100 - 100 * value / top), value) for value in range(0, top + 1, step)]
    return Chart(names, bars, ticks, rows, totals, [sum(row) for row in rows], _slots(names))


def _slots(names: Sequence[str]) -> list[int]:
    """Choose colours by name, so that a model looks the same on every page; where two meet, one takes the next."""
    taken: dict[str, int] = {OTHER: MOST_SERIES}
    for name in sorted(set(names) - {OTHER}):
        slot = zlib.crc32(name.encode("utf-8", "replace")) % MOST_SERIES
        while slot in taken.values():
            slot = (slot + 1) % MOST_SERIES
        taken[name] = slot
    return [taken[name] for name in names]


def _scale(most: int) -> tuple[int, int]:
    """Choose the top of the axis and its steps: three to five round ones."""
    size = 1
    while True:
        for step in (factor * size for factor in _STEPS):
            steps = -(-most // step)
            if steps <= 4:
                return max(steps, 1) * step, step
        size *= 10


def _r(percent: float) -> float:
    return round(percent, 3)
