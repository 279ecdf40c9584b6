"""What workers count adds up, whoever dies when: in memory that a writer killed in the middle does not spoil."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from farebox.gateway.metrics import Metrics
from farebox.workers.board import Board
from farebox.workers.process import Line, start
from farebox.workers.totals import Family, Roster, Sample, Totals, add_up, families_of

RECORD_BYTES = 64


# the board


@given(st.lists(st.binary(max_size=RECORD_BYTES), max_size=6), st.lists(st.binary(max_size=RECORD_BYTES), max_size=6))
def test_each_slot_keeps_its_last_record(ours: list[bytes], theirs: list[bytes]) -> None:
    board = Board(2, RECORD_BYTES)
    for slot, records in enumerate((ours, theirs)):
        for record in records:
            board.post(slot, record)
            assert board.read(slot) == record
    assert board.read(0) == (ours[-1] if ours else b"")


@given(
    st.lists(st.binary(min_size=1, max_size=RECORD_BYTES), min_size=1, max_size=4),
    st.binary(min_size=1, max_size=RECORD_BYTES),
    st.floats(0, 1, exclude_max=True),
)
def test_a_writer_that_dies_in_the_middle_leaves_the_record_before(
    records: list[bytes], last: bytes, share: float
) -> None:
    """Whatever part of the new record was there; and the next writer of the slot goes on as if nothing had been."""
    board = Board(1, RECORD_BYTES)
    for record in records:
        board.post(0, record)
    before = board._memory[:]
    board.post(0, last)
    after = board._memory[:]
    changed = [at for at in range(len(after)) if before[at] != after[at]]
    for at in changed[int(share * len(changed)) :]:
        board._memory[at] = before[at]
    assert board.read(0) == records[-1]
    board.post(0, last)
    assert board.read(0) == last


def test_a_reader_beside_a_writer_finds_whole_records_only() -> None:
    board = Board(1)
    sizes = [1, 70_000, 300, 200_000]

    def write(_: Line) -> int:
        for number in range(100_000):
            board.post(0, bytes([number % 251]) * sizes[number % 4])
        return 0

    writer = start("writer", write, lambda: None)
    try:
        until_s = time.monotonic() + 0.5
        seen = set()
        while time.monotonic() < until_s:
            record = board.read(0)
            assert record == record[:1] * len(record)
            seen.add(len(record))
    finally:
        writer.kill()
        writer.bury()
    assert seen >= {300, 200_000}
    assert board.read(0)


def test_a_record_that_is_too_long_is_refused_and_the_last_one_stays() -> None:
    board = Board(2, RECORD_BYTES)
    board.post(0, b"before")
    with pytest.raises(ValueError, match="at most 64 bytes, got 65"):
        board.post(0, bytes(65))
    assert (board.read(0), board.read(1)) == (b"before", b"")


# the sums


class Counting:
    """What one life of a worker has counted: the collector of a gateway in small."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self.open = 0

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("calls", "Calls", labels=["outcome"])
        calls.add_metric(["finished"], self.calls)
        yield calls
        yield CounterMetricFamily("seconds", "Seconds", value=self.seconds)
        yield GaugeMetricFamily("open", "Open", value=self.open)


def shown(totals: Totals) -> dict[str, float]:
    return {sample.name: sample.value for metric in totals.collect() for sample in metric.samples}


EVENTS = st.tuples(st.sampled_from(["count", "post", "die", "begin"]), st.integers(1, 2), st.integers(1, 5))


