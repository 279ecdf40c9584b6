"""`make demo-chains`: the demo with real payments on test chains: bitcoind in regtest, anvil, and a wallet that pays.

Coins here are worth nothing, and come from nowhere. A block is made every few seconds on each chain.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from farebox.payments.test_wallets import BITCOIN_WALLET
from tests.chains.evm import EvmChain
from tests.chains.nodes import Anvil, Bitcoind, NodeError, running
from tests.payments.fake_rates import serving_rates
from tests.payments.wallets import ABOUT, VPUB, wallet

_BLOCK_S: Final = 5.0


def settings(bitcoin: Bitcoind, anvil: Anvil, rates_url: str, contract: str) -> str:
    """Write what the demo's configuration says about payments."""
    return f"""
[payments]
test_wallet = true
rates_url = "{rates_url}"
least_usd = 1

[bitcoin]
key = "{VPUB}"
network = "regtest"
rpc = "{bitcoin.url}"
rpc_user = "{bitcoin.user}"
rpc_password = "{bitcoin.password}"
confirmations = [{{ below_usd = 100, blocks = 2 }}, {{ blocks = 4 }}]

[[evm]]
name = "anvil"
title = "Anvil"
chain_id = 31337
rpc = "{anvil.url}"
key = "{evm_key()}"
block_s = {_BLOCK_S}
tokens = [{{ code = "USDT", name = "Tether", contract = "{contract}", decimals = 6 }}]
confirmations = [{{ below_usd = 100, blocks = 3 }}, {{ blocks = 6 }}]
"""


def evm_key() -> str:
    """Give the public key of an account of a published seed that no development node funds."""
    return str(wallet(ABOUT).derive("m/44h/60h/0h").to_public())


async def play(data: Path, port: int) -> int:
    """Run nodes, rates and the demo until it is told to end."""
    chains = data / "chains"
    bitcoin, anvil = Bitcoind(chains / "bitcoin", ["-persistmempool=1"]), Anvil(chains / "anvil")
    with running(bitcoin), running(anvil):
        open_wallet(bitcoin)
        contract = _kept(chains / "token.json") or _keep(chains / "token.json", await _deploy(anvil))
        async with serving_rates() as rates:
            file = data / "payments.toml"
            file.write_text(settings(bitcoin, anvil, rates.url, contract), "utf-8")
            farebox = str(Path(sys.executable).with_name("farebox"))
            command = [farebox, "demo", "--data", str(data), "--port", str(port)]
            demo = await asyncio.create_subprocess_exec(*command, "--payments", str(file), start_new_session=True)
            return await _mine_until_it_ends(demo, bitcoin, anvil)


def open_wallet(bitcoin: Bitcoind) -> None:
    """Make the wallet that pays at the push of a button, and fund it."""
    if BITCOIN_WALLET in bitcoin.ask("listwallets"):
        return
    try:
        bitcoin.ask("loadwallet", BITCOIN_WALLET)
    except NodeError:
        bitcoin.ask("createwallet", BITCOIN_WALLET)
        address = bitcoin.ask_wallet(BITCOIN_WALLET, "getnewaddress")
        for _ in range(10):
            bitcoin.send(address, 10 * 100_000_000)
        bitcoin.mine(1)


async def _deploy(anvil: Anvil) -> str:
    """Put a token like USDT on the chain; answers its contract."""
    chain = await EvmChain(anvil.url).open()
    try:
        return (await chain.token()).address
    finally:
        await chain.close()


def _kept(file: Path) -> str:
    """Give the contract that an earlier start has made, which the chain still knows."""
    return str(json.loads(file.read_text())["contract"]) if file.exists() else ""


def _keep(file: Path, contract: str) -> str:
    file.write_text(json.dumps({"contract": contract}))
    return contract


async def _mine_until_it_ends(demo: asyncio.subprocess.Process, bitcoin: Bitcoind, anvil: Anvil) -> int:
    """Make a block on each chain every few seconds, until the demo ends or is told to."""

    def tell() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(demo.pid, signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, tell)
    ended = asyncio.create_task(demo.wait())
    while not ended.done():
        await asyncio.wait([ended], timeout=_BLOCK_S)
        if not ended.done():
            await asyncio.to_thread(bitcoin.mine, 1)
            await asyncio.to_thread(anvil.mine, 1)
    return ended.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".data-chains"), help="where all is kept")
    parser.add_argument("--port", type=int, default=8080, help="where the demo listens")
    chosen = parser.parse_args()
    chosen.data.mkdir(parents=True, exist_ok=True)
    try:
        raise SystemExit(asyncio.run(play(chosen.data.absolute(), chosen.port)))
    except (RuntimeError, subprocess.SubprocessError) as error:
        sys.exit(f"demo-chains: {error}")


if __name__ == "__main__":
    main()
