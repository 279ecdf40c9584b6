"""The prices of one model as a form, what changes between two versions, and what a call comes to: pure."""

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from farebox.billing.pricing import Band, Catalogue, Model, PriceList, Rates, Tariff
from farebox.billing.usage import Line, Usage
from farebox.money import NANOS_PER_USD, decimal_usd, format_usd, parse_usd

CLASSES: Final = {
    "input": "Input",
    "output": "Output",
    "cache_write_5m": "Cache write, 5 min",
    "cache_write_1h": "Cache write, 1 h",
    "cache_read": "Cache read",
}
SAMPLE_INPUT: Final = 10_000
SAMPLE_OUTPUT: Final = 1_000
_DEAREST_NANOS: Final = 1_000_000 * NANOS_PER_USD
_CHANGES_MOST: Final = 200


class Field(Struct, frozen=True):
    """A price in the form: dollars per million tokens, as text."""

    name: str
    title: str
    value: str
    error: str = ""


class Group(Struct, frozen=True):
    """The prices of one tariff of a model, the upstream's list beside what is charged."""

    title: str
    rows: list[tuple[str, Field, Field]]


class Change(Struct, frozen=True):
    """What is different about a model between two versions. Empty: it was not there, or is there no more."""

    model: str
    what: str
    before: str
    after: str


class Sample(Struct, frozen=True):
    """What a usual call comes to: what is charged, at list, and what the upstream takes for it."""

    sell_nanos: int
    list_nanos: int
    cost_nanos: int

    @property
    def margin_nanos(self) -> int:
        return self.sell_nanos - self.cost_nanos

    @property
    def margin_percent(self) -> int:
        return round(100 * self.margin_nanos / self.sell_nanos) if self.sell_nanos else 0


def tariffs(model: Model) -> Iterator[tuple[str, str, Tariff]]:
    """Give the tariffs of a model: the prefix of its fields, its title, and the prices."""
    yield "", "Standard", model.rates
    for number, band in enumerate(model.bands):
        yield f"band{number}_", f"Prompts above {band.above_tokens:,} tokens", band.rates
    if model.fast_rates is not None:
        yield "fast_", "Fast mode", model.fast_rates


def read_prices(form: Mapping[str, str], model: Model) -> tuple[Model, dict[str, str]]:
    """Give a model the prices of a form; answers what could not be read, by field. A missing field stays as it is."""
    errors: dict[str, str] = {}

    def read(prefix: str, tariff: Tariff) -> Tariff:
        kinds = {}
        for kind in ("list", "sell"):
            rates: Rates = getattr(tariff, kind)
            prices = {}
            for name in CLASSES:
                field = f"{prefix}{kind}_{name}"
                prices[name] = _price(form[field], field, errors) if field in form else getattr(rates, name)
            kinds[kind] = Rates(**prices)
        return Tariff(**kinds)

    read_ = {prefix: read(prefix, tariff) for prefix, _, tariff in tariffs(model)}
    bands = tuple(Band(band.above_tokens, read_[f"band{number}_"]) for number, band in enumerate(model.bands))
    web_search = model.web_search
    if web_search is not None and "web_search" in form:
        web_search = _price(form["web_search"], "web_search", errors)
    fresh = replace(model, rates=read_[""], bands=bands, fast_rates=read_.get("fast_"), web_search=web_search)
    return fresh, errors


def show_form(model: Model, form: Mapping[str, str], errors: Mapping[str, str]) -> list[Group]:
    """Give the fields of the form, as they were filled in, or as the model's prices are."""
    groups = []
    for prefix, title, tariff in tariffs(model):
        rows = []
        for name, words in CLASSES.items():
            pair = []
            for kind in ("sell", "list"):
                field = f"{prefix}{kind}_{name}"
                value = form.get(field, decimal_usd(getattr(getattr(tariff, kind), name)))
                pair.append(Field(field, f"{title}: {words}, {kind}", value, errors.get(field, "")))
            rows.append((words, pair[0], pair[1]))
        groups.append(Group(title, rows))
    return groups


def sample(model: Model, cost_percent: int) -> Sample:
    """Price a usual call to a model."""
    usage = Usage((Line(model.id, input=SAMPLE_INPUT, output=SAMPLE_OUTPUT),))
    priced = Catalogue(PriceList(0, (model,))).price(usage, model)
    return Sample(priced.cost_nanos, priced.list_nanos, priced.list_nanos * cost_percent // 100)


def loses(model: Model, cost_percent: int) -> list[str]:
    """Name the classes of tokens that are sold for less than the upstream takes for them."""
    return [
        CLASSES[name].lower() if not prefix else f"{CLASSES[name].lower()} ({title.lower()})"
        for prefix, title, tariff in tariffs(model)
        for name in CLASSES
        if getattr(tariff.sell, name) * 100 < getattr(tariff.list, name) * cost_percent
    ]


def changes(before: tuple[Model, ...], after: tuple[Model, ...]) -> list[Change]:
    """Say what is different between two versions."""
    old, new = ({model.id: model for model in models} for models in (before, after))
    found = [Change(name, "taken off sale", _both(old[name]), "") for name in old if name not in new]
    found += [Change(name, "put on sale", "", _both(new[name])) for name in new if name not in old]
    for name in old:
        if name in new and old[name] != new[name]:
            was, is_ = _facts(old[name]), _facts(new[name])
            names = [*was, *(one for one in is_ if one not in was)]
            found += [
                Change(name, what, was.get(what, ""), is_.get(what, ""))
                for what in names
                if was.get(what) != is_.get(what)
            ]
    return found[:_CHANGES_MOST]


def _facts(model: Model) -> dict[str, str]:
    """Write what there is to know of a model, a line each."""
    facts = {
        "name": model.display_name,
        "aliases": ", ".join(model.aliases),
        "nicknames": ", ".join(model.nicknames),
        "fallbacks": ", ".join(model.fallbacks),
        "context": f"{model.context_tokens:,}",
        "most output": f"{model.max_output_tokens:,}",
        "a web search": "" if model.web_search is None else format_usd(model.web_search),
        "in the US": str(model.geo_us_ppm),
        "in a batch": str(model.batch_ppm),
        "fastest output": str(model.output_tokens_per_s),
    }
    for prefix, title, tariff in tariffs(model):
        for kind in ("sell", "list"):
            for name, words in CLASSES.items():
                what = f"{words.lower()}, {kind}" + (f" ({title.lower()})" if prefix else "")
                facts[what] = format_usd(getattr(getattr(tariff, kind), name))
    return facts


def _both(model: Model) -> str:
    return f"{format_usd(model.rates.sell.input)} in, {format_usd(model.rates.sell.output)} out"


def _price(text: str, field: str, errors: dict[str, str]) -> int:
    try:
        nanos = parse_usd(text[:40])
        if nanos > _DEAREST_NANOS:
            raise ValueError(f"a price is at most {format_usd(_DEAREST_NANOS)}")
    except ValueError as error:
        errors[field] = str(error)
        return 0
    return nanos
