"""What a chain knows of addresses before they are given out. Ether that lies on one already would be credited to
whoever gets it, and one that has sent is never watched: the key must be of an account that nothing was done with.
"""

from typing import Final

import click
from msgspec import Struct

from farebox.cli.common import now_us
from farebox.errors import RailTrouble
from farebox.payments.chains.evm import EvmNode
from farebox.payments.chains.rpc import JsonRpc
from farebox.payments.keys import ExtendedKey
from farebox.payments.rails import Asset
from farebox.payments.settings import EvmSettings

AHEAD: Final = 100
"""How many of the addresses that come next are asked about."""
_ETHER_DECIMALS: Final = 18


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


async def ask(chain: EvmSettings, key: ExtendedKey, first: int) -> Asked:
    """Ask a chain's node about the addresses from position `first` on."""
    title = chain.title or chain.name
    coin = Asset(chain.coin, chain.coin, title, _ETHER_DECIMALS)
    found = {address: position for position in range(first, first + AHEAD) if (address := key.address(position))}
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
        click.echo(
            f"{told.chain}: {mark}: {len(told.used)} of the next {AHEAD} addresses. What lies on one would be credited "
            "to the customer who gets it: make a new account in the wallet, and give its key"
        )
