"""Payments in coins, for the operator: what to look at before going live, and all that comes after."""

from collections.abc import Sequence
from typing import Final

import click
from msgspec import Struct

from farebox.cli.common import Exampled, Invocation, common_options, open_books, pass_invocation, print_json, run
from farebox.cli.payments_books import COMMANDS
from farebox.cli.payments_online import ask_chains, show
from farebox.config import Config
from farebox.errors import ConfigError, StoreUnavailable
from farebox.payments.addresses import Addresses, Gap
from farebox.payments.keys import ExtendedKey, Family

_BITCOIN: Final = {
    "main": "Bitcoin",
    "test": "Bitcoin testnet",
    "signet": "Bitcoin signet",
    "regtest": "Bitcoin regtest",
}


class _Place(Struct, frozen=True):
    path: str
    address: str


class _Books(Struct, frozen=True):
    """What the books say of a key."""

    highest_issued: int | None
    highest_used: int | None
    gap_limit: int
    wrong: list[str]
    """Paths of addresses that are not the key's, though the books say so."""


class _Key(Struct, frozen=True):
    """A key, where its wallet has it, and what to compare."""

    family: Family
    chains: list[str]
    path: str
    path_told: bool
    """The configuration says so; else it is where wallets usually have such an account."""
    fingerprint: str
    addresses: list[_Place]
    books: _Books | None
    """None where the books cannot be read."""


@click.group()
def payments() -> None:
    """Check and look after payments in coins."""


for _command in COMMANDS:
    payments.add_command(_command)


@payments.command(cls=Exampled, examples=("farebox payments check --count 10",))
@click.option(
    "--count", metavar="N", type=click.IntRange(1, 1000), default=3, show_default=True, help="How many addresses a key."
)
@click.option(
    "--online", is_flag=True, help="Ask EVM chains, too, whether the addresses that come next were used before."
)
@common_options
@pass_invocation
def check(invocation: Invocation, count: int, *, online: bool) -> int:
    """Show the first addresses of each key, to compare with the wallet.

    To be done before going live: coins sent to an address that the wallet does not show are lost to it. Exit code 1
    when no key is set, one is wrong, an address in the books is not of its key, or, with --online, one that comes next
    has been used before.
    """
    config = invocation.config(secrets=True)
    keys = _keys(config)
    if not keys:
        name = config.source.name if config.source else "the configuration (there is no file)"
        if config.btcpay.url:
            raise ConfigError(f"{name}: no key is set. BTCPay Server has its own wallet: `farebox doctor` asks it")
        raise ConfigError(
            f"{name}: no key is set, so no coins are taken. Set key in [bitcoin] or [[evm]] to the extended public key "
            "of an account (zpub…, xpub…)"
        )
    told, without = run(_look(config, keys, count))
    asked = run(ask_chains(config)) if online else None
    if invocation.as_json:
        print_json({"keys": told, "online": asked})
    else:
        _show(told, without)
        for one in asked or ():
            show(one)
    wrong = any(one.books and one.books.wrong for one in told)
    return 1 if wrong or any(one.used or one.trouble for one in asked or ()) else 0


def _keys(config: Config) -> list[tuple[ExtendedKey, list[str]]]:
    """Give each key that is set, once, with the chains it is used on."""
    found: dict[str, tuple[ExtendedKey, list[str]]] = {}
    bitcoin = config.bitcoin
    if bitcoin.key:
        key = ExtendedKey(bitcoin.key.reveal(), "bitcoin", bitcoin.network)
        found[key.fingerprint] = (key, [_BITCOIN[bitcoin.network]])
    for chain in config.evm:
        if chain.key:
            key = ExtendedKey(chain.key.reveal(), "evm")
            found.setdefault(key.fingerprint, (key, []))[1].append(chain.title or chain.name.capitalize())
    return list(found.values())


async def _look(config: Config, keys: Sequence[tuple[ExtendedKey, list[str]]], count: int) -> tuple[list[_Key], str]:
    """Tell of each key; and why the books cannot be read, where they cannot."""
    books: list[_Books | None]
    try:
        async with open_books(config) as store:
            books, without = [await _history(Addresses(store), key) for key, _ in keys], ""
    except StoreUnavailable as error:
        books, without = [None] * len(keys), str(error)
    told = []
    for (key, chains), history in zip(keys, books, strict=True):
        places = ((position, key.address(position)) for position in range(count))
        shown = [_Place(f"{key.path}/0/{position}", address) for position, address in places if address]
        told.append(_Key(key.family, chains, key.path, "/" in key.origin, key.fingerprint, shown, history))
    return told, without


async def _history(addresses: Addresses, key: ExtendedKey) -> _Books:
    key_id = await addresses.find_key(key)
    if key_id is None:
        return _Books(None, None, Gap(None, None, 0, 0).limit, [])
    gap = await addresses.gap(key_id)
    issued = await addresses.of_key(key_id)
    wrong = [one.path for one in issued if one.address != key.address(one.position)]
    return _Books(gap.highest_issued, gap.highest_used, gap.limit, wrong)


def _show(told: Sequence[_Key], without: str) -> None:
    for one in told:
        click.secho(", ".join(one.chains), bold=True)
        click.echo(f"  account {one.path}{'' if one.path_told else ' (usually)'}, key {one.fingerprint[:8]}")
        for place in one.addresses:
            click.echo(f"  {place.path}  {place.address}")
        if one.books:
            click.echo(f"  {_words(one.books)}")
        click.echo()
    click.echo(
        "Your wallet must show the same addresses, in this order. If it does not, do not go live: coins would be"
    )
    click.echo(
        "sent where it does not look. It then has another account or kind of address open, or this is not its key."
    )
    if without:
        click.echo(f"How many addresses have been given out is not known: {without}.")


def _words(books: _Books) -> str:
    if books.wrong:
        mark = click.style("WRONG", fg="red", bold=True)
        listed = ", ".join(books.wrong[:5]) + (f" … ({len(books.wrong)} in all)" if len(books.wrong) > 5 else "")
        return f"{mark}: the books have addresses that are not of this key: {listed}"
    if books.highest_issued is None:
        return "none has been given out yet"
    used = "none has been paid to" if books.highest_used is None else f"paid to up to 0/{books.highest_used}"
    return f"given out up to 0/{books.highest_issued}, {used}: the wallet's gap limit must be {books.gap_limit} or more"
