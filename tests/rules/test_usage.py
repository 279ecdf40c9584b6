"""Usage: read from the upstream's words without losing a counter, or not believed at all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.billing.usage import Line, UnusableUsage, Usage, merge_usage, read_usage

MODEL = "claude-sonnet-4-6"
PLAIN: dict[str, Any] = {"input_tokens": 100, "output_tokens": 20}


def line(usage: dict[str, Any], **options: bool) -> Line:
    found = read_usage(usage, MODEL, **options)
    assert len(found.lines) == 1
    return found.lines[0]


def test_later_reports_replace_and_never_add() -> None:
    merged = merge_usage({"input_tokens": 9, "output_tokens": 1}, {"output_tokens": 40})
    assert merge_usage(merged, {"output_tokens": 41}) == {"input_tokens": 9, "output_tokens": 41}


def test_a_null_in_a_later_report_says_nothing() -> None:
    assert merge_usage(PLAIN, {"input_tokens": None, "output_tokens": 21})["input_tokens"] == 100


def test_a_zero_in_a_later_report_says_zero() -> None:
    """A refusal reports one output token at the start and none at the end."""
    assert merge_usage({"output_tokens": 1}, {"output_tokens": 0}) == {"output_tokens": 0}


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(0, 9)), max_size=6))
def test_merging_keeps_the_last_word_on_each_field(reports: list[dict[str, int | None]]) -> None:
    merged: Any = {}
    for report in reports:
        merged = merge_usage(merged, report)
    for name in "abc":
        said = [report[name] for report in reports if report.get(name) is not None]
        assert merged.get(name) == (said[-1] if said else None)


@pytest.mark.parametrize(
    ("split", "long_asked", "short", "long"),
    [
        ({"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}, False, 30, 70),
        (None, False, 100, 0),
        (None, True, 0, 100),  # asked for an hour and not split: an hour it is
        ({}, False, 100, 0),
        ({"ephemeral_1h_input_tokens": 60}, False, 40, 60),
        ({"ephemeral_5m_input_tokens": 60}, True, 60, 40),
    ],
)
def test_cache_writes_are_split_by_their_lifetime(
    split: dict[str, int] | None, *, long_asked: bool, short: int, long: int
) -> None:
    usage = PLAIN | {"cache_creation_input_tokens": 100, "cache_creation": split}
    found = line(usage, long_cache_asked=long_asked)
    assert (found.cache_write_5m, found.cache_write_1h, found.unpriced) == (short, long, 0)


def test_a_cache_lifetime_nobody_knows_is_kept_as_unpriced() -> None:
    split = {"ephemeral_5m_input_tokens": 10, "ephemeral_1d_input_tokens": 90}
    found = line(PLAIN | {"cache_creation_input_tokens": 100, "cache_creation": split})
    assert (found.cache_write_5m, found.cache_write_1h, found.unpriced) == (10, 0, 90)


def test_a_counter_nobody_knows_is_kept_as_unpriced() -> None:
    assert line(PLAIN | {"hologram_input_tokens": 17, "mood": "fine"}).unpriced == 17


def test_thinking_is_not_counted_beside_the_output_it_is_part_of() -> None:
    found = line(PLAIN | {"output_tokens_details": {"thinking_tokens": 15}})
    assert (found.output, found.unpriced) == (20, 0)


def test_what_changes_the_price_is_read() -> None:
    found = line(PLAIN | {"speed": "fast", "inference_geo": "us", "service_tier": "batch"})
    assert (found.fast, found.geo_us, found.batch) == (True, True, True)
    found = line(PLAIN | {"speed": "standard", "inference_geo": "global", "service_tier": "priority"})
    assert (found.fast, found.geo_us, found.batch) == (False, False, False)


def test_tools_billed_by_the_piece_are_counted_and_unknown_ones_kept() -> None:
    tools = {"web_search_requests": 2, "web_fetch_requests": 5, "time_travel_requests": 3, "other": None}
    found = read_usage(PLAIN | {"server_tool_use": tools}, MODEL)
    assert (found.web_searches, found.unpriced_uses) == (2, 3)


def test_steps_that_the_totals_leave_out_are_counted() -> None:
    """Compaction and advisor steps are billed beside the totals; the message steps are what the totals say."""
    steps = [
        {"type": "compaction", "input_tokens": 1_000, "output_tokens": 50},
        {"type": "message", "input_tokens": 100, "output_tokens": 20},
        {"type": "advisor_message", "model": "claude-opus-4-6", "input_tokens": 7, "output_tokens": 3},
    ]
    found = read_usage(PLAIN | {"iterations": steps}, MODEL)
    assert (found.total("input"), found.total("output")) == (1_107, 73)
    assert [step.model for step in found.lines] == [MODEL, MODEL, "claude-opus-4-6"]


def test_totals_that_no_step_explains_are_not_free() -> None:
    found = read_usage(PLAIN | {"iterations": [{"type": "message", "input_tokens": 60}]}, MODEL)
    assert (found.total("input"), found.total("output")) == (100, 20)


def test_cache_writes_that_steps_split_otherwise_than_the_totals_are_counted_once() -> None:
    step = {"type": "message", "cache_creation_input_tokens": 100, "input_tokens": 100, "output_tokens": 20}
    split = {"ephemeral_1h_input_tokens": 100}
    usage = PLAIN | {
        "cache_creation_input_tokens": 100,
        "cache_creation": split,
        "iterations": [step],
    }
    found = read_usage(usage, MODEL)
    assert found.total("cache_write_5m") + found.total("cache_write_1h") == 100


COUNTERS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
steps = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "fallback_message", "compaction", "advisor_message", "news"])},
    optional={name: st.integers(0, 10**6) for name in COUNTERS},
)


@given(st.fixed_dictionaries({name: st.integers(0, 10**6) for name in COUNTERS}), st.lists(steps, max_size=5))
def test_steps_never_make_a_call_cheaper_than_its_totals_or_than_its_steps(
    totals: dict[str, int], iterations: list[dict[str, Any]]
) -> None:
    found = read_usage(totals | {"iterations": iterations}, MODEL)
    for name, classes in (
        ("input_tokens", ("input",)),
        ("output_tokens", ("output",)),
        ("cache_read_input_tokens", ("cache_read",)),
        ("cache_creation_input_tokens", ("cache_write_5m", "cache_write_1h")),
    ):
        counted = sum(found.total(one) for one in classes)
        assert counted >= totals[name]
        assert counted >= sum(step.get(name, 0) for step in iterations)


@pytest.mark.parametrize("value", [-1, 1.5, "3", True, 10**12, [], {}])
@pytest.mark.parametrize("name", [*COUNTERS, "hologram_tokens"])
def test_a_counter_that_is_no_count_is_not_believed(name: str, value: Any) -> None:
    with pytest.raises(UnusableUsage, match=name):
        read_usage(PLAIN | {name: value}, MODEL)


@pytest.mark.parametrize(
    "broken",
    [
        {"iterations": {"type": "message"}},
        {"iterations": ["message"]},
        {"cache_creation": 3},
        {"cache_creation": {"ephemeral_5m_input_tokens": -2}},
        {"server_tool_use": 3},
        {"server_tool_use": {"web_search_requests": -1}},
        {"iterations": [{"type": "message", "input_tokens": "many"}]},
    ],
)
def test_a_report_of_the_wrong_shape_is_not_believed(broken: dict[str, Any]) -> None:
    with pytest.raises(UnusableUsage):
        read_usage(PLAIN | broken, MODEL)


def test_cache_reads_do_not_count_against_tokens_a_minute() -> None:
    usage = Usage((Line(MODEL, 1, 10, 100, 1_000, 10_000, 100_000), Line(MODEL, 5)))
    assert usage.limited_tokens == 1 + 10 + 100 + 10_000 + 100_000 + 5


def steps_of(usage: dict[str, Any], *steps: dict[str, Any], **options: bool) -> list[tuple[int, int, int, int, int]]:
    """Give what each line of an answer in steps counts: short and long writes, reads, output, unpriced."""
    found = read_usage(
        {**PLAIN, **usage, "iterations": [{"type": "message", **step} for step in steps]}, MODEL, **options
    )
    return [(one.cache_write_5m, one.cache_write_1h, one.cache_read, one.output, one.unpriced) for one in found.lines]


def writes(short: int, long: int) -> dict[str, Any]:
    split = {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}
    return {"cache_creation_input_tokens": short + long, "cache_creation": split}


@pytest.mark.parametrize(
    ("total", "step", "left"),
    [
        ((10, 20), (4, 6), (6, 14)),
        ((10, 20), (10, 19), (0, 1)),
        ((10, 20), (9, 20), (1, 0)),
        ((10, 20), (15, 0), (0, 15)),  # five too many for five minutes were for an hour
        ((20, 10), (0, 15), (15, 0)),
        ((10, 20), (11, 12), (0, 7)),
        ((5, 5), (20, 0), (0, 0)),
        ((5, 5), (0, 20), (0, 0)),
    ],
)
def test_cache_writes_that_no_step_explains_are_left_whatever_their_lifetime(
    total: tuple[int, int], step: tuple[int, int], left: tuple[int, int]
) -> None:
    """The totals' other counts are larger, so that there is always a line for what is left."""
    _, rest = steps_of(writes(*total), {"input_tokens": 1, "output_tokens": 1, **writes(*step)})
    assert rest[:2] == left


