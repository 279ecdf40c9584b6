"""Settings: an example to start from, a check, what is in force, and the versions underneath."""

import platform
import sys
from importlib import resources
from typing import Any

import apsw
import asyncpg
import click
import msgspec

from farebox import __version__
from farebox.billing.pricing import Model, Rates
from farebox.cli.common import Exampled, Invocation, common_options, pass_invocation, print_json, print_table
from farebox.config import Config
from farebox.config.reader import show as quote
from farebox.config.show import TABLES, plain, tables_of
from farebox.money import format_usd


@click.group()
def config() -> None:
    """Write, check and show the configuration."""


@config.command(cls=Exampled, examples=("farebox config example > farebox.toml",))
@common_options
@pass_invocation
def example(invocation: Invocation) -> None:
    """Print a commented configuration with every setting."""
    text = resources.files("farebox.config").joinpath("example.toml").read_text("utf-8")
    if invocation.as_json:
        print_json({"toml": text})
    else:
        click.echo(text, nl=False)


@config.command()
@common_options
@pass_invocation
def check(invocation: Invocation) -> None:
    """Read the configuration as `farebox serve` would. Everything wrong is told at once, with its line."""
    read = invocation.config(secrets=True)
    source = str(read.source) if read.source else "defaults"
    if invocation.as_json:
        print_json({"ok": True, "source": source})
        return
    counts = f"{len(read.upstreams)} upstreams, {len(read.models)} models, {len(read.plans.names())} plans"
    click.echo(f"{source}: all is well ({counts})")


@config.command()
@click.option("--models", is_flag=True, help="Show models and their prices instead.")
@common_options
@pass_invocation
def show(invocation: Invocation, *, models: bool) -> None:
    """Show the settings in force and where each comes from. Secrets are masked."""
    read = invocation.config()
    if models:
        _show_models(invocation, read.models)
        return
    tables = _as_tables(read)
    if invocation.as_json:
        print_json({"source": str(read.source) if read.source else None, **tables})
        return
    for name in TABLES:
        for key, value in tables[name].items():
            origin = read.origins.get(f"{name}.{key}", "")
            click.echo(f"{f'{name}.{key} = {quote(value)}':<44}{'# ' + origin if origin else ''}".rstrip())
    click.echo(f"# the books are in {read.books_place}")
    for upstream in tables["upstreams"]:
        models_served = upstream.pop("models")
        told = [f"{key} = {quote(value)}" for key, value in upstream.items() if value]
        told += [f"models {', '.join(models_served)}" if models_served else "all models"]
        click.echo(f"upstream {{ {', '.join(told)} }}")
    for provider in tables["sign_in"]:
        told = [f"{key} = {quote(value)}" for key, value in provider.items() if value]
        click.echo(f"sign_in {{ {', '.join(told)} }}")
    for plan in tables["plans"]:
        earned = plan.pop("top_up_nanos")
        told = [f"{key} = {quote(value)}" for key, value in plan.items()]
        told += ["by hand only" if earned is None else f"from {format_usd(earned)} topped up"]
        click.echo(f"plan {{ {', '.join(told)} }}")
    click.echo(f"# {len(read.models)} models: `farebox config show --models`")


@click.command()
@common_options
@pass_invocation
def version(invocation: Invocation) -> None:
    """Print the versions of Farebox and of what it stands on."""
    versions = {
        "farebox": __version__,
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "asyncpg": asyncpg.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
    }
    if invocation.as_json:
        print_json(versions)
    else:
        click.echo("\n".join(f"{name:<9}{value}" for name, value in versions.items()))


def _as_tables(read: Config) -> dict[str, Any]:
    """Give the settings as plain values, secrets masked."""
    return {
        **tables_of(read),
        "upstreams": [plain(upstream) for upstream in read.upstreams],
        "sign_in": [plain(provider) for provider in read.sign_in],
        "plans": [plain(read.plans.get(name)) for name in read.plans.names()],
        "database_path": str(read.database_path) if read.database_path else None,
        "spool_path": str(read.spool_path),
    }


def _show_models(invocation: Invocation, models: tuple[Model, ...]) -> None:
    if invocation.as_json:
        for model in models:
            print_json(msgspec.to_builtins(model))
        return
    classes = Rates.__struct_fields__
    rows = []
    for model in models:
        for what, rates in _all_rates(model):
            prices = [format_usd(getattr(rates, name)) for name in classes]
            rows.append((model.id, what, *prices, str(model.context_tokens), str(model.max_output_tokens)))
    titles = [f">{name.replace('_', ' ')}" for name in classes]
    print_table(("model", "price", *titles, ">context", ">max output"), rows)


def _all_rates(model: Model) -> list[tuple[str, Rates]]:
    rates = [("sell", model.rates.sell), ("list", model.rates.list)]
    for band in model.bands:
        above = f"above {band.above_tokens}"
        rates += [(f"sell, {above}", band.rates.sell), (f"list, {above}", band.rates.list)]
    if model.fast_rates:
        rates += [("sell, fast", model.fast_rates.sell), ("list, fast", model.fast_rates.list)]
    return rates
