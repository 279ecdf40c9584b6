"""Sources of rates: what they document is read exactly; whatever else they say is trouble, and says whose."""

import json
from decimal import Decimal
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble
from farebox.http.errands import Reply
from farebox.payments.rates.sources import ASSETS, SOURCES, Price, Source

NOW_S: Final = 1_795_348_800
"""2026-11-22T12:00:00Z."""
NOW_US: Final = NOW_S * US_PER_S
BY_NAME: Final = {source.name: source for source in SOURCES}

KRAKEN: Final = """{"error":[],"result":{
 "XXBTZUSD":{"a":["64390.20000","1","1.000"],"b":["64390.10000","12","12.000"],"c":["64390.10000","0.00012"],
  "v":["813.21","1900.54"],"p":["64100.1","64012.7"],"t":[20111,41022],"l":["63500.0","63100.1"],
  "h":["64801.0","64900.0"],"o":"63981.30000"},
 "XETHZUSD":{"a":["3120.56000","8","8.000"],"b":["3120.55000","31","31.000"],"c":["3120.56000","0.5"]},
 "USDTZUSD":{"a":["0.99986000","51000","51000.000"],"b":["0.99985000","8821","8821.000"],"c":["0.99985","10"]}}}"""
COINBASE: Final = """{"ask":"64390.12","bid":"64390.11","volume":"5321.01","trade_id":791000111,"price":"64390.12",
 "size":"0.00012","time":"2026-11-22T11:59:58.123456Z","rfq_volume":"1.2"}"""
BITSTAMP: Final = """{"timestamp":"1795348795","open":"63981","high":"64900","low":"63100","last":"64389",
 "volume":"901.2","vwap":"64012","bid":"64388","ask":"64390","side":"0","open_24":"64001","percent_change_24":"0.61"}"""
BINANCE: Final = """{"symbol":"BTCUSDT","bidPrice":"64400.01000000","bidQty":"3.1","askPrice":"64400.02000000",
 "askQty":"0.9"}"""
COINGECKO: Final = """{"bitcoin":{"usd":64391.123456789123,"last_updated_at":1795348770},
 "ethereum":{"usd":3121,"last_updated_at":1795348771},"tether":{"usd":0.999812,"last_updated_at":1795348801}}"""


def read(source: str, body: str | bytes, asset: str = "BTC", *, status: int = 200) -> Price:
    return BY_NAME[source].read(Reply(status, body.encode() if isinstance(body, str) else body), asset, NOW_US)  # type: ignore[index]


def changed(body: str, path: str, value: Any) -> str:
    """Put another value into an answer."""
    answer = node = json.loads(body)
    *way, last = path.split(".")
    for step in way:
        node = node[step]
    node[int(last) if isinstance(node, list) else last] = value
    return json.dumps(answer)


@pytest.mark.parametrize(
    ("source", "body", "asset", "nanos", "at_us"),
    [
        ("kraken", KRAKEN, "BTC", 64_390_100_000_000, NOW_US),
        ("kraken", KRAKEN, "ETH", 3_120_550_000_000, NOW_US),
        ("kraken", KRAKEN, "USDT", 999_850_000, NOW_US),
        ("coinbase", COINBASE, "BTC", 64_390_110_000_000, NOW_US - 1_876_544),
        ("bitstamp", BITSTAMP, "BTC", 64_388_000_000_000, NOW_US - 5 * US_PER_S),
        ("binance", BINANCE, "BTC", 64_400_010_000_000, NOW_US),
        ("coingecko", COINGECKO, "BTC", 64_391_123_456_789, NOW_US - 30 * US_PER_S),
        ("coingecko", COINGECKO, "ETH", 3_121_000_000_000, NOW_US - 29 * US_PER_S),
        ("coingecko", COINGECKO, "USDT", 999_812_000, NOW_US),  # its clock is a second ahead
    ],
)
def test_documented_answers_are_read_to_the_nano(source: str, body: str, asset: str, nanos: int, at_us: int) -> None:
    assert read(source, body, asset) == Price(nanos, at_us)


