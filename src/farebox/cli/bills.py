"""Upstream bills by command: what was billed beside what was metered."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from farebox.bills.drift import Day, days_of
from farebox.bills.reports import CSV_BYTES, Bills, read_csv
from farebox.bills.watch import BillWatch
from farebox.books.prices import Prices, pin_prices
from farebox.cli.common import (
    Exampled,
    Invocation,
    common_options,
    open_books,
    pass_invocation,
    print_json,
    print_table,
    run,
)
from farebox.clock import iso, steady_clock
from farebox.errors import InvalidRequest
from farebox.http.errands import Errands
from farebox.money import decimal_usd, format_usd


@click.group()
def bills() -> None:
    """Compare what upstreams bill with what was metered."""


@bills.command("list", cls=Exampled, examples=("farebox bills list --json",))
@click.option("--days", type=click.IntRange(1, 400), default=31, show_default=True, help="How many, newest first.")
@common_options
@pass_invocation
def list_days(invocation: Invocation, days: int) -> None:
    """List the days that have been compared."""

    async def work(watch: BillWatch, found: list[Day]) -> list[Day]:  # noqa: ARG001  the signature of all
        return found

    _with_watch(invocation, work, days)


@bills.command(cls=Exampled, examples=("farebox bills fetch anthropic",))
@click.argument("name")
@common_options
@pass_invocation
def fetch(invocation: Invocation, name: str) -> None:
    """Get a bill by its admin key now, and compare the last days."""

    async def work(watch: BillWatch, found: list[Day]) -> list[Day]:  # noqa: ARG001  the signature of all
        return await watch.fetch(name)

    _with_watch(invocation, work)


@bills.command("import", cls=Exampled, examples=("farebox bills import bedrock november.csv",))
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@common_options
@pass_invocation
def import_csv(invocation: Invocation, name: str, file: Path) -> None:
    """Take a bill from CSV with the columns day, model and cost_usd. A day that stands in it is replaced."""
    if file.stat().st_size > CSV_BYTES:
        raise InvalidRequest(f"{file} is larger than {CSV_BYTES // 2**20} MiB: split it by months")
    bill = read_csv(file.read_bytes())

    async def work(watch: BillWatch, found: list[Day]) -> list[Day]:  # noqa: ARG001  the signature of all
        return await watch.take(name, bill)

    _with_watch(invocation, work)


def _with_watch(
    invocation: Invocation, work: Callable[[BillWatch, list[Day]], Awaitable[list[Day]]], days: int = 31
) -> None:
    """Do something about bills, and print the days that come of it."""

    async def whole() -> None:
        config = invocation.config()
        clock = steady_clock()
        async with open_books(config) as store:
            prices = Prices(store, await pin_prices(store, config.models, clock()))
            reports = Bills(Errands(allow_private=True))
            watch = BillWatch(config.bills, reports, store, prices, clock, lambda *_, **__: None)
            for day in (shown := await work(watch, await days_of(store, limit=days))):
                if invocation.as_json:
                    print_json(_told(day, drifts=watch.drifts(day)))
            if not invocation.as_json:
                _print(shown, watch)

    run(whole())


def _print(days: list[Day], watch: BillWatch) -> None:
    if not days:
        click.echo("no day has been compared yet")
        return
    print_table(
        ("day", "bill", ">billed", ">metered", ">difference", ">percent", ""),
        (
            (
                day.day,
                day.bill,
                format_usd(day.billed_nanos),
                format_usd(day.metered_nanos),
                format_usd(day.differs_nanos),
                f"{day.share:+.2f}",
                "DRIFTS" if watch.drifts(day) else "",
            )
            for day in days
        ),
    )


def _told(day: Day, *, drifts: bool) -> dict[str, object]:
    return {
        "day": day.day,
        "bill": day.bill,
        "billed": decimal_usd(day.billed_nanos),
        "metered": decimal_usd(day.metered_nanos),
        "percent": round(day.share, 4),
        "drifts": drifts,
        "fetched_at": iso(day.fetched_at_us),
        "models": [
            {"model": one.model, "billed": decimal_usd(one.billed_nanos), "metered": decimal_usd(one.metered_nanos)}
            for one in day.lines
        ],
    }
