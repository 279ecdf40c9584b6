"""A test chain's other side: whoever pays, mines, and undoes blocks, through the unlocked accounts of an anvil."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from Crypto.Hash import keccak

from farebox.payments.chains.rpc import JsonRpc

CHAIN_ID: Final = 31337
GWEI: Final = 10**9
ETHER: Final = 10**18
NOBODY: Final = "0x" + "00" * 20

Contracts = dict[str, dict[str, Any]]


def hashed(data: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=data).digest()


class Contract:
    """A contract on a chain, called by the names of its functions: `await token.send("transfer", to, 5)`."""

    def __init__(self, chain: "EvmChain", address: str, inputs: dict[str, list[str]]) -> None:
        self._chain = chain
        self.address = address
        self._inputs = inputs

    async def send(self, function: str, *values: Any, sender: str = "", wei: int = 0, gwei: int = 2) -> str:
        """Send a transaction that waits to be mined; answers its hash."""
        data = self.data(function, *values)
        return await self._chain.send(self.address, wei, data=data, sender=sender, gwei=gwei)

    async def ask(self, function: str, *values: Any) -> int:
        """Call a function that answers a number."""
        call = {"to": self.address, "data": self.data(function, *values)}
        return int(await self._chain.rpc.ask("eth_call", call, "latest"), 16)

    def data(self, function: str, *values: Any) -> str:
        types = self._inputs[function]
        return "0x" + hashed(f"{function}({','.join(types)})".encode())[:4].hex() + encode(types, values).hex()


class EvmChain:
    """An anvil that mines only when it is told. `people` are its rich accounts; the first one deploys and pays."""

    def __init__(self, url: str) -> None:
        self.rpc = JsonRpc(url)
        self.url = url
        self.people: list[str] = []
        self._known: Contracts = json.loads(
            (Path(__file__).parent / "contracts" / "contracts.json").read_text(encoding="utf-8")
        )["contracts"]

    async def open(self) -> "EvmChain":
        self.people = await self.rpc.ask("eth_accounts")
        return self

    async def close(self) -> None:
        await self.rpc.close()

    # Paying

    async def send(
        self,
        to: str | None,
        wei: int = 0,
        *,
        data: str = "0x",
        sender: str = "",
        gwei: int = 2,
        nonce: int | None = None,
    ) -> str:
        """Send a transaction that waits to be mined; answers its hash. Those that pay more gwei are mined first.

        Another one of the same sender and nonce that pays more replaces it.
        """
        fields = {
            "from": sender or self.people[0],
            "value": hex(wei),
            "data": data,
            "gas": hex(3_000_000),
            "gasPrice": hex(gwei * GWEI),
        }
        if to is not None:
            fields["to"] = to
        if nonce is not None:
            fields["nonce"] = hex(nonce)
        return str(await self.rpc.ask("eth_sendTransaction", fields))

    async def deploy(self, name: str, *values: Any, sender: str = "") -> Contract:
        """Put one of contracts.json on the chain, and mine that."""
        known = self._known[name]
        code = known["bytecode"] + encode(known["inputs"].get("", []), values).hex()
        tx = await self.send(None, data=code, sender=sender)
        await self.mine()
        receipt = await self.rpc.ask("eth_getTransactionReceipt", tx)
        assert receipt["status"] == "0x1", receipt
        return Contract(self, receipt["contractAddress"], known["inputs"])

    async def token(self, places: int = 6) -> Contract:
        """Deploy a token like USDT; the first of `people` holds a billion of it."""
        return await self.deploy("UsdtLike", 10 ** (9 + places), places)

    async def status(self, tx: str) -> int | None:
        """Give 1 for a transaction that succeeded, 0 for a reverted one, None for one that is in no block."""
        receipt = await self.rpc.ask("eth_getTransactionReceipt", tx)
        return None if receipt is None else int(receipt["status"], 16)

    async def balance(self, address: str) -> int:
        return int(await self.rpc.ask("eth_getBalance", address, "latest"), 16)

    # Blocks

    async def mine(self, blocks: int = 1, *, apart_s: int = 1) -> None:
        """Make blocks; the first one takes in whatever waits."""
        await self.rpc.ask("anvil_mine", hex(blocks), hex(apart_s))

    async def height(self) -> int:
        return int(await self.rpc.ask("eth_blockNumber"), 16)

    async def raw(self, tx: str) -> str:
        """Give a transaction as it was signed, to send it again in another branch."""
        return str(await self.rpc.ask("eth_getRawTransactionByHash", tx))

    async def fork(self) -> str:
        """Remember the chain as it is; `undo` comes back to it. Each can be undone once."""
        return str(await self.rpc.ask("evm_snapshot"))

    async def undo(self, fork: str, again: Sequence[str] = ()) -> None:
        """Undo all blocks since `fork`, and send transactions (raw) again, for the next block to take in.

        The blocks of this branch are never those of another one, even where the same is in them.
        """
        miner = (await self.rpc.ask("eth_getBlockByNumber", "latest", False))["miner"]  # noqa: FBT003  JSON
        assert await self.rpc.ask("evm_revert", fork)
        await self.rpc.ask("anvil_dropAllTransactions")
        await self.rpc.ask("anvil_setCoinbase", "0x" + hashed(f"{miner} {fork}".encode())[:20].hex())
        for one in again:
            await self.rpc.ask("eth_sendRawTransaction", one)

    async def reorg(self, depth: int) -> None:
        """Replace the newest blocks by as many empty ones."""
        await self.rpc.ask("anvil_reorg", depth, [])


def encode(types: Sequence[str], values: Sequence[Any]) -> bytes:
    """Write arguments as the ABI says: numbers, truths, addresses, and lists of these."""
    assert len(types) == len(values), (types, values)
    heads: list[bytes] = []
    tail = b""
    for kind, value in zip(types, values, strict=True):
        if kind.endswith("[]"):
            heads.append(_word(32 * len(types) + len(tail)))
            tail += _word(len(value)) + b"".join(_word(one) for one in value)
        else:
            heads.append(_word(value))
    return b"".join(heads) + tail


def _word(value: int | str) -> bytes:
    return (int(value, 16) if isinstance(value, str) else int(value)).to_bytes(32, "big")
