"""Real nodes of test chains on this machine: bitcoind in regtest, anvil for EVM chains, each on a free port.

Blocks come only when they are asked for, so that what a test sees is what it has made.
"""

import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[2] / ".chains"
_READY_S: Final = 30.0
_PORTS: Final = 5
"""Ports that are tried."""
_COIN: Final = 100_000_000
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PAYER: Final = "payer"
"""The wallet in the regtest node that pays."""


class NodeError(Exception):
    """What a node said no to."""

    def __init__(self, method: str, code: int, words: str) -> None:
        super().__init__(f"{method}: {words} ({code})")
        self.code = code


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing(what: str) -> RuntimeError:
    return RuntimeError(f"there is no {what}: `bash tests/chains/install.sh` installs it, as `make test` does")


def ask(url: str, method: str, params: Sequence[Any], user: str = "", password: str = "") -> Any:
    """Call a node, waiting for its answer. Raises NodeError, and OSError while it is not there."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    if user:
        manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        manager.add_password(None, url, user, password)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPBasicAuthHandler(manager)
        )
    else:
        opener = _OPENER
    try:
        with opener.open(request, timeout=60) as answer:
            told = json.loads(answer.read(), parse_float=Decimal)
    except urllib.error.HTTPError as error:
        text = error.read()
        if not text:
            raise NodeError(method, error.code, "no answer") from error
        told = json.loads(text, parse_float=Decimal)
    if told.get("error"):
        raise NodeError(method, told["error"].get("code", 0), str(told["error"].get("message")))
    return told["result"]


class _Node:
    """A process that answers JSON-RPC."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._has_run = False

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _probe(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it answers. Another program may have taken its port first: then on another one."""
        for _ in range(_PORTS):
            if self._answers():
                self._has_run = True
                return
            told = (self.directory / "node.log").read_text()[-2000:]
            if self._has_run or "in use" not in told:
                break
            self.port = free_port()
        raise RuntimeError(f"the node does not start: {told}")

    def _answers(self) -> bool:
        log = (self.directory / "node.log").open("wb")
        self.process = subprocess.Popen(self._command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        log.close()
        until = time.monotonic() + _READY_S
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError, NodeError):
                self._probe()
                return True
            time.sleep(0.02)
        self.stop()
        return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()


class Bitcoind(_Node):
    """A regtest node with a wallet that pays. `more` are further options."""

    def __init__(self, directory: Path, more: Sequence[str] = ()) -> None:
        super().__init__(directory)
        self.user, self.password = "watcher", "watcher-pass"
        self.more = list(more)
        self._fresh = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        own = shutil.which("bitcoind")
        unpacked = _ROOT / "bitcoin" / "root" / "usr"
        if own:
            begin = [own]
        elif (unpacked / "bin" / "bitcoind").exists():
            libraries = unpacked / "lib" / "x86_64-linux-gnu"
            loader = unpacked / "lib64" / "ld-linux-x86-64.so.2"
            begin = [str(loader), "--library-path", str(libraries), str(unpacked / "bin" / "bitcoind")]
        else:
            raise missing("bitcoind")
        knots = [] if own else ["-softwareexpiry=0", "-corepolicy=1"]
        return [
            *begin,
            f"-datadir={self.directory}",
            *("-regtest", "-server", f"-rpcport={self.port}", "-rpcbind=127.0.0.1", "-rpcallowip=127.0.0.1"),
            *(f"-rpcuser={self.user}", f"-rpcpassword={self.password}", "-listen=0", "-connect=0", "-dnsseed=0"),
            *("-discover=0", "-txindex=1", "-fallbackfee=0.00002", "-par=1", "-dbcache=16", "-printtoconsole=0"),
            *knots,
            *self.more,
        ]

    def _probe(self) -> None:
        self.ask("getblockchaininfo")
        if not (self.directory / "funded").exists():
            self._fund()
        elif PAYER not in self.ask("listwallets"):
            self.ask("loadwallet", PAYER)

    def _fund(self) -> None:
        """Make the wallet that pays, with coins that are old enough to be spent."""
        if PAYER not in self.ask("listwallets"):
            self.ask("createwallet", PAYER)
        self.mine(110, to=self.payer("getnewaddress"))
        (self.directory / "funded").touch()

    def ask(self, method: str, *params: Any) -> Any:
        return ask(self.url, method, params, self.user, self.password)

    def payer(self, method: str, *params: Any) -> Any:
        """Ask the wallet that pays."""
        return ask(f"{self.url}/wallet/{PAYER}", method, params, self.user, self.password)

    def ask_wallet(self, wallet: str, method: str, *params: Any) -> Any:
        """Ask another wallet of the node."""
        return ask(f"{self.url}/wallet/{wallet}", method, params, self.user, self.password)

    def mine(self, blocks: int = 1, to: str | None = None) -> list[str]:
        """Mine what waits. Each block pays to a new address, so that none is a copy of one that was undone."""
        hashes: list[str] = []
        for _ in range(1 if to else blocks):
            hashes += self.ask("generatetoaddress", blocks if to else 1, to or self.payer("getnewaddress"))
        self.settled()
        return hashes

    def mine_only(self, *txids: str) -> str:
        """Mine a block with these transactions of those that wait, or with none."""
        made = self.ask("generateblock", self.payer("getnewaddress"), list(txids))
        self.settled()
        return str(made["hash"])

    def settled(self) -> None:
        """Wait until wallets have heard of all there is."""
        self.ask("syncwithvalidationinterfacequeue")

    def send(self, address: str, satoshis: int, **options: Any) -> str:
        """Pay an address; answers the transaction. Options are those of `send`, such as fee_rate and replaceable."""
        return self.send_all({address: satoshis}, **options)

    def send_all(self, paid: dict[str, int], **options: Any) -> str:
        """Pay several addresses by one transaction."""
        outputs = [{address: coins(satoshis)} for address, satoshis in paid.items()]
        sent = self.payer("send", outputs, None, "unset", None, {"replaceable": True, "fee_rate": 2, **options})
        self.settled()
        return str(sent["txid"])

    def bump(self, txid: str) -> str:
        """Raise the fee of a transaction: another one takes its place."""
        made = self.payer("bumpfee", txid, {"fee_rate": 30})
        self.settled()
        return str(made["txid"])

    def double_spend(self, txid: str, paid: dict[str, int] | None = None) -> str:
        """Send the coins of a transaction that waits back to who paid, less what is `paid`, with a higher fee."""
        spent = self.ask("getrawtransaction", txid, 1)["vin"]
        inputs = [{"txid": one["txid"], "vout": one["vout"]} for one in spent]
        worth = sum(
            int(self.ask("getrawtransaction", one["txid"], 1)["vout"][one["vout"]]["value"] * _COIN) for one in inputs
        )
        rest = {self.payer("getnewaddress"): worth - 20_000 - sum((paid or {}).values())}
        to = {address: coins(satoshis) for address, satoshis in {**(paid or {}), **rest}.items()}
        raw = self.ask("createrawtransaction", inputs, to)
        signed = self.payer("signrawtransactionwithwallet", raw)
        sent = self.ask("sendrawtransaction", signed["hex"], 0)
        self.settled()
        return str(sent)

    def undo(self, depth: int) -> list[str]:
        """Undo the newest blocks; answers their hashes, oldest first. What was in them waits again."""
        tip = self.ask("getblockcount")
        hashes = [str(self.ask("getblockhash", height)) for height in range(tip - depth + 1, tip + 1)]
        self.ask("invalidateblock", hashes[0])
        self.settled()
        return hashes

    def redo(self, block: str) -> None:
        """Let a block that was undone count again."""
        self.ask("reconsiderblock", block)
        self.settled()


class Anvil(_Node):
    """A development chain. `more` are further options; blocks that are 2 * `slots` deep are final."""

    def __init__(self, directory: Path, more: Sequence[str] = (), slots: int = 1) -> None:
        super().__init__(directory)
        self.more = list(more)
        self.slots = slots

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        own = shutil.which("anvil")
        packed = _ROOT / "node" / "node_modules" / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"
        if not packed.exists() and not own:
            raise missing("anvil")
        return [
            str(packed) if packed.exists() else str(own),
            *("--host", "127.0.0.1", "--port", str(self.port), "--no-mining", "--quiet", "--threads", "1"),
            *("--slots-in-an-epoch", str(self.slots), "--state", str(self.directory / "state.json")),
            *self.more,
        ]

    def _probe(self) -> None:
        self.ask("eth_chainId")

    def ask(self, method: str, *params: Any) -> Any:
        return ask(self.url, method, params)

    def mine(self, blocks: int = 1) -> None:
        self.ask("anvil_mine", hex(blocks))


def coins(satoshis: int) -> str:
    """Write satoshis as the node reads amounts."""
    return f"{Decimal(satoshis).scaleb(-8):f}"


@contextlib.contextmanager
def running(node: "Bitcoind | Anvil") -> Iterator[None]:
    """Run a node as long as it is needed."""
    node.directory.mkdir(parents=True, exist_ok=True)
    node.start()
    try:
        yield
    finally:
        node.stop()
