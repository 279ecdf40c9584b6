"""What is sold, as written: models with prices in dollars, and plans. Turns them into exact nano-dollars."""

from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Final

from msgspec import Meta, Struct

from farebox.billing.plans import Plan
from farebox.billing.pricing import PPM, Band, Model, Rates, Tariff
from farebox.config.locate import Path
from farebox.config.reader import Reader, show
from farebox.money import MAX_NANOS, NANOS_PER_USD

Usd = Decimal
"""An amount of dollars as written in the file: exact."""

_CACHE_FACTORS: Final = {
    "cache_write_5m": Decimal("1.25"),
    "cache_write_1h": Decimal(2),
    "cache_read": Decimal("0.1"),
}
_DEAREST: Final = Decimal(1_000_000)


class PriceTable(Struct, frozen=True, forbid_unknown_fields=True):
    """Dollars per million tokens. Cache classes left out follow from input: times 1.25, 2 and 0.1."""

    input: Usd
    output: Usd
    cache_write_5m: Usd | None = None
    cache_write_1h: Usd | None = None
    cache_read: Usd | None = None


class BandTable(Struct, frozen=True, forbid_unknown_fields=True):
    above: Annotated[int, Meta(ge=1)]
    list: PriceTable
    sell: PriceTable | None = None


class ModelTable(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[models]]` as written."""

    id: Annotated[str, Meta(pattern=r"^[^\s/]+$", description="a model id without spaces")]
    context: Annotated[int, Meta(ge=1)]
    max_output: Annotated[int, Meta(ge=1)]
    list: PriceTable
    sell: PriceTable | None = None
    discount: Decimal | None = None
    display_name: str = ""
    aliases: tuple[str, ...] = ()
    nicknames: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    fast_list: PriceTable | None = None
    fast_sell: PriceTable | None = None
    bands: tuple[BandTable, ...] = ()
    web_search: Usd | None = None
    us_inference: Decimal = Decimal(1)
    batch: Decimal = Decimal("0.5")
    output_tokens_per_s: Annotated[int, Meta(ge=1)] = 250
    created: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d$", description='a day such as "2026-01-31", in quotes')] = (
        "2026-01-01"
    )


class PlanTable(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[plans]]` as written."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]*$", description="a name in lower case")]
    requests_per_minute: Annotated[int, Meta(ge=1, le=10_000_000)]
    tokens_per_minute: Annotated[int, Meta(ge=1, le=100_000_000_000)]
    concurrent: Annotated[int, Meta(ge=1, le=1_000_000)]
    top_up: Usd | None = None


def read_plan(reader: Reader, path: Path, table: PlanTable) -> Plan:
    """Turn a plan as written into the value the ledger uses."""
    top_up = None if table.top_up is None else _nanos(reader, (*path, "top_up"), table.top_up)
    return Plan(table.name, table.requests_per_minute, table.tokens_per_minute, table.concurrent, top_up)


def read_model(reader: Reader, path: Path, table: ModelTable) -> Model:
    """Turn a model as written into exact prices. What is wrong with them goes to the reader's problems."""
    if table.max_output > table.context:
        reader.problem((*path, "max_output"), f"is {table.max_output}; it is more than context, {table.context}")
    discount = _discount(reader, path, table)
    bands = tuple(
        Band(band.above, _tariff(reader, (*path, "bands", position), band.list, band.sell, discount))
        for position, band in enumerate(table.bands)
    )
    if list(bands) != sorted(bands, key=lambda band: band.above_tokens):
        reader.problem((*path, "bands"), "must be in rising order of above")
    if table.fast_sell is not None and table.fast_list is None:
        reader.problem((*path, "fast_sell"), "needs fast_list beside it: what the upstream charges for fast mode")
    fast = None
    if table.fast_list is not None:
        fast = _tariff(reader, path, table.fast_list, table.fast_sell, discount, prefix="fast_")
    return Model(
        id=table.id,
        display_name=table.display_name or table.id,
        rates=_tariff(reader, path, table.list, table.sell, discount),
        context_tokens=table.context,
        max_output_tokens=table.max_output,
        aliases=table.aliases,
        nicknames=table.nicknames,
        fallbacks=table.fallbacks,
        created_at=f"{table.created}T00:00:00Z",
        bands=bands,
        fast_rates=fast,
        geo_us_ppm=_ppm(reader, (*path, "us_inference"), table.us_inference),
        batch_ppm=_ppm(reader, (*path, "batch"), table.batch),
        web_search=None if table.web_search is None else _nanos(reader, (*path, "web_search"), table.web_search),
        output_tokens_per_s=table.output_tokens_per_s,
    )


