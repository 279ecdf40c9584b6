"""Token buckets: never more than the burst and what flowed in since; and waiting as long as told is enough."""

from hypothesis import given
from hypothesis import strategies as st

from farebox.billing.ratelimit import WINDOW_NS, level, settle_state, spend, wait_ns

rates = st.integers(1, 1_000_000)
START = 1_800_000_000 * 10**9
_DEBT = 10 * WINDOW_NS


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A rate, and moments at which amounts are asked for: up to the bucket and, rarely, more."""
    rate = draw(rates)
    amounts = st.integers(1, rate) | st.integers(1, max(1, rate // 20)) | st.integers(1, rate * 11)
    gaps = st.integers(0, 3 * WINDOW_NS) | st.integers(0, WINDOW_NS // rate * 2) | st.just(0)
    return rate, draw(st.lists(st.tuples(gaps, amounts), max_size=40))


@given(arrivals())
def test_no_window_lets_through_more_than_a_burst_and_its_flow(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    rate, asked = case
    now = state = START
    let_in: list[tuple[int, int]] = []
    for gap, amount in asked:
        now += gap
        state = settle_state(state, now)
        if not wait_ns(state, now, amount, rate):
            state = spend(state, amount, rate)
            let_in.append((now, amount))
    for first in range(len(let_in)):
        total = 0
        for moment, amount in let_in[first:]:
            total += amount
            burst = max(rate, amount)  # what is larger than the bucket passes when the bucket is full
            assert (total - burst) * WINDOW_NS <= rate * (moment - let_in[first][0])


@given(rates, st.integers(-5 * WINDOW_NS, 11 * WINDOW_NS), st.integers(1, 10**7))
def test_after_the_wait_it_passes_and_a_nanosecond_before_it_does_not(rate: int, ahead: int, amount: int) -> None:
    state = settle_state(START + ahead, START)
    wait = wait_ns(state, START, amount, rate)
    later = START + wait
    assert wait_ns(settle_state(state, later), later, amount, rate) == 0
    if wait:
        assert wait_ns(settle_state(state, later - 1), later - 1, amount, rate) == 1


@given(rates, st.integers(0, WINDOW_NS))
def test_what_the_headers_say_is_left_can_be_taken_and_not_one_more(rate: int, ahead: int) -> None:
    state = START + ahead
    left = level(state, START, rate).remaining
    assert wait_ns(state, START, left, rate) == 0
    if left < rate:
        assert wait_ns(state, START, left + 1, rate) > 0


@given(rates)
def test_a_fresh_bucket_holds_a_whole_minute_and_not_one_more(rate: int) -> None:
    assert wait_ns(START, START, rate, rate) == 0
    state = spend(START, rate, rate)
    assert level(state, START, rate).remaining == 0
    assert wait_ns(state, START, 1, rate) > 0


@given(rates, st.integers(1, 10**6))
def test_giving_back_what_was_taken_never_gives_more(rate: int, amount: int) -> None:
    assert START <= spend(spend(START, amount, rate), -amount, rate) <= START + 1


def test_a_request_larger_than_the_bucket_passes_when_it_is_full_and_only_then() -> None:
    assert wait_ns(START, START, 50_000, 40_000) == 0
    assert wait_ns(spend(START, 1, 40_000), START, 50_000, 40_000) > 0


@given(st.integers(-(2**60), 2**60))
def test_a_clock_that_jumps_locks_nobody_out_for_longer_than_the_deepest_debt(state: int) -> None:
    settled = settle_state(state, START)
    assert START <= settled <= START + WINDOW_NS + _DEBT
    assert wait_ns(settled, START, 1, 1_000) <= WINDOW_NS + _DEBT
