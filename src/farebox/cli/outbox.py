"""The mails that the site has written: sent, waiting, or kept here because no mail server is set."""

import click

from farebox.accounts.mail import letters
from farebox.cli.common import (
    Exampled,
    Invocation,
    common_options,
    open_books,
    pass_invocation,
    print_json,
    run,
    show_moment,
)


@click.command(cls=Exampled, examples=("farebox outbox --limit 1",))
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many, newest last.")
@common_options
@pass_invocation
def outbox(invocation: Invocation, limit: int) -> None:
    """Show the mails the site has written.

    Without [mail] host they wait here: hand links on to the people they are for.
    """

    async def work() -> None:
        async with open_books(invocation.config()) as store:
            found = await letters(store, limit)
        for one in found[::-1]:
            if invocation.as_json:
                print_json(one)
                continue
            state = f"sent {show_moment(one.sent_at_us)}" if one.sent_at_us else "waiting"
            state += f" ({one.tries} tries: {one.error})" if one.error else ""
            click.secho(f"{show_moment(one.at_us)}  {one.recipient}  {one.subject}  [{state}]", bold=True)
            click.echo(one.body)
        if not found and not invocation.as_json:
            click.echo("no mail has been written yet")

    run(work())
