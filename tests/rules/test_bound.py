"""Bounds: no usage within what was asked for costs more than what was held for it."""

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from farebox.billing.bound import (
    Demand,
    affordable_tokens,
    estimated_output,
    output_cost,
    output_rate,
    prompt_cost,
)
from farebox.billing.pricing import Band, Catalogue, Model, PriceList, Rates, Tariff
from farebox.billing.usage import Line, Usage

prices = st.integers(0, 10**11)


@st.composite
def rates(draw: st.DrawFn) -> Rates:
    """Any rates: longer and faster is never cheaper in a published list, but an operator may say what they like."""
    return Rates(*(draw(prices) for _ in Rates.__struct_fields__))


@st.composite
def models(draw: st.DrawFn) -> Model:
    base, longer, faster = draw(rates()), draw(rates()), draw(rates())
    return Model(
        id="any",
        display_name="Any",
        rates=Tariff(list=base, sell=base),
        context_tokens=1_000_000,
        max_output_tokens=64_000,
        bands=draw(st.sampled_from([(), (Band(200_000, Tariff(list=longer, sell=longer)),)])),
        fast_rates=draw(st.sampled_from([None, Tariff(list=faster, sell=faster)])),
        geo_us_ppm=draw(st.integers(1_000_000, 2_000_000)),
        web_search=draw(st.none() | prices),
    )


demands = st.builds(
    Demand,
    st.integers(0, 1_000_000),
    st.integers(0, 64_000),
    caches=st.booleans(),
    fast=st.booleans(),
    geo_us=st.booleans(),
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Model, Demand, Line]:
    """A demand, and tokens that fit in it, of the classes and factors it asked for."""
    demand = draw(demands)
    demand = replace(demand, caches_long=demand.caches and draw(st.booleans()))
    left = demand.prompt_tokens

    def part(*, allowed: bool = True) -> int:
        nonlocal left
        taken = draw(st.integers(0, left)) if allowed else 0
        left -= taken
        return taken

    line = Line(
        "any",
        input=part(),
        cache_write_5m=part(allowed=demand.caches),
        cache_write_1h=part(allowed=demand.caches_long),
        cache_read=part(),
        output=draw(st.integers(0, demand.max_tokens)),
        fast=demand.fast and draw(st.booleans()),
        geo_us=demand.geo_us and draw(st.booleans()),
    )
    return draw(models()), demand, line


@given(calls())
def test_the_hold_covers_any_usage_within_the_demand(call: tuple[Model, Demand, Line]) -> None:
    model, demand, line = call
    held = prompt_cost(model, demand) + output_cost(output_rate(model, demand), demand.max_tokens)
    priced = Catalogue(PriceList(1, (model,))).price(Usage((line,)), model)
    assert priced.cost_nanos <= held


@given(calls(), st.integers(1, 20))
def test_the_hold_covers_searches_that_make_the_model_read_its_context_again(
    call: tuple[Model, Demand, Line], searches: int
) -> None:
    """Each search is one more step, with at most the whole context as its input."""
    model, demand, line = call
    assume(model.web_search is not None)
    demand = replace(demand, web_searches=searches)
    held = prompt_cost(model, demand) + output_cost(output_rate(model, demand), demand.max_tokens)
    step = Line("any", input=model.context_tokens, fast=line.fast, geo_us=line.geo_us)
    summed = replace(line, input=line.input + searches * model.context_tokens)
    catalogue = Catalogue(PriceList(1, (model,)))
    for lines in ((line, *[step] * searches), (summed,)):  # told step by step, or as one sum
        assert catalogue.price(Usage(lines, searches), model).cost_nanos <= held


@given(models(), demands, st.integers(0, 10**15))
def test_what_an_amount_affords_it_pays_for_and_not_much_more(model: Model, demand: Demand, nanos: int) -> None:
    rate = output_rate(model, demand)
    tokens = affordable_tokens(rate, nanos)
    assert rate == 0 or output_cost(rate, tokens) <= nanos < output_cost(rate, tokens + 1) + 1


@given(st.integers(0, 10**9))
def test_output_that_was_cut_off_counts_a_token_for_each_four_bytes_begun(visible: int) -> None:
    tokens = estimated_output(visible)
    assert tokens * 4 - 3 <= visible <= tokens * 4 or (tokens, visible) == (0, 0)


def test_no_balance_affords_nothing() -> None:
    assert affordable_tokens(7_500, -5) == 0
    assert affordable_tokens(7_500_000_000, 7_499) == 0
    assert affordable_tokens(7_500_000_000, 7_500) == 1


def test_a_rate_of_nothing_affords_all_there_could_be_and_the_least_rate_a_million_tokens_a_nano() -> None:
    assert affordable_tokens(0, 0) == 2**62
    assert affordable_tokens(1, 3) == 3_000_000
