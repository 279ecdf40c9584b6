"""What the workers count, added up: each posts its own figures, the supervisor those of workers that have died.

Counters never go back, whoever dies: a dead worker's last figures are kept, once. Gauges are those of the living.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from farebox.workers.board import Board

_GRAINS: Final = 2**20
"""In one. Floats that are whole numbers of 2⁻²⁰ are added without rounding, up to sums of 2³³ (IEEE 754)."""
_LASTING: Final = frozenset({"counter", "histogram"})
"""What never goes back, so that it outlives who counted it."""
_OLDEST: Final = "process_start_time_seconds"
"""Of starts the earliest is told; their sum would mean nothing."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    name: str
    labels: dict[str, str]
    value: int | float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric with its samples (Prometheus text format: HELP, TYPE and lines)."""

    name: str
    help: str
    type: str
    samples: list[Sample]


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What one worker counted in one life."""

    life: int
    families: list[Family]


class Muster(msgspec.Struct, frozen=True, array_like=True):
    """What the supervisor knows: each slot's lives so far and whether it lives, and what the ended lives counted."""

    lives: list[int]
    living: list[bool]
    counted: list[Family]


_REPORT: Final = msgspec.msgpack.Decoder(Report)
_MUSTER: Final = msgspec.msgpack.Decoder(Muster)


class Roster:
    """The supervisor's side: keeps the muster and posts each change of it, at slot 0; worker n posts at slot n."""

    def __init__(self, board: Board, workers: int) -> None:
        self._board = board
        self._lives = [0] * workers
        self._living = [False] * workers
        self._counted: list[Family] = []
        self._post()

    def begin(self, worker: int) -> int:
        """Note that a worker is about to be started. What it counts is of this life from now on, which is answered."""
        self._lives[worker - 1] += 1
        self._living[worker - 1] = True
        self._post()
        return self._lives[worker - 1]

    def end(self, worker: int) -> None:
        """Note that a worker has ended, and keep what it counted."""
        self._living[worker - 1] = False
        report = _read_report(self._board, worker)
        if report is not None and report.life == self._lives[worker - 1]:
            self._counted = add_up([self._counted, [family for family in report.families if family.type in _LASTING]])
        self._post()

    def report(self, worker: int, collector: Collector) -> None:
        """Post what a worker has counted so far. For the worker itself, forked after `begin`."""
        report_to(self._board, worker, self._lives[worker - 1], collector)

    def _post(self) -> None:
        self._board.post(0, msgspec.msgpack.encode(Muster(self._lives, self._living, self._counted)))


class Totals:
    """The reader's side, a collector for Prometheus. It keeps nothing itself, so it may die and be made anew."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """Give all there is, added up."""
        muster, reports = read_all(self._board)
        yield from _metrics(add_up([muster.counted, *reports.values()]))
        yield GaugeMetricFamily("farebox_workers", "Workers that run", value=sum(muster.living))
        restarts = sum(max(lives - 1, 0) for lives in muster.lives)
        yield CounterMetricFamily("farebox_worker_restarts", "Workers started again", value=restarts)


class Lineage:
    """What this process counts, together with what other generations have counted: a collector for Prometheus."""

    def __init__(self, own: Collector, board: Board, slot: int) -> None:
        self._own = own
        self._board = board
        self._slot = slot

    def collect(self) -> Iterator[Metric]:
        """Give all there is, added up."""
        muster, reports = read_all(self._board)
        others = [families for slot, families in reports.items() if slot != self._slot]
        yield from _metrics(add_up([families_of(self._own), muster.counted, *others]))


def read_all(board: Board) -> tuple[Muster, dict[int, list[Family]]]:
    """Read a muster and the reports of the living that go with it: nobody began or ended in between."""
    while True:
        read = board.read(0)
        muster = _MUSTER.decode(read)
        found = {slot: _read_report(board, slot) for slot in range(1, len(muster.lives) + 1)}
        if board.read(0) == read:
            break
    return muster, {
        slot: report.families
        for slot, report in found.items()
        if report and muster.living[slot - 1] and report.life == muster.lives[slot - 1]
    }


def report_to(board: Board, slot: int, life: int, collector: Collector) -> None:
    """Post at a slot what has been counted so far in a life."""
    board.post(slot, msgspec.msgpack.encode(Report(life, families_of(collector))))


def _metrics(families: Iterable[Family]) -> Iterator[Metric]:
    for family in families:
        metric = Metric(family.name, family.help, family.type)
        for sample in family.samples:
            metric.add_sample(sample.name, sample.labels, sample.value)
        yield metric


def families_of(collector: Collector) -> list[Family]:
    """Collect metrics as values that can be sent and added."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [Sample(sample.name, sample.labels, _grained(sample.value)) for sample in metric.samples],
        )
        for metric in collector.collect()
    ]


def add_up(parts: Iterable[list[Family]]) -> list[Family]:
    """Add samples of the same name and labels, in the order in which they first come."""
    families: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], Sample]] = {}
    for family in (family for part in parts for family in part):
        families.setdefault(family.name, family)
        samples = sums.setdefault(family.name, {})
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            before = samples.get(key)
            samples[key] = sample if before is None else _add(before, sample)
    return [
        Family(family.name, family.help, family.type, list(sums[name].values())) for name, family in families.items()
    ]


def _grained(value: float) -> int | float:
    """Round a fraction so that fractions add up to the same sum in whatever order: a counter never goes back a hair."""
    return round(value * _GRAINS) / _GRAINS if isinstance(value, float) and math.isfinite(value) else value


def _add(one: Sample, other: Sample) -> Sample:
    value = min(one.value, other.value) if one.name == _OLDEST else one.value + other.value
    return Sample(one.name, one.labels, value)


def _read_report(board: Board, worker: int) -> Report | None:
    record = board.read(worker)
    return _REPORT.decode(record) if record else None
