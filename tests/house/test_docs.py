"""The documents say what the code does: settings, headers, commands, error types and the tests they name."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import click
import msgspec
import pytest

from farebox.billing import bound
from farebox.billing.ledger import SpendLimit
from farebox.billing.ratelimit import Level
from farebox.cli import cli
from farebox.config.load import SINGLE_TABLES, TABLE_LISTS, default_offer, load_config
from farebox.config.offers import PriceTable
from farebox.errors import MethodNotAllowed, Refusal
from farebox.gateway import wire
from farebox.gateway.answers import budget_headers, error_headers, limit_headers
from farebox.gateway.metrics import Metrics
from farebox.gateway.settings import CallLimits
from farebox.http.server import ServerLimits
from farebox.secret import Secret
from farebox.workers.board import Board
from farebox.workers.totals import Roster, Totals
from tests.house.pages import ROOT, codes, commands, pages, rows, section
from tests.stage import open_stage

DOCS = ROOT / "docs"


# settings

TABLES: dict[str, tuple[type[msgspec.Struct], ...]] = {
    **{f"[{name}]": types for name, types in SINGLE_TABLES.items()},
    **{f"[[{name}]]": (type_,) for name, type_ in TABLE_LISTS.items()},
    "Prices": (PriceTable,),
}
UNSAID = {"api_key": "none"}
"""Its default is an empty secret, and that upstream has none."""


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is msgspec.NODEFAULT:
        return "required"
    if isinstance(field.default, Secret):
        return UNSAID.get(field.name, "")
    return "none" if field.default is None else field.default


def without_none(value: Any) -> Any:
    """Leave out of a table what TOML has no word for."""
    return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


def documented_default(cell: str) -> Any:
    """Read a default as it is documented: a word, or a TOML value set as code."""
    value = codes(cell)
    return tomllib.loads(f"value = {value[0]}")["value"] if value else cell


@pytest.mark.parametrize("heading", TABLES)
def test_every_setting_is_documented_with_its_default(heading: str) -> None:
    told = {codes(row[0])[0]: row for row in rows(section((DOCS / "configuration.md").read_text(), heading))}
    fields = {field.name: field for type_ in TABLES[heading] for field in msgspec.structs.fields(type_)}
    assert told.keys() == fields.keys()
    for name, field in fields.items():
        right = default_of(field)
        if isinstance(right, tuple):
            right = [without_none(msgspec.to_builtins(one)) for one in right]
        assert documented_default(told[name][1]) == (float(right) if isinstance(right, Decimal) else right), name
        assert len(told[name]) == 3, name
        assert told[name][2], name


def test_the_documented_configuration_is_one(tmp_path: Any) -> None:
    """Every TOML block of the documents can be read, its secret apart."""
    blocks = [
        block
        for page in pages()
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert blocks
    for block in blocks:
        (tmp_path / "farebox.toml").write_text(block)
        load_config(tmp_path / "farebox.toml", {}, secrets=False)


# headers


def headers_in(heading: str) -> set[str]:
    """The headers that a section's table names; a beginning is named with … at its end."""
    return {name for row in rows(section((DOCS / "headers.md").read_text(), heading)) for name in codes(row[0])}


def test_the_lists_of_headers_are_those_of_the_code() -> None:
    up = {name.decode() for name in wire.REQUEST_HEADERS_DROPPED}
    down = {name.decode() for name in wire.RESPONSE_HEADERS_DROPPED}
    prefixes = {f"{prefix.decode()}…" for prefix in wire.RESPONSE_PREFIXES_DROPPED}
    assert headers_in("Dropped on the way up") == up
    assert headers_in("Dropped on the way down") == down | prefixes


def test_the_headers_that_are_added_are_documented() -> None:
    up = {name.decode() for name, _ in wire.upstream_headers([])}
    assert headers_in("Added on the way up") == up | {"x-api-key", "host", "content-length"}
    level = Level(1, 1, 1)
    refusal = MethodNotAllowed("", "GET")
    refusal.retry_after_s = 1
    budget = budget_headers(SpendLimit(100, 1, "daily"), 0)
    ours = {name.decode() for name, _ in [*limit_headers(level, level), *budget, *error_headers(refusal)]}
    framing = {"date", "content-length", "transfer-encoding", "connection"}
    some = {"request-id", "x-accel-buffering", "farebox-fallback", "farebox-model", "farebox-token-count"}
    assert headers_in("Added on the way down") == ours | framing | some


# what customers and operators are told


def refusals(type_: type[Refusal] = Refusal) -> Iterator[type[Refusal]]:
    for kind in type_.__subclasses__():
        yield kind
        yield from refusals(kind)


def test_every_refusal_is_in_the_table_of_errors() -> None:
    table = rows(section((DOCS / "billing.md").read_text(), "Errors"))
    told = {(int(row[0]), codes(row[1])[0]) for row in table}
    assert told >= {(kind.status, kind.wire_type) for kind in refusals()}
    assert all(len(row) == 5 and row[4] for row in table)