@pytest.mark.parametrize(
    ("total", "step", "left"),
    [
        ({"cache_read_input_tokens": 30}, {"cache_read_input_tokens": 10}, (0, 0, 20, 0, 0)),
        ({"hologram_tokens": 7}, {"hologram_tokens": 3}, (0, 0, 0, 0, 4)),
        ({"output_tokens": 25}, {}, (0, 0, 0, 5, 0)),
        ({"output_tokens": 19, "hologram_tokens": 3}, {"hologram_tokens": 9, "cache_read_input_tokens": 1}, None),
    ],
)
def test_what_the_totals_say_beyond_the_steps_is_a_line_of_its_own(
    total: dict[str, int], step: dict[str, int], left: tuple[int, ...] | None
) -> None:
    _, *rest = steps_of(total, {**PLAIN, **step})
    assert rest == ([left] if left else [])


def test_several_steps_are_taken_from_the_totals_together() -> None:
    step = {"input_tokens": 10, "output_tokens": 4, "cache_read_input_tokens": 2, "hologram_tokens": 3, **writes(2, 1)}
    whole = {"cache_read_input_tokens": 7, "hologram_tokens": 8, **writes(9, 4)}
    assert steps_of(whole, step, step)[2:] == [(5, 2, 3, 12, 2)]


def test_what_is_left_over_and_steps_without_a_name_are_the_models_that_answered() -> None:
    usage = {
        **PLAIN,
        "iterations": [{"type": "message", "output_tokens": 1, "model": "claude-haiku-4-5"}, {"model": None}],
    }
    assert [one.model for one in read_usage(usage, MODEL).lines] == ["claude-haiku-4-5", MODEL, MODEL]


def test_a_step_that_wrote_without_a_split_wrote_for_as_long_as_was_asked() -> None:
    step = {**PLAIN, "cache_creation_input_tokens": 8}
    assert steps_of({"cache_creation_input_tokens": 8}, step, long_cache_asked=True) == [(0, 8, 0, 20, 0)]
    assert steps_of({"cache_creation_input_tokens": 8}, step) == [(8, 0, 0, 20, 0)]


def test_lines_add_up_class_by_class() -> None:
    usage = Usage((Line("a", 1, 2, 3, 4, 5, 6), Line("b", 10, 20, 30, 40, 50, 60)))
    assert usage.summed("c") == Line("c", 11, 22, 33, 44, 55, 66)
