"""Prices: exact integers, one rounding, up; nothing without a price is free."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from farebox.billing.pricing import Band, Catalogue, Model, PriceList, Rates, Tariff, check_names
from farebox.billing.usage import Line, Usage
from farebox.money import parse_usd

CLASSES = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")


def usd(*amounts: str) -> Rates:
    """Rates in dollars per million tokens: input, output, 5-minute write, 1-hour write, read."""
    return Rates(*map(parse_usd, amounts))


SONNET = Model(
    id="claude-sonnet-4-6",
    display_name="Sonnet",
    rates=Tariff(list=usd("3", "15", "3.75", "6", "0.30"), sell=usd("1.50", "7.50", "1.875", "3", "0.15")),
    context_tokens=200_000,
    max_output_tokens=64_000,
    aliases=("sonnet",),
    geo_us_ppm=1_100_000,
    web_search=parse_usd("0.01"),
    fast_rates=Tariff(list=usd("18", "90", "22.5", "36", "1.8"), sell=usd("9", "45", "11.25", "18", "0.9")),
    bands=(
        Band(
            200_000,
            Tariff(list=usd("6", "22.5", "7.5", "12", "0.6"), sell=usd("3", "11.25", "3.75", "6", "0.3")),
        ),
    ),
)
HAIKU = Model(
    id="claude-haiku-4-5",
    display_name="Haiku",
    rates=Tariff(list=usd("0.80", "4", "1", "1.6", "0.08"), sell=usd("0.40", "2", "0.50", "0.80", "0.040000001")),
    context_tokens=200_000,
    max_output_tokens=64_000,
)
CATALOGUE = Catalogue(PriceList(7, (SONNET, HAIKU)))


def cost(*lines: Line, asked: Model = SONNET, **pieces: int) -> int:
    return CATALOGUE.price(Usage(lines, **pieces), asked).cost_nanos


@pytest.mark.parametrize(
    ("line", "nanos"),
    [
        (Line(SONNET.id), 0),
        (Line(SONNET.id, input=1), 1_500),
        (Line(SONNET.id, output=1), 7_500),
        (Line(SONNET.id, input=100_000), 150_000_000),
        (Line(SONNET.id, input=200_000, output=1), 300_007_500),
        (Line(SONNET.id, input=200_001), 600_003_000),  # one token more, and all of it is in the longer band
        (Line(SONNET.id, cache_read=200_000, input=1), 30_000_000 * 2 + 3_000),  # cached tokens count as length
        (Line(SONNET.id, cache_write_5m=1), 1_875),
        (Line(SONNET.id, cache_write_1h=1), 3_000),
        (Line(SONNET.id, cache_read=1), 150),
        (Line(SONNET.id, input=1, fast=True), 9_000),
        (Line(SONNET.id, input=300_000, fast=True), 2_700_000_000),  # fast has one price for any length
        (Line(SONNET.id, input=1, geo_us=True), 1_650),
        (Line(SONNET.id, input=1, batch=True), 750),
        (Line(SONNET.id, input=1, geo_us=True, batch=True), 825),
        (Line(SONNET.id, unpriced=1), 7_500),  # a class nobody knows costs the dearest rate
        (Line(HAIKU.id, cache_read=1), 41),  # 40.000001 rounded up
        (Line(HAIKU.id, cache_read=1_000_000), 40_000_001),
    ],
)
def test_a_line_costs_its_tokens_at_its_rates(line: Line, nanos: int) -> None:
    assert cost(line) == nanos


def test_rounding_is_done_once_for_the_whole_call() -> None:
    """A million calls' worth of lines in one call is rounded like one line."""
    lines = [Line(HAIKU.id, cache_read=1)] * 1_000
    assert cost(*lines) == 40_001
    assert sum(cost(line) for line in lines) == 41_000


def test_steps_are_priced_by_the_model_that_took_them() -> None:
    assert cost(Line(SONNET.id, input=1), Line(HAIKU.id, output=1)) == 1_500 + 2_000


def test_web_searches_cost_their_piece_price_whatever_the_tokens() -> None:
    assert cost(Line(SONNET.id, input=1), web_searches=3) == 30_000_000 + 1_500


