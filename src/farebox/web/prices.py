"""The price table in any order, and what a call would cost: pure, from what an address says."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from farebox.billing.pricing import Catalogue, Model
from farebox.billing.usage import Line, Usage
from farebox.books.log import Bill, itemise

ORDERS: Final = {
    "model": "Model",
    "context": "Context",
    "max_output": "Max. output",
    "input": "Input",
    "output": "Output",
    "cache_write_5m": "Cache write, 5 min",
    "cache_write_1h": "Cache write, 1 h",
    "cache_read": "Cache read",
}
"""The columns that the table can be sorted by, with their heads."""
_MOST: Final = 10**9
"""More of anything than this is no call."""


class Column(Struct, frozen=True):
    """A column's head: where its link leads, and whether the table is sorted by it ("ascending", "descending", "")."""

    name: str
    title: str
    target: str
    sorted: str


def in_order(models: tuple[Model, ...], order: str) -> list[Model]:
    """Sort models by a column, "-" before it for falling order; as configured where there is no such column."""
    name = order.removeprefix("-")
    if name not in ORDERS:
        return list(models)
    return sorted(models, key=lambda model: _value(model, name), reverse=order.startswith("-"))


def columns(order: str) -> list[Column]:
    """Give the heads of the table: a link sorts by its column, rising first, and turns the order round."""
    return [
        Column(
            name,
            title,
            f"?sort=-{name}" if order == name else f"?sort={name}",
            "ascending" if order == name else "descending" if order == f"-{name}" else "",
        )
        for name, title in ORDERS.items()
    ]


def _value(model: Model, name: str) -> int | str:
    match name:
        case "model":
            return model.display_name.casefold()
        case "context":
            return model.context_tokens
        case "max_output":
            return model.max_output_tokens
        case _:
            price: int = getattr(model.rates.sell, name)
            return price


class Estimate(Struct, frozen=True):
    """What so many equal calls would cost. `faults` say which fields could not be read."""

    model: Model
    fields: Mapping[str, int]
    fast: bool
    geo_us: bool
    bill: Bill
    call_nanos: int
    call_list_nanos: int
    faults: tuple[str, ...]

    @property
    def nanos(self) -> int:
        return self.call_nanos * self.fields["calls"]

    @property
    def list_nanos(self) -> int:
        return self.call_list_nanos * self.fields["calls"]


_FIELDS: Final = {
    "input": 1000,
    "output": 500,
    "cache_write_5m": 0,
    "cache_write_1h": 0,
    "cache_read": 0,
    "searches": 0,
    "calls": 1,
}


def estimate(query: Mapping[str, str], catalogue: Catalogue, otherwise: Model) -> Estimate:
    """Price the call that an address describes, as the gateway would. What cannot be read counts as its default."""
    model = catalogue.find(query.get("model", "")) or otherwise
    fields: dict[str, int] = {}
    faults = []
    for name, default in _FIELDS.items():
        text = query.get(name, "").strip().replace(",", "").replace("_", "").replace(" ", "")
        readable = text.isascii() and text.isdecimal() and int(text[:11]) <= _MOST
        fields[name] = int(text[:11]) if readable else default
        faults += [] if readable or not text else [name]
    us, fast = bool(query.get("us")), bool(query.get("fast")) and model.fast_rates is not None
    line = Line(
        model.id,
        input=fields["input"],
        cache_write_5m=fields["cache_write_5m"],
        cache_write_1h=fields["cache_write_1h"],
        cache_read=fields["cache_read"],
        output=fields["output"],
        fast=fast,
        geo_us=us,
    )
    usage = Usage((line,), web_searches=fields["searches"] if model.web_search is not None else 0)
    priced = catalogue.price(usage, model)
    return Estimate(
        model,
        fields,
        fast,
        us,
        itemise(usage, model, catalogue),
        priced.cost_nanos,
        priced.list_nanos,
        tuple(faults),
    )
