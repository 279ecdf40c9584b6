"""Usage: what an upstream says a call consumed, read from its own words and split by what has a price.

Nothing a price could hang on is dropped: a counter nobody knows yet is kept apart as unpriced, to be charged
at the dearest rate, never for free. Field meanings: Messages API reference, "usage"; iterations: its
compaction and advisor pages (their tokens are billed but absent from the top-level totals).
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec


class Line(msgspec.Struct, frozen=True):
    """Tokens of one sampling step, all at one model's rates. Counts are tokens; output includes thinking."""

    model: str
    input: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0
    output: int = 0
    unpriced: int = 0
    fast: bool = False
    geo_us: bool = False
    batch: bool = False
    percent: int = 100
    """Of the normal price: of items of a batch that Farebox runs itself."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens that went in, cached or not: what length bands look at."""
        return self.input + self.cache_write_5m + self.cache_write_1h + self.cache_read

    @property
    def limited_tokens(self) -> int:
        """Tokens that count against a plan's tokens per minute: all but cache reads."""
        return self.input + self.cache_write_5m + self.cache_write_1h + self.output + self.unpriced


class Usage(msgspec.Struct, frozen=True):
    """All a call consumed: its lines, and what is billed by the piece."""

    lines: tuple[Line, ...] = ()
    web_searches: int = 0
    unpriced_uses: int = 0

    def total(self, token_class: str) -> int:
        """Sum one token class over all lines."""
        return sum(getattr(line, token_class) for line in self.lines)

    def summed(self, model: str) -> Line:
        """Add all lines up into one, for showing: it has no price of its own."""
        return Line(
            model,
            self.total("input"),
            self.total("cache_write_5m"),
            self.total("cache_write_1h"),
            self.total("cache_read"),
            self.total("output"),
            self.total("unpriced"),
        )

    @property
    def limited_tokens(self) -> int:
        """Tokens that count against a plan's tokens per minute."""
        return sum(line.limited_tokens for line in self.lines)


WireUsage = Mapping[str, Any]
"""A `usage` object as decoded from JSON."""

_FREE_TOOLS: Final = frozenset({"web_fetch_requests", "tool_search_requests"})
_KNOWN: Final = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "cache_creation",
        "output_tokens_details",
        "server_tool_use",
        "service_tier",
        "inference_geo",
        "speed",
        "iterations",
        "fallback_credit",
        "type",
        "model",
    }
)
_LIFETIMES: Final = frozenset({"ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"})
_LIMIT: Final = 10**12
"""No real counter reaches this; an upstream that says so is not believed."""


class UnusableUsage(ValueError):
    """A usage object that cannot be read; the answer it came with counts as broken by the upstream."""


def merge_usage(usage: WireUsage, later: WireUsage) -> WireUsage:
    """Lay a later report over an earlier one: each field it carries and that is not null replaces the old one.

    Stream counters are cumulative, so nothing is ever added up (Messages API, "message_delta").
    """
    return {**usage, **{key: value for key, value in later.items() if value is not None}}


def read_usage(usage: WireUsage, model: str, *, long_cache_asked: bool = False) -> Usage:
    """Split a usage object into priced lines for `model`, the one that answered.

    `long_cache_asked` tells that the request used a one-hour cache: cache writes outside the reported split
    are then charged as such. Raises UnusableUsage for counters that are negative, huge or no integers.
    """
    top = _line(usage, usage, model, long_cache_asked=long_cache_asked)
    iterations = usage.get("iterations")
    lines: tuple[Line, ...] = (top,)
    if iterations:
        if not isinstance(iterations, list) or not all(isinstance(entry, dict) for entry in iterations):
            raise UnusableUsage("usage.iterations is not a list of objects")
        lines = _lines_of_iterations(usage, iterations, top, long_cache_asked=long_cache_asked)
    tools = usage.get("server_tool_use")
    if not tools:
        return Usage(lines)
    if not isinstance(tools, dict):
        raise UnusableUsage("usage.server_tool_use is not an object")
    counts = {name: _count(tools, name) for name in tools}
    return Usage(
        lines=lines,
        web_searches=counts.pop("web_search_requests", 0),
        unpriced_uses=sum(count for name, count in counts.items() if name not in _FREE_TOOLS),
    )


def _lines_of_iterations(
    usage: WireUsage, iterations: list[dict[str, Any]], top: Line, *, long_cache_asked: bool
) -> tuple[Line, ...]:
    lines = []
    within_top = Line(model=top.model)
    for entry in iterations:
        named = entry.get("model")
        line = _line(entry, usage, named if isinstance(named, str) else top.model, long_cache_asked=long_cache_asked)
        lines.append(line)
        if entry.get("type") in {"message", "fallback_message"}:
            within_top = _combine(within_top, line, 1)
    missing = _combine(top, within_top, -1)
    if missing.prompt_tokens or missing.output or missing.unpriced:
        lines.append(missing)  # the totals say more than the steps: what no step explains is not free
    return tuple(lines)


def _combine(line: Line, other: Line, sign: int) -> Line:
    """Add or take away another line's counts, never below zero; writes move between TTLs before they vanish."""
    short_writes = line.cache_write_5m + sign * other.cache_write_5m
    long_writes = line.cache_write_1h + sign * other.cache_write_1h
    if short_writes < 0:
        short_writes, long_writes = 0, long_writes + short_writes
    if long_writes < 0:
        short_writes, long_writes = max(0, short_writes + long_writes), 0
    return msgspec.structs.replace(
        line,
        input=max(0, line.input + sign * other.input),
        cache_write_5m=short_writes,
        cache_write_1h=long_writes,
        cache_read=max(0, line.cache_read + sign * other.cache_read),
        output=max(0, line.output + sign * other.output),
        unpriced=max(0, line.unpriced + sign * other.unpriced),
    )


def _line(counts: WireUsage, usage: WireUsage, model: str, *, long_cache_asked: bool) -> Line:
    unpriced = 0
    if not counts.keys() <= _KNOWN:
        unpriced = sum(_count(counts, name) for name in counts.keys() - _KNOWN if name.endswith("_tokens"))
    writes, split = _count(counts, "cache_creation_input_tokens"), counts.get("cache_creation")
    short_writes, long_writes, other_writes = _split_writes(writes, split, long_cache_asked=long_cache_asked)
    return Line(
        model,
        _count(counts, "input_tokens"),
        short_writes,
        long_writes,
        _count(counts, "cache_read_input_tokens"),
        _count(counts, "output_tokens"),
        unpriced + other_writes,
        usage.get("speed") == "fast",
        usage.get("inference_geo") == "us",
        usage.get("service_tier") == "batch",
    )


def _split_writes(writes: int, split: Any, *, long_cache_asked: bool) -> tuple[int, int, int]:
    """Tell cache writes apart by their time to live: five minutes, one hour, any other."""
    short_writes = long_writes = other_writes = 0
    if split:
        if not isinstance(split, dict):
            raise UnusableUsage("usage.cache_creation is not an object")
        short_writes = _count(split, "ephemeral_5m_input_tokens")
        long_writes = _count(split, "ephemeral_1h_input_tokens")
        if not split.keys() <= _LIFETIMES:
            other_writes = sum(_count(split, name) for name in split.keys() - _LIFETIMES)
    unsplit = max(0, writes - short_writes - long_writes - other_writes)
    if long_cache_asked:
        return short_writes, long_writes + unsplit, other_writes
    return short_writes + unsplit, long_writes, other_writes


def _count(counts: WireUsage, name: str) -> int:
    value = counts.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < _LIMIT:
        raise UnusableUsage(f"usage.{name} is {value!r:.40}, not a count")
    return value
