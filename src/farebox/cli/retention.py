"""The books that grow: which calls they have one by one, and letting go of those of months long past."""

import click

from farebox.accounts.audit_log import record
from farebox.books.retention import Kept, Tell, drop_months, kept, month_begin_us
from farebox.books.sums import first_open
from farebox.cli.common import (
    Exampled,
    Invocation,
    actor,
    common_options,
    open_books,
    pass_invocation,
    print_json,
    run,
)
from farebox.clock import day_of
from farebox.store.growth import make_room


@click.group()
def books() -> None:
    """See how much is in the books, and let old calls go."""


@books.command(cls=Exampled, examples=("farebox books show --json",))
@common_options
@pass_invocation
def show(invocation: Invocation) -> None:
    """Show which calls are kept one by one, and which are sums alone."""
    config = invocation.config()

    async def work() -> tuple[Kept, str]:
        async with open_books(config) as store:
            return await kept(store), day_of((await first_open(store)).begins_us)

    found, summed = run(work())
    first = day_of(found.first_us) if found.first_us is not None else None
    if invocation.as_json:
        print_json(
            {
                "calls": found.calls,
                "first_day": first,
                "dropped_days": found.dropped_days,
                "dropped_calls": found.dropped_calls,
                "kept_from": day_of(found.kept_us) if found.kept_us else None,
                "summed_until": summed,
                "keep_months": config.database.keep_months,
            }
        )
        return
    click.echo(f"{found.calls:,} calls are kept one by one{f', since {first}' if first else ''}.")
    if found.kept_us:
        gone = f"{found.dropped_calls:,} of {found.dropped_days:,} days, whose sums are digested"
        click.echo(f"Those before {day_of(found.kept_us)} were let go: {gone}.")
    months = config.database.keep_months
    click.echo(f"keep_months is {months}{': none is let go by itself' if not months else ''}.")


@books.command(cls=Exampled, examples=("farebox books drop --keep-months 13",))
@click.option(
    "--keep-months",
    type=click.IntRange(1, 1200),
    required=True,
    help="So many whole months before the present one are kept.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@pass_invocation
def drop(invocation: Invocation, keep_months: int, *, yes: bool) -> None:
    """Let go of the calls of months long past, for good.

    A month goes only when all its days are closed, hold against their digests and are summed: each is proved once more
    first. Sums by account, key and model stay, hour by hour, and so do balances, statements by the day and receipts.
    `farebox backup` beforehand keeps the calls themselves. Works while the server runs.
    """
    config = invocation.config()

    async def moments() -> int:
        async with open_books(config) as store:
            return int((await store.fetch("SELECT now_us()"))[0][0])

    now_us = run(moments())
    until = day_of(month_begin_us(now_us, keep_months))
    if not yes and not invocation.as_json:
        click.confirm(f"Let go of all calls before {until}, for good?", abort=True, err=True)

    async def work() -> int:
        async with open_books(config) as store:
            await make_room(store)
            gone = await drop_months(store, keep_months, now_us, _tell(invocation))
            if gone:
                told = {"calls": gone, "before": until}
                await store.write([record(actor(), "", "books.drop", "books", None, told, "by hand")])
            return gone

    gone = run(work())
    if invocation.as_json:
        print_json({"dropped_calls": gone, "keep_months": keep_months, "until": until})
    else:
        click.echo(f"{gone:,} calls went." if gone else f"There are none before {until} that have not gone already.")


def _tell(invocation: Invocation) -> Tell:
    def tell(day: str) -> None:
        if not invocation.as_json:
            click.echo(f"{day} is proved", err=True)

    return tell