def test_the_readme_tells_the_prices_and_plans_in_force() -> None:
    models, plans = default_offer()
    sold = {model.id: model for model in models}
    offers = {plan.name: plan for plan in plans}
    told = rows(section((ROOT / "README.md").read_text(), "Prices and limits, unless you set your own"))
    prices = [row for row in told if codes(row[0])]
    for row in prices:
        model = sold[codes(row[0])[0]]
        rates = model.rates.sell
        assert row[1:] == [f"{rates.input / 1e9:.2f}", f"{rates.output / 1e9:.2f}", f"{model.context_tokens:,}"]
    assert [row[0] for row in told if row not in prices] == list(offers)
    for name, *limits in (row for row in told if row not in prices):
        plan = offers[name]
        earned = "by hand" if plan.top_up_nanos is None else f"${plan.top_up_nanos // 10**9}"
        figures = (plan.requests_per_minute, plan.tokens_per_minute, plan.concurrent)
        assert limits == [*(f"{figure:,}" for figure in figures), earned]


def test_the_figures_that_customers_are_told_are_those_in_force() -> None:
    """Each with the words beside it in docs/billing.md."""
    limits, doors = CallLimits(), ServerLimits()
    text = " ".join((DOCS / "billing.md").read_text().replace("*", "").split())
    for words in (
        f"Pictures count as {bound.IMAGE_TOKENS:,} tokens each",
        f"a PDF, or a document by URL, as a whole context window of {bound.CONTEXT_TOKENS:,}",
        f"Tools add {bound.SERVER_PROMPT_TOKENS:,}, a built-in tool {bound.TOOLSET_TOKENS:,} more",
        f"a slice of {limits.slice_tokens:,} tokens",
        f"at least {limits.slice_tokens // 8}.",
        f"up to {limits.drain_s:g} seconds",
        f"{limits.count_tokens_per_minute:,} a minute",
        f"over {limits.body_bytes // 2**20} MiB",
        f"over {doors.header_bytes // 2**10} KiB",
    ):
        assert words in text
    assert bound.ESTIMATE_BYTES_PER_TOKEN == 4
    assert "one output token for every four bytes" in text


def test_every_room_of_the_house_is_on_the_map() -> None:
    told = {
        code.strip("/")
        for row in rows(section((ROOT / "ARCHITECTURE.md").read_text(), "The rooms"))
        for code in codes(row[0])
    }
    there = {path.name for path in (ROOT / "src" / "farebox").iterdir() if not path.name.startswith("_")}
    assert told == there - {"py.typed"}


async def test_every_metric_is_documented(tmp_path: Any) -> None:
    told = {name for row in rows(section((DOCS / "operating.md").read_text(), "Metrics")) for name in codes(row[0])}
    async with open_stage(tmp_path) as stage:
        metrics: Metrics = stage.gateway.metrics
        families = list(metrics.collect())
    board = Board(1)
    Roster(board, 0)
    families += Totals(board).collect()
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert {name.partition("{")[0] for name in told} == names


def test_every_alert_is_documented() -> None:
    """What is logged as an error or a warning has a row that says what to do."""
    logged = set()
    for path in (ROOT / "src" / "farebox").rglob("*.py"):
        logged |= set(re.findall(r'(?:alert|warn|log_error|log\.error|log\.warning)\(\s*"(\w+)"', path.read_text()))
    told = {name for row in rows(section((DOCS / "operating.md").read_text(), "Alerts")) for name in codes(row[0])}
    assert logged
    assert told == logged


# commands and tests


def farebox_lines() -> list[str]:
    """The commands of farebox that the documents show, without the variables before them and what follows them."""
    found = [line for page in pages() for line in commands(page.read_text())]
    bare = [re.sub(r"^(\w+=\S+ )+", "", re.split(r" [>|] | && ", line)[0]) for line in found]
    return [line for line in bare if line.startswith("farebox ")]


@pytest.mark.parametrize("line", farebox_lines())
def test_every_documented_command_is_one(line: str) -> None:
    """Commands, options and arguments are those there are; nothing is run."""
    words = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        if words[0] == "--config":
            words = words[2:]
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
    command.make_context(command.name, words)


def test_every_test_that_is_named_is_there() -> None:
    named = {
        (file, name)
        for page in pages()
        for file, name in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page.read_text())
    }
    assert len(named) > 10
    assert not [(file, name) for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]


def test_every_file_that_is_named_is_there() -> None:
    folders = ("src/", "tests/", "docs/", "bench/")
    named = {
        code.partition("::")[0] for page in pages() for code in codes(page.read_text()) if code.startswith(folders)
    }
    assert not [name for name in named if not (ROOT / name).exists()]
