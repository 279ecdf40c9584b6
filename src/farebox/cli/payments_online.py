"""What the nodes of EVM chains know of addresses before they are given out. Ether that lies on one already would be
credited to the customer who gets it: the key must be of an account that nothing was ever done with.
"""

from typing import Final

import click
from msgspec import Struct

from farebox.cli.checks import Finding
from farebox.cli.common import now_us, open_books
from farebox.config import Config
from farebox.errors import RailTrouble, StoreUnavailable
from farebox.payments.addresses import Addresses
from farebox.payments.chains.evm import EvmNode
from farebox.payments.chains.rpc import JsonRpc
from farebox.payments.keys import ExtendedKey
from farebox.payments.rails import Asset
from farebox.payments.settings import EvmSettings

AHEAD: Final = 100
"""How many of the addresses that come next are asked about."""
_ETHER_DECIMALS: Final = 18
_REMEDY: Final = (
    "what lies on one would be credited to the customer who gets it: make a new account in the wallet, and give its key"
)


class Used(Struct, frozen=True):
    path: str
    address: str
    holds: str
    """In whole coins."""
    sent: int
    """How many transactions."""


class Asked(Struct, frozen=True):
    """What the node of a chain said."""

    chain: str
    coin: str
    used: list[Used]
    trouble: str
    """Why it could not be asked; else empty."""


async def ask_chains(config: Config) -> list[Asked]:
    """Ask each chain that is set up, and where its own coin is taken, about the addresses that come next."""
    asked = []
    for chain in config.evm:
        if chain.key:
            key = ExtendedKey(chain.key.reveal(), "evm")
            asked.append(await _ask(chain, key, await _next_position(config, key)))
    return asked


async def check_chains(config: Config) -> list[Finding]:
    """Tell the same as the doctor does."""
    findings = []
    for one in await ask_chains(config):
        name = f"chain {one.chain}"
        if one.trouble:
            findings.append(Finding(name, "FAIL", one.trouble, "check rpc and chain_id, and the node"))
        elif one.used:
            findings.append(Finding(name, "FAIL", f"{_count(one)} were used before", _REMEDY))
        else:
            findings.append(Finding(name, "ok", f"the node answers, and the next {AHEAD} addresses are unused"))
    return findings


def show(told: Asked) -> None:
    """Print it for people."""
    if told.trouble:
        click.echo(f"{told.chain} could not be asked: {told.trouble}")
    elif not told.used:
        click.echo(f"{told.chain} knows nothing of the next {AHEAD} addresses, as it should be.")
    for one in told.used[:5]:
        sent = f" and has sent {one.sent} transactions" if one.sent else ""
        click.echo(f"{told.chain}: {one.path}  {one.address} holds {one.holds} {told.coin}{sent}")
    if told.used:
        mark = click.style("USED BEFORE", fg="red", bold=True)
        click.echo(f"{told.chain}: {mark}: {_count(told)}; {_REMEDY}")


def _count(told: Asked) -> str:
    return f"{len(told.used)} of the next {AHEAD} addresses"


async def _next_position(config: Config, key: ExtendedKey) -> int:
    try:
        async with open_books(config) as store:
            addresses = Addresses(store)
            key_id = await addresses.find_key(key)
            highest = None if key_id is None else (await addresses.gap(key_id)).highest_issued
    except StoreUnavailable:  # there are no books yet, or nobody can tell
        return 0
    return 0 if highest is None else highest + 1


async def _ask(chain: EvmSettings, key: ExtendedKey, first: int) -> Asked:
    title = chain.title or chain.name.capitalize()
    coin = Asset(chain.coin, chain.coin, title, _ETHER_DECIMALS)
    ahead = range(first, first + AHEAD) if chain.ether else ()  # tokens count from the block where watching begins
    found = {address: position for position in ahead if (address := key.address(position))}
    addresses = list(found)
    node = EvmNode(JsonRpc(chain.rpc.reveal()), chain.chain_id, chain.block_s, chain.name)
    try:
        tip = await node.tip(now_us())
        balances = await node.balances(addresses, tip.hash)
        nonces = await node.nonces(addresses, tip.hash)
    except RailTrouble as error:
        return Asked(title, chain.coin, [], str(error))
    finally:
        await node.close()
    used = [
        Used(f"{key.path}/0/{found[address]}", address, coin.show(balance), nonce)
        for address, balance, nonce in zip(addresses, balances, nonces, strict=True)
        if balance or nonce
    ]
    return Asked(title, chain.coin, used, "")
