"""The maths of quotes: dollars into coins, rounded up once, and coins into dollars, rounded down once. Pure.

All amounts are integers: of an asset's smallest units, and of nano-dollars. What a payment is worth follows from the
rule that customers can read (web/docs/text/top-ups.md), and from nothing else.
"""

from typing import Final

from farebox.payments.rails import Asset, Rate
from farebox.payments.records import Pricing

_DOLLARS: Final = frozenset({"USDT"})
"""Coins that stand for a dollar: asked for in cents."""
_CENT_PLACES: Final = 2
_COIN_PLACES: Final = 8
"""Other coins are asked for with so many decimals: a satoshi, ten thousand million wei."""


def units_for(amount_nanos: int, rate_nanos: int, asset: Asset) -> int:
    """Give the units that are worth at least that amount, rounded up to a step that people can type.

    Raises ValueError unless both amounts are above zero.
    """
    if amount_nanos <= 0 or rate_nanos <= 0:
        raise ValueError(f"a quote is of amounts above zero, got {amount_nanos} at {rate_nanos}")
    unit = step(asset)
    exact = -(-amount_nanos * _coin(asset.decimals) // rate_nanos)
    return -(-exact // unit) * unit


def step(asset: Asset) -> int:
    """Give the units that an asset is asked for in multiples of."""
    places = _CENT_PLACES if asset.code in _DOLLARS else _COIN_PLACES
    return _coin(max(0, asset.decimals - places))


def worth(units: int, rate_nanos: int, decimals: int) -> int:
    """Give the nano-dollars that units are worth, rounded down."""
    return units * rate_nanos // _coin(decimals)


def value(
    units: int, decimals: int, *, quote: Rate | None, locked_left_units: int, market: Rate | None, in_time: bool
) -> tuple[int, int, Pricing] | None:
    """Say what a payment is worth by the published rule; None where that takes a market rate that nobody knows.

    Paid in time: up to `locked_left_units`, what earlier payments have left of the quote, at the quote's rate; the rest
    at the lower of quote and market. Late, or without a quote: at the market's rate.
    Answers its worth in nano-dollars, how many of its units had the quote's rate, and the rates that were used.
    """
    if quote is None or not in_time:
        return None if market is None else (worth(units, market.nanos, decimals), 0, Pricing(market=market))
    locked = max(0, min(units, locked_left_units))
    rest = units - locked
    if not rest:
        return worth(locked, quote.nanos, decimals), locked, Pricing(quote=quote)
    if market is None:
        return None
    sum_ = locked * quote.nanos + rest * min(quote.nanos, market.nanos)
    return sum_ // _coin(decimals), locked, Pricing(quote=quote, market=market)


def _coin(decimals: int) -> int:
    """Give the smallest units of one whole coin."""
    return int(10**decimals)
