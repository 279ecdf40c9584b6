"""The maths of quotes: the published rule, for any size, and no rounding in the favour of who pays."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.payments.quoting import step, units_for, value, worth
from farebox.payments.rails import Asset, Rate
from farebox.payments.records import OVER_PERCENT, Pricing

BTC = Asset("BTC", "Bitcoin", "Bitcoin", 8)
ETH = Asset("ETH", "Ether", "Ethereum", 18)
USDT = Asset("USDT", "Tether", "Ethereum", 6)
USDT_18 = Asset("USDT", "Tether", "BNB Chain", 18)
ASSETS = (BTC, ETH, USDT, USDT_18, Asset("TINY", "Tiny", "Tiny", 0), Asset("WIDE", "Wide", "Wide", 36))
DOLLAR = 10**9

amounts = st.integers(1, 10**16)
rates = st.integers(1, 10**18)
sizes = st.integers(0, 10**30)
decimals = st.sampled_from([0, 6, 8, 18, 36])


def rate(nanos: int) -> Rate:
    return Rate(nanos=nanos, at=0, spread_ppm=0, sources={})


def credited(units: int, places: int, quote: int | None, left: int, market: int | None, *, in_time: bool) -> int:
    """Value a payment by the rule; it must not have to wait."""
    valued = value(
        units,
        places,
        quote=None if quote is None else rate(quote),
        locked_left_units=left,
        market=None if market is None else rate(market),
        in_time=in_time,
    )
    assert valued is not None
    return valued[0]


@pytest.mark.parametrize(
    ("amount_nanos", "rate_nanos", "asset", "units"),
    [
        (25 * DOLLAR, 64_390 * DOLLAR, BTC, 38_826),
        (25 * DOLLAR, 2_431_370_000_000, ETH, 10_282_270_000_000_000),
        (25 * DOLLAR, 999_700_000, USDT, 25_010_000),
        (25 * DOLLAR, 999_700_000, USDT_18, 25_010_000_000_000_000_000),
        (25 * DOLLAR, DOLLAR, USDT, 25_000_000),  # what is round already stays as it is
        (1, 10**18, BTC, 1),  # never nothing
    ],
)
def test_what_is_asked_for_is_rounded_up_to_a_step_people_can_type(
    amount_nanos: int, rate_nanos: int, asset: Asset, units: int
) -> None:
    assert units_for(amount_nanos, rate_nanos, asset) == units


@pytest.mark.parametrize(("asset", "units"), [(BTC, 1), (ETH, 10**10), (USDT, 10_000), (USDT_18, 10**16)])
def test_steps_are_a_satoshi_ten_gwei_and_a_cent(asset: Asset, units: int) -> None:
    assert step(asset) == units


@pytest.mark.parametrize(("amount_nanos", "rate_nanos"), [(0, 1), (-1, 1), (1, 0), (1, -1)])
def test_nothing_is_quoted_for_nothing(amount_nanos: int, rate_nanos: int) -> None:
    with pytest.raises(ValueError, match="above zero"):
        units_for(amount_nanos, rate_nanos, BTC)


@given(amounts, rates, st.sampled_from(ASSETS))
def test_paying_exactly_what_is_asked_is_worth_at_least_what_was_wanted(amount: int, nanos: int, asset: Asset) -> None:
    units = units_for(amount, nanos, asset)
    assert units % step(asset) == 0
    assert worth(units, nanos, asset.decimals) >= amount
    before = units - step(asset)
    assert worth(before, nanos, asset.decimals) < amount or before == 0
    assert credited(units, asset.decimals, nanos, units, None, in_time=True) >= amount


@given(sizes, rates, decimals)
def test_a_worth_is_exact_but_for_less_than_one_nano_downwards(units: int, nanos: int, places: int) -> None:
    exact = Fraction(units * nanos, 10**places)
    assert 0 <= exact - worth(units, nanos, places) < 1


QUOTE, LOW, HIGH = 100 * DOLLAR, 90 * DOLLAR, 110 * DOLLAR
"""A coin of 8 decimals, quoted at $100."""
COIN = 10**8


@pytest.mark.parametrize(
    ("words", "units", "quote", "left", "market", "in_time", "expected"),
    [
        ("in time, within the quote: no market needed", COIN, QUOTE, COIN, None, True, (100, COIN)),
        ("in time, a dearer market changes nothing", COIN, QUOTE, COIN, HIGH, True, (100, COIN)),
        ("in time, a cheaper market changes nothing", COIN, QUOTE, COIN, LOW, True, (100, COIN)),
        ("in time, beyond the quote: the lower, here the quote", 3 * COIN, QUOTE, COIN, HIGH, True, (300, COIN)),
        ("in time, beyond the quote: the lower, here the market", 3 * COIN, QUOTE, COIN, LOW, True, (280, COIN)),
        ("in time, beyond the quote: it waits for a market", 3 * COIN, QUOTE, COIN, None, True, None),
        ("in time, nothing left of the quote", COIN, QUOTE, 0, HIGH, True, (100, 0)),
        ("in time, more than all of the quote used up before", COIN, QUOTE, -5, LOW, True, (90, 0)),
        ("late: the market, also above the quote", COIN, QUOTE, COIN, HIGH, False, (110, 0)),
        ("late: the market, also below the quote", COIN, QUOTE, COIN, LOW, False, (90, 0)),
        ("late: it waits for a market", COIN, QUOTE, COIN, None, False, None),
        ("no quote: the market", COIN, None, 0, LOW, True, (90, 0)),
        ("no quote: it waits for a market", COIN, None, 0, None, True, None),
    ],
)
def test_the_published_rule_case_by_case(
    *,
    words: str,
    units: int,
    quote: int | None,
    left: int,
    market: int | None,
    in_time: bool,
    expected: tuple[int, int] | None,
) -> None:
    told = None if quote is None else rate(quote)
    seen = None if market is None else rate(market)
    valued = value(units, 8, quote=told, locked_left_units=left, market=seen, in_time=in_time)
    if expected is None:
        assert valued is None, words
        return
    assert valued is not None, words
    assert valued[:2] == (expected[0] * DOLLAR, expected[1]), words


def test_the_rates_that_a_worth_was_made_with_are_told() -> None:
    quote, market = rate(QUOTE), rate(LOW)

    def told(left: int, *, in_time: bool) -> Pricing | None:
        valued = value(COIN, 8, quote=quote, locked_left_units=left, market=market, in_time=in_time)
        return valued and valued[2]

    assert told(COIN, in_time=True) == Pricing(quote=quote)
    assert told(COIN // 2, in_time=True) == Pricing(quote=quote, market=market)
    assert told(COIN, in_time=False) == Pricing(market=market)


@given(units=sizes, places=decimals, quote=rates, left=sizes, market=rates, in_time=st.booleans())
def test_no_more_is_credited_than_quote_and_market_allow(
    *, units: int, places: int, quote: int, left: int, market: int, in_time: bool
) -> None:
    valued = value(units, places, quote=rate(quote), locked_left_units=left, market=rate(market), in_time=in_time)
    assert valued is not None
    nanos, locked, _ = valued
    assert 0 <= locked <= (min(units, left) if in_time else 0)
    rest = units - locked
    beyond = min(quote, market) if in_time else market
    exact = Fraction(locked * quote + rest * beyond, 10**places)
    assert 0 <= exact - nanos < 1
    assert nanos <= worth(units, max(quote, market), places)


@given(units=sizes, more=sizes, places=decimals, quote=rates, left=sizes, market=rates, in_time=st.booleans())
def test_who_pays_more_never_gets_less(
    *, units: int, more: int, places: int, quote: int, left: int, market: int, in_time: bool
) -> None:
    few, many = (credited(size, places, quote, left, market, in_time=in_time) for size in (units, units + more))
    assert few <= many


@given(
    parts=st.lists(sizes, min_size=1, max_size=6),
    places=decimals,
    quote=rates,
    asked=amounts,
    market=rates,
    in_time=st.booleans(),
)
def test_splitting_a_payment_gives_no_more_and_loses_less_than_a_nano_a_part(
    *, parts: list[int], places: int, quote: int, asked: int, market: int, in_time: bool
) -> None:
    most = left = asked * OVER_PERCENT // 100
    sums = []
    for units in parts:
        valued = value(units, places, quote=rate(quote), locked_left_units=left, market=rate(market), in_time=in_time)
        assert valued is not None
        left -= valued[1]
        sums.append(valued[0])
    at_once = credited(sum(parts), places, quote, most, market, in_time=in_time)
    running = list(itertools.accumulate(sums))
    assert running == sorted(running)
    assert 0 <= at_once - running[-1] < len(parts)