def test_each_source_is_asked_at_its_documented_place() -> None:
    urls = [f"{source.base}{question.target}" for source in SOURCES for question in source.questions]
    assert urls == [
        "https://api.kraken.com/0/public/Ticker?pair=XBTUSD,ETHUSD,USDTUSD",
        "https://api.exchange.coinbase.com/products/BTC-USD/ticker",
        "https://api.exchange.coinbase.com/products/ETH-USD/ticker",
        "https://api.exchange.coinbase.com/products/USDT-USD/ticker",
        "https://www.bitstamp.net/api/v2/ticker/btcusd/",
        "https://www.bitstamp.net/api/v2/ticker/ethusd/",
        "https://www.bitstamp.net/api/v2/ticker/usdtusd/",
        "https://data-api.binance.vision/api/v3/ticker/bookTicker?symbol=BTCUSDT",
        "https://data-api.binance.vision/api/v3/ticker/bookTicker?symbol=ETHUSDT",
        (
            "https://api.coingecko.com/api/v3/simple/price?ids=bitcoin,ethereum,tether&vs_currencies=usd"
            "&include_last_updated_at=true&precision=full"
        ),
    ]


PRICES: Final = (
    ("kraken", KRAKEN, "result.XXBTZUSD.b.0"),
    ("coinbase", COINBASE, "bid"),
    ("bitstamp", BITSTAMP, "bid"),
    ("binance", BINANCE, "bidPrice"),
    ("coingecko", COINGECKO, "bitcoin.usd"),
)


@pytest.mark.parametrize(("source", "body", "path"), PRICES)
@pytest.mark.parametrize(
    "odd",
    [
        *("0", "0.0", "-1", "NaN", "Infinity", "1e5", "0x10", "", " 1", "1 ", "1,000", "one", "٣", "0.0000009"),
        *("1000000000.1", "9" * 19, "9" * 400, "1." + "0" * 80 + "1"),
        *(0, -1, 1e-7, 1e10, 10**18, True, False, None, [], ["1"], {}, {"value": "1"}),
    ],
)
def test_what_is_no_price_is_trouble_that_names_the_source(source: str, body: str, path: str, odd: Any) -> None:
    with pytest.raises(RailTrouble, match=rf"^{source} "):
        read(source, changed(body, path, odd))


@pytest.mark.parametrize(("source", "body", "path"), PRICES[:-1])
def test_a_book_where_buyers_offer_more_than_sellers_ask_is_no_market(source: str, body: str, path: str) -> None:
    with pytest.raises(RailTrouble, match="bought for more than it is sold"):
        read(source, changed(body, path, "70000"))


@pytest.mark.parametrize("literal", [b"1e999999999", b"9" * 5000, b"0." + b"1" * 100_000, b"-0", b"0.0", b"1e-400"])
def test_numbers_out_of_all_proportion_are_trouble_at_once(literal: bytes) -> None:
    body = b'{"bitcoin":{"usd":' + literal + b',"last_updated_at":1795348770}}'
    with pytest.raises(RailTrouble, match=r"^coingecko "):
        read("coingecko", body)


TIMES: Final = (
    ("coinbase", COINBASE, "time"),
    ("bitstamp", BITSTAMP, "timestamp"),
    ("coingecko", COINGECKO, "bitcoin.last_updated_at"),
)


@pytest.mark.parametrize(("source", "body", "path"), TIMES)
@pytest.mark.parametrize("odd", ["", "soon", "2026-11-22", "2026-11-22T12:00:00", None, True, [], -5, 1.5e9, "9" * 30])
def test_what_is_no_time_is_trouble(source: str, body: str, path: str, odd: Any) -> None:
    with pytest.raises(RailTrouble, match=f"^{source} says no known time"):
        read(source, changed(body, path, odd))


