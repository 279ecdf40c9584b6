"""Prices: immutable lists of nano-dollars per million tokens, and the one place where usage becomes money.

A call is priced by the model and the usage that came back, under the list pinned when it was admitted.
All arithmetic is in integers, with one ceiling division at the end. A missing price is never a free one.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from farebox.billing.usage import Line, Usage

PPM: Final = 1_000_000
_PER_TOKEN: Final = PPM  # rates are per million tokens
_SCALE: Final = _PER_TOKEN * PPM * PPM  # tokens × rate × geography ppm × batch ppm


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nano-dollars per million tokens of each class."""

    input: int
    output: int
    cache_write_5m: int
    cache_write_1h: int
    cache_read: int

    @property
    def dearest(self) -> int:
        return max(self.input, self.output, self.cache_write_5m, self.cache_write_1h, self.cache_read)

    def of(self, line: Line) -> int:
        """Sum tokens × rate of a line: nano-dollars × 10⁶."""
        return (
            line.input * self.input
            + line.cache_write_5m * self.cache_write_5m
            + line.cache_write_1h * self.cache_write_1h
            + line.cache_read * self.cache_read
            + line.output * self.output
            + (line.unpriced * self.dearest if line.unpriced else 0)
        )


class Tariff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is charged (`sell`) beside what the upstream's public list says (`list`)."""

    list: Rates
    sell: Rates


class Band(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rates for the whole call once its prompt is longer than `above_tokens`."""

    above_tokens: int
    rates: Tariff


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that is sold: its names, limits and prices."""

    id: str
    display_name: str
    rates: Tariff
    context_tokens: int
    max_output_tokens: int
    aliases: tuple[str, ...] = ()
    created_at: str = "2026-01-01T00:00:00Z"
    bands: tuple[Band, ...] = ()
    fast_rates: Tariff | None = None
    geo_us_ppm: int = PPM
    batch_ppm: int = PPM // 2
    web_search: int | None = None
    """Nano-dollars for one web search at list; sold at the same price. None: not sold."""
    nicknames: tuple[str, ...] = ()
    """Names that the operator made up: no upstream knows them, so the id goes up instead."""
    fallbacks: tuple[str, ...] = ()
    """Ids of models that may serve in its place, in this order, while no upstream serves it."""
    output_tokens_per_s: int = 250
    """The fastest this model is known to write. Bounds output that cannot be seen (hidden thinking)."""

    def tariff(self, prompt_tokens: int, *, fast: bool) -> Tariff:
        """Choose the rates for a prompt of this length at this speed."""
        if fast and self.fast_rates is not None:
            return self.fast_rates
        chosen = self.rates
        for band in self.bands:
            if prompt_tokens > band.above_tokens:
                chosen = band.rates
        return chosen


class PriceList(msgspec.Struct, frozen=True):
    """One immutable version of all prices, as stored with the books."""

    version: int
    models: tuple[Model, ...]


class Priced(msgspec.Struct, frozen=True):
    """What a usage costs, and what it would at the upstream's list; `doubts` name what had no price of its own."""

    cost_nanos: int
    list_nanos: int
    doubts: tuple[str, ...] = ()


class Catalogue:
    """A price list with its names indexed."""

    def __init__(self, prices: PriceList) -> None:
        self.version = prices.version
        self.prices = prices
        self.models = {model.id: model for model in prices.models}
        self._by_name = dict(self.models)
        for model in prices.models:
            for alias in (*model.aliases, *model.nicknames):
                self._by_name.setdefault(alias, model)

    def find(self, name: str) -> Model | None:
        """Find a model by id, alias or nickname."""
        return self._by_name.get(name)

    def answered_by(self, name: str, asked: Model) -> Model | None:
        """Find the model an answer names: exact, or a dated form of a known id ("claude-x-1-20260101")."""
        if not name:
            return asked
        found = self._by_name.get(name)
        if found is None:
            stem, _, date = name.rpartition("-")
            if len(date) == 8 and date.isdigit():
                found = self._by_name.get(stem)
        return found

    def price(self, usage: Usage, asked: Model) -> Priced:
        """Price a usage. A line of an unknown model costs what the model that was asked for costs, with a doubt."""
        sell = list_ = 0
        doubts: list[str] = []
        for line in usage.lines:
            model = self.answered_by(line.model, asked)
            if model is None:
                doubts.append(f"no price for model {line.model!r}: charged as {asked.id}")
                model = asked
            if line.unpriced:
                doubts.append(f"{line.unpriced} tokens of an unknown class: charged at the dearest rate of {model.id}")
            if line.fast and model.fast_rates is None:
                doubts.append(f"no fast price for {model.id}: charged as standard")
            tariff = model.tariff(line.prompt_tokens, fast=line.fast)
            share = model.batch_ppm if line.batch else line.percent * (PPM // 100)
            factor = (model.geo_us_ppm if line.geo_us else PPM) * share
            sell += tariff.sell.of(line) * factor
            list_ += tariff.list.of(line) * factor
        pieces = usage.web_searches + usage.unpriced_uses
        if pieces:
            per_use = self.per_use(asked)
            sell += pieces * per_use * _SCALE
            list_ += pieces * per_use * _SCALE
        if usage.unpriced_uses:
            doubts.append(f"{usage.unpriced_uses} uses of an unknown tool: charged as web searches")
        return Priced(_ceil(sell), _ceil(list_), tuple(doubts))

    def per_use(self, asked: Model) -> int:
        """Give the price of one use of a tool that is billed by the piece, in nano-dollars."""
        if asked.web_search is not None:
            return asked.web_search
        return max((model.web_search or 0 for model in self.models.values()), default=0)


def _ceil(scaled: int) -> int:
    return -(-scaled // _SCALE)


def check_names(models: Iterable[Model]) -> None:
    """Raise ValueError when one name means two models."""
    seen: dict[str, str] = {}
    for model in models:
        for name in (model.id, *model.aliases, *model.nicknames):
            if seen.setdefault(name, model.id) != model.id:
                raise ValueError(f"the name {name!r} belongs to both {seen[name]!r} and {model.id!r}")
