"""Keys: make, list, roll, rest, revoke, and recognise one that turned up somewhere."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

import click

from farebox.accounts import key_rules
from farebox.accounts.accounts import find_account
from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import (
    Key,
    create_key,
    disable_key,
    enable_key,
    find_key,
    list_keys,
    revoke_key,
    roll_key,
)
from farebox.billing.budgets import RESETS
from farebox.cli.common import (
    USD,
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
from farebox.clock import DAY_US, US_PER_S, iso
from farebox.errors import InvalidRequest, NotFound
from farebox.ids import key_is_well_formed
from farebox.money import decimal_usd, format_usd
from farebox.store.protocol import Store

_HOUR_US: Final = 3600 * US_PER_S


@click.group()
def key() -> None:
    """Make and revoke API keys. A key is shown once, when it is made; only its hash is kept."""


@key.command(
    cls=Exampled,
    examples=(
        "farebox key create alice@example.com --name laptop",
        "farebox key create alice@example.com --name ci --limit 20 --resets monthly --rpm 60",
    ),
)
@click.argument("email")
@click.option("--name", required=True, help="What it is for, so that it can be told from the others.")
@click.option("--expires-days", metavar="N", type=click.IntRange(1, 36_500), help="Let it end after so many days.")
@click.option("--limit", "limit_nanos", metavar="USD", type=USD, help="Let it spend this much and no more.")
@click.option(
    "--resets", type=click.Choice(RESETS), default="never", show_default=True, help="When the limit begins anew (UTC)."
)
@click.option("--models", metavar="IDS", default="", help="Let it use these models alone, separated by commas.")
@click.option("--networks", metavar="CIDRS", default="", help="Let it be used from these networks alone.")
@click.option(
    "--rpm", metavar="N", type=click.IntRange(1, key_rules.MOST_REQUESTS), help="Its own limit of requests a minute."
)
@common_options
@pass_invocation
def create(
    invocation: Invocation,
    email: str,
    name: str,
    expires_days: int | None,
    limit_nanos: int | None,
    resets: str,
    models: str,
    networks: str,
    rpm: int | None,
) -> None:
    """Make a key for an account and print it, this once."""
    config = invocation.config()
    now = now_us()
    rules = Rules(
        expires_at_us=now + expires_days * DAY_US if expires_days else None,
        models=key_rules.read_models(models.replace(",", " ").split(), [model.id for model in config.models]),
        networks=key_rules.read_networks(networks),
        requests_per_minute=rpm,
        limit_nanos=limit_nanos,
        resets=key_rules.read_resets(resets),
    )
    if limit_nanos is None and rules.resets != "never":
        raise InvalidRequest(f"--resets {resets} needs a --limit that begins anew")

    async def work() -> tuple[Key, str]:
        async with open_books(config) as store:
            account = await find_account(store, email)
            return await create_key(store, account.id, name, config.keys.prefix, now, rules)

    _show_new(invocation, *run(work()), now)


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
            ("id", "account", "name", "key", "status", "made", ">used", ">limit", "resets", "only"),
            [_as_row(one, now) for one in keys],
        )


@key.command(cls=Exampled, examples=("farebox key roll 7 --grace-hours 24",))
@click.argument("which", metavar="ID|KEY")
@click.option(
    "--grace-hours",
    metavar="N",
    type=click.IntRange(0, 168),
    default=0,
    show_default=True,
    help="Let the old key work for so many hours more.",
)
@common_options
@pass_invocation
def roll(invocation: Invocation, which: str, grace_hours: int) -> None:
    """Put a new key, with the same rules, in the place of another one.

    It is printed this once.
    """
    config = invocation.config()
    now = now_us()

    async def work() -> tuple[Key, str]:
        async with open_books(config) as store:
            found = await find_key(store, which)
            return await roll_key(store, found, config.keys.prefix, grace_hours * _HOUR_US, now)

    _show_new(invocation, *run(work()), now)


@key.command()
@click.argument("which", metavar="ID|KEY")
@common_options
@pass_invocation
def disable(invocation: Invocation, which: str) -> None:
    """Let a key rest: its calls are refused until it is enabled again."""
    _change(invocation, which, lambda store, found, now: disable_key(store, found.id, now), "disabled")


@key.command()
@click.argument("which", metavar="ID|KEY")
@common_options
@pass_invocation
def enable(invocation: Invocation, which: str) -> None:
    """Let a key that was disabled work again."""
    _change(invocation, which, lambda store, found, _: enable_key(store, found.id), "enabled")


@key.command()
@click.argument("which", metavar="ID|KEY")
@common_options
@pass_invocation
def revoke(invocation: Invocation, which: str) -> None:
    """Revoke a key, by its id or by the key itself. The running server refuses it at once."""
    _change(invocation, which, lambda store, found, now: revoke_key(store, found.id, now), "revoked")


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


def _change(
    invocation: Invocation, which: str, change: Callable[[Store, Key, int], Coroutine[Any, Any, None]], done: str
) -> None:
    """Change a key that is there, and tell what it is now."""
    config = invocation.config()
    now = now_us()

    async def work() -> Key:
        async with open_books(config) as store:
            found = await find_key(store, which)
            await change(store, found, now)
            return await find_key(store, str(found.id))

    changed = run(work())
    if invocation.as_json:
        print_json(_as_json(changed, now))
    else:
        click.echo(f"Key {changed.id} ({changed.name}, {changed.hint}) is {done}.")


def _show_new(invocation: Invocation, made: Key, text: str, now: int) -> None:
    if invocation.as_json:
        print_json({"key": text, **_as_json(made, now)})
        return
    click.echo(text)
    click.echo(f"Key {made.id} ({made.name}). It is not shown again: keep it now.", err=True)


def _as_row(one: Key, now: int) -> tuple[str, ...]:
    only = [*one.models, *map(key_rules.show_network, one.networks)]
    if one.requests_per_minute is not None:
        only.append(f"{one.requests_per_minute:,} requests/min")
    return (
        *(str(one.id), str(one.account_id), one.name, one.hint, one.status(now), show_moment(one.created_at_us)),
        format_usd(one.budget.used(now)) if one.budget else "",
        format_usd(one.budget.limit_nanos) if one.budget else "",
        one.budget.resets if one.budget else "",
        ", ".join(only),
    )


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
        "disabled_at": None if one.disabled_at_us is None else iso(one.disabled_at_us),
        "replaced_by": one.replaced_by,
        "purpose": one.purpose,
        "models": list(one.models),
        "networks": list(one.networks),
        "requests_per_minute": one.requests_per_minute,
        "limit_usd": decimal_usd(one.budget.limit_nanos) if one.budget else None,
        "resets": one.budget.resets if one.budget else None,
        "used_usd": decimal_usd(one.budget.used(now)) if one.budget else None,
    }
