"""Keys: make, list, revoke, and recognise one that turned up somewhere."""

from typing import Any

import click

from farebox.accounts.accounts import find_account
from farebox.accounts.keys import Key, create_key, find_key, list_keys, revoke_key
from farebox.cli.common import (
    Exampled,
    Invocation,
    common_options,
    now_us,
    open_books,
    pass_invocation,
    print_json,
    print_table,
    run,
    show_moment,
)
from farebox.clock import DAY_US, iso
from farebox.errors import NotFound
from farebox.ids import key_is_well_formed


@click.group()
def key() -> None:
    """Make and revoke API keys. A key is shown once, when it is made; only its hash is kept."""


@key.command(cls=Exampled, examples=("farebox key create alice@example.com --name laptop",))
@click.argument("email")
@click.option("--name", required=True, help="What it is for, so that it can be told from the others.")
@click.option("--expires-days", metavar="N", type=click.IntRange(1, 36_500), help="Let it end after so many days.")
@common_options
@pass_invocation
def create(invocation: Invocation, email: str, name: str, expires_days: int | None) -> None:
    """Make a key for an account and print it, this once."""
    config = invocation.config()
    now = now_us()
    expires_at_us = now + expires_days * DAY_US if expires_days else None

    async def work() -> tuple[Key, str]:
        async with open_books(config) as store:
            account = await find_account(store, email)
            return await create_key(store, account.id, name, config.keys.prefix, now, expires_at_us)

    made, text = run(work())
    if invocation.as_json:
        print_json({"key": text, **_as_json(made, now)})
        return
    click.echo(text)
    click.echo(f"Key {made.id} ({made.name}). It is not shown again: keep it now.", err=True)


@key.command("list")
@click.argument("email", required=False)
@common_options
@pass_invocation
def list_(invocation: Invocation, email: str | None) -> None:
    """List the keys of an account, or of all; with --json one object a line."""
    config = invocation.config()
    now = now_us()

    async def work() -> list[Key]:
        async with open_books(config) as store:
            account_id = (await find_account(store, email)).id if email else None
            return await list_keys(store, account_id)

    keys = run(work())
    if invocation.as_json:
        for one in keys:
            print_json(_as_json(one, now))
    elif not keys:
        click.echo("There are no keys yet; `farebox key create EMAIL --name NAME` makes one.")
    else:
        print_table(
            ("id", "account", "name", "key", "status", "made"),
            [(str(k.id), str(k.account_id), k.name, k.hint, k.status(now), show_moment(k.created_at_us)) for k in keys],
        )


@key.command()
@click.argument("which", metavar="ID|KEY")
@common_options
@pass_invocation
def revoke(invocation: Invocation, which: str) -> None:
    """Revoke a key, by its id or by the key itself. The running server refuses it at once."""
    config = invocation.config()
    now = now_us()

    async def work() -> Key:
        async with open_books(config) as store:
            found = await find_key(store, which)
            await revoke_key(store, found.id, now)
            return await find_key(store, str(found.id))

    revoked = run(work())
    if invocation.as_json:
        print_json(_as_json(revoked, now))
    else:
        click.echo(f"Key {revoked.id} ({revoked.name}, {revoked.hint}) is revoked.")


@key.command()
@click.argument("text", metavar="KEY")
@common_options
@pass_invocation
def check(invocation: Invocation, text: str) -> None:
    """Tell whether a text is a key of this gateway, and whose. Exit code 1 when it is not.

    The checksum inside a key tells a typo from a key without asking the database.
    """
    config = invocation.config()
    now = now_us()
    if not key_is_well_formed(text, config.keys.prefix):
        raise NotFound(f"this is no key: one is {config.keys.prefix} and 49 letters or digits; look for a typo")

    async def work() -> Key:
        async with open_books(config) as store:
            return await find_key(store, text)

    found = run(work())
    if invocation.as_json:
        print_json(_as_json(found, now))
    else:
        click.echo(f"Key {found.id} ({found.name}) of account {found.account_id}: {found.status(now)}.")


def _as_json(one: Key, now: int) -> dict[str, Any]:
    """Give a key as scripts get it. These names are stable."""
    return {
        "key_id": one.id,
        "account_id": one.account_id,
        "name": one.name,
        "hint": one.hint,
        "status": one.status(now),
        "created_at": iso(one.created_at_us),
        "expires_at": None if one.expires_at_us is None else iso(one.expires_at_us),
        "revoked_at": None if one.revoked_at_us is None else iso(one.revoked_at_us),
    }