@settings(max_examples=300)
@given(st.lists(EVENTS, min_size=20, max_size=60))
def test_counters_are_the_sum_of_all_that_was_ever_posted_and_gauges_of_the_living(
    events: list[tuple[str, int, int]],
) -> None:
    """For any order of counting, posting, dying and beginning again: nothing twice, nothing lost, never back."""
    board = Board(3)
    roster = Roster(board, 2)
    living: dict[int, Counting] = {}
    posted: dict[tuple[int, int], int] = {}
    gauges: dict[int, int] = {}
    lives = dict.fromkeys((1, 2), 0)
    last = {"calls_total": 0.0, "seconds_total": 0.0}
    for event, worker, number in events:
        if event == "begin" and worker not in living:
            roster.begin(worker)
            living[worker] = Counting()
            lives[worker] += 1
        elif event == "die" and worker in living:
            roster.end(worker)
            del living[worker]
            gauges.pop(worker, None)
        elif event == "count" and worker in living:
            living[worker].calls += number
            living[worker].seconds += number / 10
            living[worker].open = number
        elif event == "post" and worker in living:
            roster.report(worker, living[worker])
            posted[worker, lives[worker]] = living[worker].calls
            gauges[worker] = living[worker].open
        values = shown(Totals(board))  # a new one each time: it keeps nothing
        assert values.get("calls_total", 0) == sum(posted.values())
        assert values.get("seconds_total", 0) == pytest.approx(values.get("calls_total", 0) / 10, abs=1e-4)
        assert all(values.get(name, 0) >= value for name, value in last.items())  # not by a hair
        assert values.get("open", 0) == sum(gauges.values())
        assert values["farebox_workers"] == len(living)
        assert values["farebox_worker_restarts_total"] == sum(max(0, count - 1) for count in lives.values())
        last = {name: values.get(name, 0) for name in last}


def test_samples_add_up_by_their_labels_to_the_last_digit() -> None:
    """Nano-dollars are beyond what a float can hold exactly."""
    one = [Family("charged", "c", "counter", [Sample("charged_total", {"a": "x", "b": "y"}, 2**53 + 1)])]
    other = [
        Family("charged", "c", "counter", [Sample("charged_total", {"b": "y", "a": "x"}, 2**53)]),
        Family("more", "m", "gauge", [Sample("more", {}, 0.5)]),
    ]
    third = [Family("charged", "c", "counter", [Sample("charged_total", {"a": "z", "b": "y"}, 7)])]
    assert add_up([one, other, third]) == [
        Family(
            "charged",
            "c",
            "counter",
            [
                Sample("charged_total", {"a": "x", "b": "y"}, 2**54 + 1),
                Sample("charged_total", {"a": "z", "b": "y"}, 7),
            ],
        ),
        Family("more", "m", "gauge", [Sample("more", {}, 0.5)]),
    ]


@given(st.permutations([0.1, 0.2, 0.3, 0.7, 1e6 / 3, 1e9 / 7]), st.integers(1, 5))
def test_fractions_add_up_to_the_same_in_any_order(spent_s: list[float], dead: int) -> None:
    """Else a death, which changes the order, could put a counter back by the last bit: a reset, to Prometheus."""

    def seconds(value: float) -> list[Family]:
        counting = Counting()
        counting.seconds = value
        return families_of(counting)

    parts = [seconds(value) for value in spent_s]
    assert add_up([*parts[dead:], add_up(parts[:dead])]) == add_up(seconds(value) for value in sorted(spent_s))


def test_the_start_that_is_told_is_the_earliest() -> None:
    name = "process_start_time_seconds"
    (family,) = add_up([[Family(name, "s", "gauge", [Sample(name, {}, at)])] for at in (7.5, 3.5, 5.5)])
    assert family.samples == [Sample(name, {}, 3.5)]


def test_one_workers_figures_are_shown_as_if_there_were_no_supervisor() -> None:
    """Name for name and line for line, so that nobody's dashboards change."""
    metrics = Metrics()
    metrics.responses[200] += 3
    metrics.responses[529] += 1
    metrics.settled["finished"] += 2
    metrics.charged_nanos = 123_456_789
    metrics.gauges.append(("farebox_streams_open", "Streams being relayed", lambda: 2))
    board = Board(2)
    roster = Roster(board, 1)
    roster.begin(1)
    roster.report(1, metrics)
    alone, added = generate_latest(metrics).decode(), generate_latest(Totals(board)).decode()
    assert "farebox_responses_total" in alone
    assert added.startswith(alone)
    assert added.removeprefix(alone).count("# TYPE") == 2