@pytest.mark.parametrize(
    ("source", "body", "path", "old", "ahead"),
    [
        ("coinbase", COINBASE, "time", "2026-11-22T11:57:59.9Z", "2026-11-22T12:01:01Z"),
        ("bitstamp", BITSTAMP, "timestamp", str(NOW_S - 121), str(NOW_S + 61)),
        ("coingecko", COINGECKO, "bitcoin.last_updated_at", NOW_S - 121, NOW_S + 61),
    ],
)
def test_prices_of_another_time_are_trouble(source: str, body: str, path: str, old: Any, ahead: Any) -> None:
    with pytest.raises(RailTrouble, match=f"^{source} tells a price of BTC that is 12[01] s old"):
        read(source, changed(body, path, old))
    with pytest.raises(RailTrouble, match=f"^{source} tells a price of BTC from 61 s ahead"):
        read(source, changed(body, path, ahead))


@pytest.mark.parametrize(
    ("source", "status", "body", "words"),
    [
        ("kraken", 200, '{"error":["EQuery:Unknown asset pair"]}', "error: .*EQuery:Unknown asset pair"),
        ("kraken", 200, changed(KRAKEN, "error", ["EService:Busy"]), "EService:Busy"),  # also beside prices
        ("kraken", 200, '{"error":[],"result":{}}', "form that is not known"),
        ("kraken", 200, changed(KRAKEN, "result.XXBTZUSD.b", []), "form that is not known"),
        ("coinbase", 404, '{"message":"NotFound"}', "status 404: message: NotFound"),
        ("coinbase", 200, '{"message":"maintenance"}', "form that is not known: message: maintenance"),
        ("bitstamp", 200, '{"status":"error","reason":"Currency pair not supported"}', "Currency pair not supported"),
        ("binance", 451, '{"code":0,"msg":"restricted location"}', "status 451: msg: restricted location"),
        ("binance", 200, changed(BINANCE, "symbol", "ETHUSDT"), "form that is not known"),
        ("coingecko", 429, '{"status":{"error_code":429}}', "status 429: status: .*429"),
        ("coingecko", 200, "{}", "form that is not known"),
        ("coingecko", 503, "<html>", "status 503$"),
        ("bitstamp", 301, BITSTAMP, "status 301"),
    ],
)
def test_what_a_source_complains_of_is_told(source: str, status: int, body: str, words: str) -> None:
    with pytest.raises(RailTrouble, match=f"^{source} answers (with|in) .*{words}"):
        read(source, body, status=status)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"1", b'"x"', b"{}", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b'"\xff"'],
)
def test_other_shapes_are_trouble(source: Source, body: bytes) -> None:
    for asset in source.assets:
        with pytest.raises(RailTrouble, match=f"^{source.name} answers"):
            source.read(Reply(200, body), asset, NOW_US)


def test_what_is_wrong_with_one_coin_leaves_the_others_alone() -> None:
    body = changed(KRAKEN, "result.XETHZUSD", None)
    assert read("kraken", body, "BTC").bid_nanos == 64_390_100_000_000
    with pytest.raises(RailTrouble):
        read("kraken", body, "ETH")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.sampled_from(PRICES + TIMES), st.integers(1, 4), json_values)
def test_whatever_stands_anywhere_it_is_a_price_or_trouble(
    answer: tuple[str, str, str], depth: int, value: Any
) -> None:
    source, body, path = answer
    odd = changed(body, ".".join(path.split(".")[:depth]), value)
    for asset in set(BY_NAME[source].assets):  # type: ignore[index]
        try:
            price = read(source, odd, asset)
        except RailTrouble:
            continue
        assert 1_000 <= price.bid_nanos <= 10**18
        assert price.at_us <= NOW_US


@given(st.decimals("0.000001", "1000000000", places=12))
def test_a_price_is_rounded_down_to_whole_nanos_and_never_goes_through_a_float(price: Decimal) -> None:
    nanos = read("binance", changed(changed(BINANCE, "bidPrice", f"{price:f}"), "askPrice", "1000000000")).bid_nanos
    assert 0 <= price * 10**9 - nanos < 1


def test_all_sources_know_both_coins_and_all_but_binance_the_dollar_coin() -> None:
    assert {source.name: source.assets for source in SOURCES if source.assets != ASSETS} == {"binance": ("BTC", "ETH")}
