"""Bounds: the most a call can cost, known before a byte of it goes upstream.

One token is never shorter than one byte of text (a byte-level vocabulary), so the bytes of a prompt bound its
tokens; pictures and pages have caps of their own (Messages API, "vision", "PDF support"). Where those bounds
would refuse a small balance, the upstream's own free token count takes their place.
"""

from typing import Final

import msgspec

from farebox.billing.pricing import PPM, Model, Rates

IMAGE_TOKENS: Final = 4_784
"""The most one picture counts for (long side 2,576 px at 28 px a patch)."""
CONTEXT_TOKENS: Final = 1_000_000
"""The largest context window there is. A model sold with a smaller one may be given more, and billed for it."""
SERVER_PROMPT_TOKENS: Final = 1_000
"""What the server adds for tools and structured output; published up to 804, unknown for the newest models."""
TOOLSET_TOKENS: Final = 8_000
"""What a built-in toolset (computer, browser) adds; published up to 7,550."""
TEXT_BYTES_PER_TOKEN: Final = 2
"""Output held ahead of a stream counts two bytes of visible text a token, twice what English needs."""
LOCAL_BYTES_PER_TOKEN: Final = 3
"""An estimate of input where nobody counts: three bytes a token, since the newest vocabularies make more of a text."""
DOCUMENT_BYTES_PER_PAGE: Final = 50_000
PAGE_TOKENS: Final = 2_500
"""The same of a document: a page for so much of its base64, at what pages were measured to come to."""
ESTIMATE_BYTES_PER_TOKEN: Final = 4
"""The published rule for output cut off before its count came: four bytes of visible text a token, rounded up."""


class Demand(msgspec.Struct, frozen=True):
    """What a request asks for, as far as money goes. `prompt_tokens` is an upper bound, `likely_tokens` a guess."""

    prompt_tokens: int
    max_tokens: int
    caches: bool = False
    caches_long: bool = False
    fast: bool = False
    geo_us: bool = False
    web_searches: int = 0
    likely_tokens: int = 0
    window_tokens: int = 0
    """The context window that the request asks for by its header; 0: that of the model."""


def prompt_cost(model: Model, demand: Demand) -> int:
    """Bound the cost of the input, searches included, in nano-dollars: every token at the dearest class asked for."""
    tokens = _most_tokens(model, demand)
    rate = max(
        max(
            rates.input,
            rates.cache_read,
            rates.cache_write_5m if demand.caches else 0,
            rates.cache_write_1h if demand.caches_long else 0,
        )
        for rates in _possible(model, demand, tokens)
    )
    return _scaled(tokens * rate, model, demand) + demand.web_searches * (model.web_search or 0)


def output_rate(model: Model, demand: Demand) -> int:
    """Give the price of output in nano-dollars per million tokens, all factors in, rounded up."""
    dearest = max(rates.output for rates in _possible(model, demand, _most_tokens(model, demand)))
    return -(-dearest * (model.geo_us_ppm if demand.geo_us else PPM) // PPM)


def output_cost(rate: int, tokens: int) -> int:
    """Price output tokens at a rate of `output_rate`."""
    return -(-tokens * rate // 1_000_000)


def affordable_tokens(rate: int, nanos: int) -> int:
    """How many output tokens an amount surely pays for."""
    return max(0, nanos) * 1_000_000 // rate if rate > 0 else 2**62


def estimated_output(visible_bytes: int) -> int:
    """Count output that was cut off, by the published rule."""
    return -(-visible_bytes // ESTIMATE_BYTES_PER_TOKEN)


def _most_tokens(model: Model, demand: Demand) -> int:
    """Bound the input of the whole call: each search makes the model read its context again, grown by the results."""
    if demand.web_searches:
        return (demand.web_searches + 1) * max(model.context_tokens, demand.window_tokens)
    return demand.prompt_tokens


def _possible(model: Model, demand: Demand, most_tokens: int) -> list[Rates]:
    """Give the rates that a call may be charged by: it may turn out shorter than its bound, or slower than asked for.

    Shorter and slower is nearly always cheaper; but prices are whatever their operator says.
    """
    found = [model.rates.sell, *(band.rates.sell for band in model.bands if most_tokens > band.above_tokens)]
    if demand.fast and model.fast_rates is not None:
        found.append(model.fast_rates.sell)
    return found


def _scaled(rated: int, model: Model, demand: Demand) -> int:
    factor = model.geo_us_ppm if demand.geo_us else PPM
    return -(-rated * factor // (1_000_000 * PPM))
