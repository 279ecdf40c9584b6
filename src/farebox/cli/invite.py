"""Invitations: make links by which people open an account, list them, take them back."""

from typing import Any

import click

from farebox.accounts.audit_log import Facts, record
from farebox.accounts.invitations import (
    DAYS,
    MOST_DAYS,
    Invitation,
    Invited,
    create_invitation,
    list_invitations,
    revoke_invitation,
)
from farebox.cli.account import by_hand
from farebox.cli.common import (
    Exampled,
    Invocation,
    actor,
    common_options,
    now_us,
    open_books,
    pass_invocation,
    print_json,
    print_table,
    run,
    show_moment,
)
from farebox.clock import iso
from farebox.store.protocol import Statement


@click.group()
def invite() -> None:
    """Invite people to open an account.

    With [site] sign_up = "invitation" nobody comes in without. A link works once.
    """


@invite.command(
    cls=Exampled,
    examples=(
        "farebox invite create --email bob@example.com",
        'farebox invite create --days 3 --note "for the workshop"',
    ),
)
@click.option("--email", default="", help="For this address alone, and mailed there. Without: for whoever comes.")
@click.option("--days", type=click.IntRange(1, MOST_DAYS), default=DAYS, show_default=True, help="How long it works.")
@click.option("--note", default="", help="What the list says it was for.")
@common_options
@pass_invocation
def create(invocation: Invocation, email: str, days: int, note: str) -> None:
    """Make an invitation and print its link, which is never shown again."""
    config = invocation.config()

    facts = {"email": email.strip() or "whoever has the link", "days": days}

    async def work() -> Invited:
        async with open_books(config, create=True) as store:
            return await create_invitation(
                store,
                config.public_url,
                config.site.name,
                by=actor(),
                now_us=now_us(),
                email=email,
                note=note,
                days=days,
                also=[_line("invitation.make", "invitations", None, facts, note)],
            )

    made = run(work())
    if invocation.as_json:
        print_json({**as_json(made.invitation, now_us()), "url": made.url})
        return
    whose = f"for {made.invitation.email}, and mailed there" if made.invitation.email else "for whoever has the link"
    click.echo(f"invitation {made.invitation.id}, {whose}, until {show_moment(made.invitation.ends_at_us)} UTC")
    click.echo(made.url)
    if config.site.sign_up == "closed":
        click.echo('[site] sign_up is "closed": nobody can use it before that says "invitation" or "open"', err=True)


@invite.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many, newest first.")
@common_options
@pass_invocation
def list_(invocation: Invocation, limit: int) -> None:
    """List invitations, and what became of them.

    With --json one object a line.
    """

    async def work() -> list[Invitation]:
        async with open_books(invocation.config()) as store:
            return await list_invitations(store, limit)

    found, now = run(work()), now_us()
    if invocation.as_json:
        for one in found:
            print_json(as_json(one, now))
    elif not found:
        click.echo("There are no invitations; `farebox invite create` makes one.")
    else:
        print_table(
            ("id", "state", "for", "until", "by", "note"),
            [
                (
                    str(one.id),
                    one.state(now),
                    one.email or "whoever has it",
                    show_moment(one.ends_at_us),
                    one.created_by,
                    one.note,
                )
                for one in found
            ],
        )


@invite.command()
@click.argument("invitation_id", metavar="ID", type=int)
@common_options
@pass_invocation
def revoke(invocation: Invocation, invitation_id: int) -> None:
    """Take an invitation back. One that was used stays used: suspend the account instead."""

    async def work() -> Invitation:
        async with open_books(invocation.config()) as store:
            before, after = {"state": "open"}, {"state": "revoked"}
            line = _line("invitation.revoke", f"invitation:{invitation_id}", before, after, "by hand")
            return await revoke_invitation(store, invitation_id, now_us(), [line])

    one = run(work())
    if invocation.as_json:
        print_json(as_json(one, now_us()))
        return
    click.echo(f"invitation {one.id} is {one.state(now_us())}")


def _line(action: str, target: str, before: Facts | None, after: Facts, reason: str) -> Statement:
    """Make the line of the audit log about what this command does."""
    by = by_hand()
    return record(by.name, by.address, action, target, before, after, reason)


def as_json(one: Invitation, now: int) -> dict[str, Any]:
    """Give an invitation as scripts get it. These names are stable."""
    return {
        "invitation_id": one.id,
        "state": one.state(now),
        "email": one.email,
        "note": one.note,
        "created_by": one.created_by,
        "created_at": iso(one.created_at_us),
        "ends_at": iso(one.ends_at_us),
        "account_id": one.account_id if one.used_at_us is not None else None,
    }
