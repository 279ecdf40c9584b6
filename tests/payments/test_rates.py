"""Rates: a quorum of sources that agree and answered a moment ago says what a coin is worth; else nobody does."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.clock import US_PER_S
from farebox.payments.rails import Rate
from farebox.payments.rates.rates import QUORUM, Rates, agree
from farebox.payments.rates.sources import ASSETS
from farebox.payments.settings import PaymentSettings, RateSource
from farebox.store.open import open_store
from farebox.store.protocol import Store
from tests.payments.fake_rates import FakeRates, Manner, serving_rates

NOON_S: Final = 1_795_348_800
THREE: Final[tuple[RateSource, ...]] = ("kraken", "coinbase", "bitstamp")
BTC: Final = 64_390_100_000_000
"""What the fakes say of a bitcoin."""


class Market:
    """Sources that behave as the test wants, rates made of them, and a clock."""

    def __init__(self, store: Store, fake: FakeRates, clock: list[int]) -> None:
        self.store = store
        self.fake = fake
        self._clock = clock
        self.warnings: list[tuple[str, dict[str, object]]] = []
        self.rates = self.made()

    @property
    def now_us(self) -> int:
        return self._clock[0] * US_PER_S

    def pass_s(self, seconds: int) -> None:
        self._clock[0] += seconds

    def made(
        self, sources: tuple[RateSource, ...] = THREE, *, spread: Decimal = Decimal(0), within_s: float = 10
    ) -> Rates:
        settings = PaymentSettings(rates=sources, rates_url=self.fake.url + "/", spread_percent=spread)
        return Rates(self.store, settings, within_s=within_s, warn=self._note)

    def _note(self, event: str, **fields: object) -> None:
        self.warnings.append((event, fields))

    async def now(self, asset: str = "BTC") -> Rate | None:
        return await self.rates.now(asset, self.now_us)

    async def nanos(self, asset: str = "BTC") -> int | None:
        rate = await self.now(asset)
        return None if rate is None else rate.nanos

    async def errors(self) -> dict[str, str]:
        health = await self.rates.health(self.now_us)
        return {f"{one.source}:{one.asset}": one.error for one in health if one.error}


@asynccontextmanager
async def open_market(url: str) -> AsyncIterator[Market]:
    clock = [NOON_S]
    store = await open_store(url)
    try:
        async with serving_rates(lambda: clock[0]) as fake:
            yield Market(store, fake, clock)
    finally:
        await store.close()


@pytest.fixture
async def market(database_url: str) -> AsyncIterator[Market]:
    async with open_market(database_url) as opened:
        yield opened


async def test_the_median_of_the_sources_less_the_spread_is_the_rate(market: Market) -> None:
    market.rates = market.made(spread=Decimal("1.25"))
    await market.rates.refresh(market.now_us)
    rate = await market.now()
    assert rate == Rate(
        nanos=BTC * 98_750 // 100_000, at=market.now_us, spread_ppm=12_500, sources=dict.fromkeys(THREE, BTC)
    )
    assert msgspec.json.decode(msgspec.json.encode(rate), type=Rate) == rate
    assert await market.nanos("ETH") == 3_120_550_000_000 * 98_750 // 100_000
    assert await market.nanos("USDT") == 999_800_000 * 98_750 // 100_000


async def test_coins_that_no_source_is_asked_about_are_worth_nothing_known(market: Market) -> None:
    assert [await market.now(asset) for asset in ("POL", "BNB", "btc", "")] == [None] * 4
    assert market.fake.asked == []


async def test_all_five_sources_agree_and_binance_is_turned_into_dollars(market: Market) -> None:
    market.rates = market.made(("binance", "coingecko", *THREE))
    rate = await market.now()
    assert rate is not None
    assert set(rate.sources) == {*THREE, "binance", "coingecko"}
    assert rate.nanos == BTC
    assert abs(rate.sources["binance"] - BTC) < BTC // 10**8
    usdt = await market.now("USDT")
    assert usdt is not None
    assert set(usdt.sources) == {*THREE, "coingecko"}


@pytest.mark.parametrize("manner", ["outlier", "stale", "error", "status", "other shape", "no json", "huge", "slow"])
async def test_one_bad_source_changes_nothing(market: Market, manner: Manner) -> None:
    market.rates = market.made(within_s=0.3)
    market.fake.manners["coinbase"] = manner
    rate = await market.now()
    assert rate is not None
    assert rate.sources == {"kraken": BTC, "bitstamp": BTC}
    assert rate.nanos == BTC
    told = await market.errors()
    if manner == "outlier":
        assert told == {}
    else:
        assert told.keys() == {"coinbase:BTC", "coinbase:ETH", "coinbase:USDT"}
        assert all(error.startswith("coinbase ") for error in told.values())


@pytest.mark.parametrize("manner", ["outlier", "stale", "error", "status", "other shape", "no json", "huge", "slow"])
async def test_two_bad_sources_of_three_and_nothing_is_quoted(market: Market, manner: Manner) -> None:
    market.rates = market.made(within_s=0.3)
    market.fake.manners |= {"coinbase": manner, "kraken": "error"}
    assert [await market.now(asset) for asset in ASSETS] == [None, None, None]


async def test_two_camps_agree_on_nothing(market: Market) -> None:
    market.rates = market.made((*THREE, "coingecko"))
    market.fake.manners |= {"coinbase": "outlier", "kraken": "outlier"}
    assert await market.now() is None


async def test_a_price_counts_for_two_minutes_and_not_a_second_longer(market: Market) -> None:
    await market.rates.refresh(market.now_us)
    market.fake.manners = dict.fromkeys(THREE, "status")
    market.pass_s(120)
    assert await market.nanos() == BTC
    market.pass_s(1)
    assert await market.nanos() is None
    health = await market.rates.health(market.now_us)
    assert {(one.age_s(market.now_us), one.bid_nanos, one.counts) for one in health if one.asset == "BTC"} == {
        (121, BTC, False)
    }
    assert {one.error for one in health} == {f"{name} answers with status 503" for name in THREE}


async def test_prices_from_the_future_do_not_count(market: Market) -> None:
    await market.rates.refresh(market.now_us)
    market.fake.manners = dict.fromkeys(THREE, "status")
    market.pass_s(-60)
    assert await market.nanos() == BTC  # the clocks of two machines
    market.pass_s(-1)
    assert await market.nanos() is None


async def test_a_clock_that_was_wrong_once_does_no_lasting_harm(market: Market) -> None:
    """Rows from far ahead are asked for anew and written over."""
    market.pass_s(365 * 86_400)
    await market.rates.refresh(market.now_us)
    market.pass_s(-365 * 86_400)
    assert await market.nanos() == BTC
    market.rates = market.made()  # the process has been started again
    assert await market.nanos() == BTC


async def test_whoever_needs_a_rate_asks_for_it_where_nobody_has_for_a_minute(market: Market) -> None:
    assert await market.nanos() == BTC
    first = len(market.fake.asked)
    assert first == 7  # one of kraken, three each of the others
    market.pass_s(60)
    assert await market.nanos("ETH") is not None
    assert len(market.fake.asked) == first
    market.pass_s(1)
    market.fake.prices["BTC"] *= 2
    assert await market.nanos() == 2 * BTC
    assert len(market.fake.asked) == 2 * first


async def test_fifty_who_need_a_rate_at_once_ask_once(market: Market) -> None:
    rates = await asyncio.gather(*(market.now(ASSETS[number % 3]) for number in range(50)))
    assert None not in rates
    assert len(market.fake.asked) == 7


async def test_another_process_goes_by_the_same_prices_without_asking(market: Market) -> None:
    await market.rates.refresh(market.now_us)
    asked = len(market.fake.asked)
    assert await market.made().now("BTC", market.now_us) == await market.now()
    assert len(market.fake.asked) == asked


async def test_one_who_goes_away_does_not_keep_the_others_from_their_rate(market: Market) -> None:
    market.fake.manners["coinbase"] = "slow"
    market.rates = market.made(within_s=0.5)
    gone = asyncio.create_task(market.now())
    await market.fake.somebody_waits.wait()
    others = [asyncio.create_task(market.nanos()) for _ in range(5)]
    await asyncio.sleep(0)
    gone.cancel()
    assert await asyncio.gather(*others) == [BTC] * 5


async def test_sources_that_answer_are_asked_twice_a_minute_however_often_the_job_runs(market: Market) -> None:
    for _ in range(61):
        await market.rates.refresh(market.now_us)
        market.pass_s(1)
    assert market.fake.asked.count("kraken") == 3


async def test_sources_that_fail_are_left_alone_for_longer_each_time(market: Market) -> None:
    market.fake.manners["kraken"] = "error"
    asked_at = []
    for second in range(1300):
        before = market.fake.asked.count("kraken")
        if second % 5 == 0:
            await market.rates.refresh(market.now_us)
        if market.fake.asked.count("kraken") > before:
            asked_at.append(second)
        market.pass_s(1)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    market.fake.manners.clear()
    market.pass_s(300)
    await market.rates.refresh(market.now_us)
    market.fake.manners["kraken"] = "error"
    market.pass_s(30)
    await market.rates.refresh(market.now_us)
    market.pass_s(5)
    before = market.fake.asked.count("kraken")
    await market.rates.refresh(market.now_us)
    assert market.fake.asked.count("kraken") == before + 1, "having answered, it begins at five seconds again"


async def test_a_source_that_is_no_longer_in_the_settings_does_not_count(market: Market) -> None:
    await market.rates.refresh(market.now_us)
    market.fake.manners["bitstamp"] = "error"
    two = market.made(("kraken", "bitstamp"))
    rate = await two.now("BTC", market.now_us)
    assert rate is not None
    assert set(rate.sources) == {"kraken", "bitstamp"}
    market.pass_s(121)
    assert await two.now("BTC", market.now_us) is None


@pytest.mark.parametrize(
    ("price", "nanos"),
    [
        ("1.0000", 1_000_000_000),
        ("1.0123", 1_000_000_000),  # a dollar at most
        ("0.9999", 999_900_000),
        ("0.97", 970_000_000),
        ("0.9699", None),  # no dollar any more
        ("0.4", None),
    ],
)
async def test_the_dollar_coin_is_worth_a_dollar_at_most_and_nothing_known_once_it_breaks(
    market: Market, price: str, nanos: int | None
) -> None:
    market.fake.prices["USDT"] = Decimal(price)
    assert await market.nanos("USDT") == nanos
    assert await market.nanos("BTC") == BTC


async def test_binance_counts_only_while_two_others_say_what_its_dollar_is_worth(market: Market) -> None:
    market.rates = market.made(("binance", "kraken"))
    assert await market.now() is None
    assert await market.errors() == {
        f"binance:{asset}": "binance quotes in USDT, and no two others say what that is worth"
        for asset in ("BTC", "ETH")
    }
    market.rates = market.made(("binance", "kraken", "coinbase"))
    market.fake.prices["USDT"] = Decimal("0.95")  # too low to be paid with, but good enough to reckon with
    market.pass_s(61)
    rate = await market.now()
    assert rate is not None
    assert abs(rate.sources["binance"] - BTC) < BTC // 10**8


@pytest.mark.parametrize(("price", "usdt"), [("0.000001", "0.000001"), ("1000000000", "1000000000")])
async def test_prices_at_the_end_of_all_that_is_possible_break_nothing(market: Market, price: str, usdt: str) -> None:
    market.rates = market.made(("binance", "kraken", "coinbase"))
    market.fake.prices = {"BTC": Decimal(price), "ETH": Decimal(price), "USDT": Decimal(usdt)}
    await market.rates.refresh(market.now_us)
    health = await market.rates.health(market.now_us)
    assert {one.tried_at_us for one in health} == {market.now_us}


async def test_a_price_that_is_impossible_only_in_dollars_is_trouble(market: Market) -> None:
    market.rates = market.made(("binance", "kraken", "coinbase"))
    market.fake.prices |= {"BTC": Decimal(10**9), "USDT": Decimal("1.2")}
    market.fake.manners["binance"] = "outlier"
    await market.rates.refresh(market.now_us)
    assert "binance says what cannot be a price" in (await market.errors())["binance:BTC"]


async def test_binance_is_turned_into_dollars_by_what_the_others_said_a_moment_ago(market: Market) -> None:
    market.rates = market.made(("binance", "kraken", "coinbase"))
    market.fake.manners["binance"] = "error"
    await market.rates.refresh(market.now_us)
    market.fake.manners.clear()
    market.pass_s(5)
    market.fake.asked.clear()
    await market.rates.refresh(market.now_us)
    assert set(market.fake.asked) == {"binance"}
    rate = await market.now()
    assert rate is not None
    assert abs(rate.sources["binance"] - BTC) < BTC // 10**8


async def test_the_operator_is_told_once_that_a_coin_has_no_rate_and_once_that_it_has_one_again(market: Market) -> None:
    await market.rates.refresh(market.now_us)
    market.fake.manners = {"kraken": "status", "coinbase": "status"}
    for _ in range(10):
        market.pass_s(31)
        await market.rates.refresh(market.now_us)
    sources = {name: f"{name} answers with status 503" for name in ("kraken", "coinbase")}
    assert market.warnings == [
        ("rate_unknown", {"asset": asset, "sources": {**sources, "bitstamp": f"{nanos} nano-dollars"}})
        for asset, nanos in (("BTC", BTC), ("ETH", 3_120_550_000_000), ("USDT", 999_800_000))
    ]
    market.warnings.clear()
    market.fake.manners.clear()
    market.pass_s(301)
    await market.rates.refresh(market.now_us)
    await market.rates.refresh(market.now_us)
    assert market.warnings == [("rate_known_again", {"asset": asset}) for asset in ASSETS]


async def test_health_tells_of_each_source_and_coin_in_order_also_before_the_first_try(market: Market) -> None:
    market.rates = market.made(("coinbase", "binance", "kraken"))
    health = await market.rates.health(market.now_us)
    assert [(one.source, one.asset) for one in health] == [
        *(("kraken", asset) for asset in ASSETS),
        *(("coinbase", asset) for asset in ASSETS),
        *(("binance", asset) for asset in ("BTC", "ETH")),
    ]
    assert {(one.at_us, one.age_s(market.now_us), one.tried_at_us, one.counts) for one in health} == {
        (None, None, None, False)
    }
    await market.rates.refresh(market.now_us)
    market.pass_s(7)
    assert {(one.age_s(market.now_us), one.counts, one.error) for one in await market.rates.health(market.now_us)} == {
        (7, True, None)
    }


async def test_a_server_that_is_not_there_is_a_source_that_cannot_be_asked(market: Market) -> None:
    settings = PaymentSettings(rates=THREE, rates_url="http://127.0.0.1:1")
    rates = Rates(market.store, settings)
    assert await rates.now("BTC", market.now_us) is None
    assert {one.error is not None and "cannot be asked" in one.error for one in await rates.health(market.now_us)} == {
        True
    }


prices_by_source = st.dictionaries(st.sampled_from("abcdefg"), st.integers(1_000, 10**18))
near = st.builds(
    lambda middle, offsets: {str(n): middle * (1000 + offset) // 1000 for n, offset in enumerate(offsets)},
    st.integers(10**6, 10**17),
    st.lists(st.integers(-60, 60), min_size=1, max_size=7),
)


@given(prices_by_source | near)
def test_what_is_agreed_on_lies_among_those_who_agree_and_close_to_all_of_them(prices: dict[str, int]) -> None:
    agreed = agree(prices)
    if agreed is None:
        return
    nanos, close = agreed
    assert len(close) >= QUORUM
    assert close.items() <= prices.items()
    assert min(close.values()) <= nanos <= max(close.values())
    assert max(close.values()) * 100 <= min(close.values()) * 105


@given(st.integers(10**6, 10**17), st.tuples(*[st.integers(-5, 5)] * 3), st.integers(1_000, 10**18))
def test_one_liar_among_three_honest_ones_moves_the_rate_by_no_more_than_they_differ(
    middle: int, offsets: tuple[int, int, int], lie: int
) -> None:
    honest = {str(number): middle * (1000 + offset) // 1000 for number, offset in enumerate(offsets)}
    agreed = agree({**honest, "liar": lie})
    assert agreed is not None
    assert min(honest.values()) <= agreed[0] <= max(honest.values())


@pytest.mark.parametrize(
    ("prices", "agreed"),
    [
        ({}, None),
        ({"a": 100}, None),
        ({"a": 100, "b": 100}, 100),
        ({"a": 100, "b": 103}, 101),  # between the two, rounded down
        ({"a": 100, "b": 105}, None),  # either may be right
        ({"kraken": 64390, "coinbase": 64400, "bitstamp": 64380, "binance": 99999}, 64390),
        ({"a": 64390, "b": 99999}, None),
        ({"a": 100, "b": 102, "c": 104}, 102),  # just within two percent
        ({"a": 1000, "b": 1000, "c": 1021}, 1000),
    ],
)
def test_agreement_case_by_case(prices: dict[str, int], agreed: int | None) -> None:
    found = agree(prices)
    assert (found and found[0]) == agreed