def _discount(reader: Reader, path: Path, table: ModelTable) -> Decimal | None:
    """Give the share taken off the list, or None when `sell` says the price."""
    if table.sell is None and table.discount is None:
        reader.problem(
            path,
            f"({table.id}) has no price to sell at; say sell = {{ input = …, output = … }} "
            "or discount = 0.5, the share taken off list",
        )
    if table.sell is not None and table.discount is not None:
        reader.problem((*path, "discount"), "stands beside sell; keep one of the two")
    if table.discount is not None and not -10 <= table.discount < 1:
        reader.problem(
            (*path, "discount"),
            f"is {show(table.discount)}; it must be below 1 (0.5 sells at half of list, -0.1 at 10 % above); "
            "to give a model away, say sell with zeros",
        )
    return table.discount


def _tariff(
    reader: Reader,
    path: Path,
    listed: PriceTable,
    sold: PriceTable | None,
    discount: Decimal | None,
    *,
    prefix: str = "",
) -> Tariff:
    list_rates = _rates(reader, (*path, f"{prefix}list"), listed, Decimal(1))
    if sold is not None:
        return Tariff(list_rates, _rates(reader, (*path, f"{prefix}sell"), sold, Decimal(1)))
    if discount is not None:
        return Tariff(list_rates, _rates(reader, (*path, f"{prefix}list"), listed, 1 - discount))
    if prefix or "bands" in path:  # a model's own missing price is told by _discount
        reader.problem((*path, f"{prefix}sell"), f"is missing; {prefix}list needs a selling price beside it")
    return Tariff(list_rates, list_rates)


def _rates(reader: Reader, path: Path, table: PriceTable, factor: Decimal) -> Rates:
    """Price every class: as written, or following from input; times factor, rounded up to the nano-dollar."""
    written = {name: getattr(table, name) for name in Rates.__struct_fields__}
    for name, price in written.items():
        if price is not None and not 0 <= price <= _DEAREST:
            reader.problem((*path, name), f"is {price}; a price is from 0 to {_DEAREST} dollars per million tokens")
            return Rates(0, 0, 0, 0, 0)
    for name, cache_factor in _CACHE_FACTORS.items():
        if written[name] is None:
            written[name] = table.input * cache_factor
    exact = {name: price * factor * NANOS_PER_USD for name, price in written.items()}
    return Rates(**{name: int(price.to_integral_value(ROUND_CEILING)) for name, price in exact.items()})


def _nanos(reader: Reader, path: Path, amount: Usd) -> int:
    nanos = amount * NANOS_PER_USD
    if not 0 <= nanos <= MAX_NANOS or nanos != nanos.to_integral_value():
        reader.problem(path, f"is {amount}; an amount is in dollars, not negative, with at most 9 decimals")
        return 0
    return int(nanos)


def _ppm(reader: Reader, path: Path, factor: Decimal) -> int:
    ppm = factor * PPM
    if not 0 < factor <= 100 or ppm != ppm.to_integral_value():
        reader.problem(path, f"is {factor}; a factor is above 0, at most 100, with at most 6 decimals")
        return PPM
    return int(ppm)
