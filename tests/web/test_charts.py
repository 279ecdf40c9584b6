"""Charts: what is drawn adds up, whatever the figures are."""

from hypothesis import given
from hypothesis import strategies as st

from farebox.web.charts import MOST_SERIES, OTHER, stack
from farebox.web.pages import write_took, write_total

SERIES = st.dictionaries(st.text(min_size=1, max_size=8), st.lists(st.integers(0, 2**62), min_size=3, max_size=3))


@given(SERIES)
def test_every_figure_is_in_the_chart_and_every_bar_is_as_high_as_its_figure(values: dict[str, list[int]]) -> None:
    chart = stack(values, 3)
    assert chart.totals == [sum(row[column] for row in values.values()) for column in range(3)]
    assert sum(chart.sums) == sum(map(sum, values.values()))
    assert len(chart.names) == len(chart.columns) == len(chart.sums) == min(len(values), MOST_SERIES)
    top = max(tick.value for tick in chart.ticks)
    for column in range(3):
        bars = [bar for bar in chart.bars if 100 * column / 3 <= bar.x < 100 * (column + 1) / 3]
        assert abs(sum(bar.height for bar in bars) - 100 * chart.totals[column] / top) < 0.02
        for bar in bars:
            assert abs(bar.height - 100 * chart.columns[bar.series][column] / top) < 0.001
            assert -0.01 <= bar.y <= 100
            assert bar.x + bar.width <= 100


@given(st.integers(0, 2**62))
def test_the_axis_has_few_round_ticks_and_is_hardly_higher_than_its_bars(most: int) -> None:
    ticks = stack({"a": [most]}, 1).ticks
    assert 2 <= len(ticks) <= 5
    assert ticks[0].value == 0
    assert ticks[0].y == 100
    assert ticks[-1].y == 0
    assert ticks[-1].value >= most
    step = ticks[1].value
    assert str(step).rstrip("0") in {"1", "2", "5"}
    assert most == 0 or ticks[-1].value - most < step


def test_series_are_ordered_by_size_and_those_beyond_the_fourth_become_one() -> None:
    values = {f"m{number}": [number] for number in range(1, 9)}
    chart = stack(values, 1)
    assert chart.names == ["m8", "m7", "m6", "m5", OTHER]
    assert chart.sums == [8, 7, 6, 5, 10]


def test_nothing_gives_an_empty_chart() -> None:
    chart = stack({}, 30)
    assert not chart.bars
    assert not chart.names
    assert chart.totals == [0] * 30


def test_sums_and_durations_are_as_exact_as_their_size_asks_for() -> None:
    for nanos, told in (
        (0, "$0.00"),
        (801_000, "$0.000801"),
        (9_999_999, "$0.009999999"),
        (10_000_000, "$0.0100"),
        (123_450_000, "$0.1235"),
        (999_999_999, "$1.0000"),
        (1_005_000_000, "$1.01"),
        (1_234_567_894_999_999, "$1,234,567.89"),
        (-2_000_000_000, "-$2.00"),
    ):
        assert write_total(nanos) == told
    for us, told in ((0, "0 ms"), (999_999, "999 ms"), (1_239_999, "1.23 s"), (125_900_000, "2 min 5 s")):
        assert write_took(us) == told