def test_a_search_by_a_model_that_has_no_search_price_costs_the_dearest_one() -> None:
    assert cost(Line(HAIKU.id), asked=HAIKU, web_searches=1) == 10_000_000


@pytest.mark.parametrize(
    ("line", "pieces", "doubt"),
    [
        (Line("who-is-this", input=1), 0, "no price for model 'who-is-this'"),
        (Line(SONNET.id, unpriced=2), 0, "2 tokens of an unknown class"),
        (Line(HAIKU.id, input=1, fast=True), 0, "no fast price"),
        (Line(SONNET.id, input=1), 4, "4 uses of an unknown tool"),
    ],
)
def test_what_has_no_price_of_its_own_is_charged_and_told(line: Line, pieces: int, doubt: str) -> None:
    priced = CATALOGUE.price(Usage((line,), 0, pieces), SONNET)
    assert priced.cost_nanos > 0
    assert len(priced.doubts) == 1
    assert doubt in priced.doubts[0]


def test_an_unknown_model_costs_what_the_one_asked_for_costs() -> None:
    assert cost(Line("who-is-this", input=10)) == cost(Line(SONNET.id, input=10))


@pytest.mark.parametrize("name", ["claude-sonnet-4-6", "sonnet", "claude-sonnet-4-6-20260217", ""])
def test_a_model_answers_by_its_id_its_alias_or_a_dated_form(name: str) -> None:
    assert CATALOGUE.answered_by(name, SONNET) is SONNET


@pytest.mark.parametrize("name", ["claude-sonnet-4-6-2026021", "claude-sonnet-4-6-latest", "claude-sonnet-4"])
def test_a_name_that_is_only_similar_is_no_model_of_ours(name: str) -> None:
    assert CATALOGUE.answered_by(name, SONNET) is None


def test_one_name_for_two_models_is_refused() -> None:
    check_names([SONNET, HAIKU])
    with pytest.raises(ValueError, match="belongs to both"):
        check_names([SONNET, replace(HAIKU, aliases=("sonnet",))])


counts = st.integers(0, 10**7)
lines_of_any_kind = st.builds(
    Line,
    st.sampled_from([SONNET.id, HAIKU.id, "claude-haiku-4-5-20251001", "unheard-of", ""]),
    *[counts] * 6,
    fast=st.booleans(),
    geo_us=st.booleans(),
    batch=st.booleans(),
)


@given(st.lists(lines_of_any_kind, max_size=6), st.integers(0, 50), st.integers(0, 50))
def test_any_usage_costs_the_exact_sum_rounded_up_once(lines: list[Line], searches: int, uses: int) -> None:
    """Against the same sum in rational numbers, written down independently."""
    sell = listed = Fraction((searches + uses) * 10_000_000)
    for line in lines:
        model = HAIKU if "haiku" in line.model else SONNET
        tokens = line.input + line.cache_read + line.cache_write_5m + line.cache_write_1h
        tariff = model.rates
        if model is SONNET:
            tariff = SONNET.bands[0].rates if tokens > 200_000 else tariff
            tariff = SONNET.fast_rates if line.fast and SONNET.fast_rates else tariff
        factor = Fraction(11, 10) if line.geo_us and model is SONNET else Fraction(1)
        factor *= Fraction(1, 2) if line.batch else 1
        for rates, add in ((tariff.sell, True), (tariff.list, False)):
            amount = sum(getattr(line, name) * Fraction(getattr(rates, name), 10**6) for name in CLASSES)
            amount += line.unpriced * Fraction(max(getattr(rates, name) for name in CLASSES), 10**6)
            sell, listed = (sell + amount * factor, listed) if add else (sell, listed + amount * factor)
    priced = CATALOGUE.price(Usage(tuple(lines), searches, uses), SONNET)
    assert (priced.cost_nanos, priced.list_nanos) == (math.ceil(sell), math.ceil(listed))


def test_where_nothing_is_billed_by_the_piece_a_use_is_free() -> None:
    """Nothing could say what it costs: whoever sells such tools has given a price."""
    assert Catalogue(PriceList(1, (HAIKU,))).per_use(HAIKU) == 0
    assert Catalogue(PriceList(1, ())).per_use(HAIKU) == 0
