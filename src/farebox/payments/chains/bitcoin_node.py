"""A node of Bitcoin Core (28 or newer) and the watch-only wallet in it, made ready to be believed: right chain, not
behind, and watching every address that was or will soon be given out. It holds no private key and sends nothing.
"""

from typing import Any, Final, TypeVar

import msgspec

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble, WrongChain
from farebox.payments.chains.rpc import JsonRpc, RpcError
from farebox.payments.keys import ExtendedKey
from farebox.payments.settings import BitcoinSettings

METHODS: Final = (
    *("getblockchaininfo", "getbestblockhash", "getblockheader", "getmempoolentry", "gettxout", "scantxoutset"),
    *("getdescriptorinfo", "deriveaddresses", "listwallets", "loadwallet", "createwallet"),
    *("getwalletinfo", "listdescriptors", "importdescriptors"),
    *("listsinceblock", "gettransaction", "getreceivedbyaddress"),
)
"""All that is ever asked: what `rpcwhitelist` must allow."""
NOT_FOUND: Final = -5
WALLET_ERROR: Final = -4
_ON_STARTUP: Final = (True,)
_WATCH_ONLY: Final = (True, True, None, False, True, True)
"""No private keys, blank, no passphrase, addresses may be used again, of descriptors, loaded when the node starts."""
_NO_WALLET: Final = -18
_LOADED_ALREADY: Final = -35
_SLOW_S: Final = 6 * 3600.0
"""Reading old blocks again, or all coins there are, takes as long as it takes."""
_EARLIER_S: Final = 2 * 3600
"""Times of blocks are what miners say, up to two hours off."""
_OLDEST_TIP_US: Final = 3 * 3600 * US_PER_S
_MOST_UNDONE: Final = 6
"""A branch that takes over is a longer one: heights go down only while somebody undoes blocks by hand."""
_CHAINS: Final = {"test": ("test", "testnet4")}


_T = TypeVar("_T")


class Chain(msgspec.Struct, frozen=True):
    """What a node says of itself, as far as it matters here."""

    chain: str
    blocks: int
    headers: int
    bestblockhash: str
    initialblockdownload: bool


class Header(msgspec.Struct, frozen=True):
    """What a node says of a block. `confirmations` below 1: it is on no branch that counts."""

    hash: str
    height: int
    time: int
    confirmations: int


class BitcoinNode:
    """One node, asked by two roads: as a node, and by the wallet in it."""

    def __init__(self, settings: BitcoinSettings, key: ExtendedKey) -> None:
        """Raises ValueError for an `rpc` that is no http(s) URL."""
        user, password = settings.rpc_user, settings.rpc_password.reveal()
        self.rpc = JsonRpc(settings.rpc, user, password)
        self.slow = JsonRpc(settings.rpc, user, password, within_s=_SLOW_S)
        self.wallet = self.rpc.at(f"/wallet/{settings.wallet}")
        self._slow_wallet = self.slow.at(f"/wallet/{settings.wallet}")
        self._settings = settings
        self._key = key

    async def close(self) -> None:
        for one in (self.rpc, self.slow, self.wallet, self._slow_wallet):
            await one.close()

    async def tip(self, highest_seen: int | None, now_us: int) -> Header:
        """Give the newest block of a node that can be believed. Raises WrongChain, RailTrouble for one that is behind.

        `highest_seen` is the height of the newest block that was seen before.
        """
        network = self._settings.network
        chain = read(await self.rpc.ask("getblockchaininfo"), Chain)
        if chain.chain not in _CHAINS.get(network, (network,)):
            raise WrongChain(f'the node at {self.rpc.place} is on "{chain.chain}", the settings say "{network}"')
        header = read(await self.rpc.ask("getblockheader", chain.bestblockhash), Header)
        if words := why_behind(network, chain, header, highest_seen, now_us):
            raise RailTrouble(f"the node at {self.rpc.place} is behind: {words}")
        return header

    async def open_wallet(self) -> None:
        """Load the wallet, and make it where there is none. Raises RailTrouble for one that is not for watching."""
        name = self._settings.wallet
        if name not in await self.rpc.ask("listwallets"):
            try:
                await self.rpc.ask("loadwallet", name, *_ON_STARTUP)
            except RpcError as error:
                if error.code == _NO_WALLET:
                    await self.rpc.ask("createwallet", name, *_WATCH_ONLY)
                elif error.code != _LOADED_ALREADY:
                    raise
        info = await self.wallet.ask("getwalletinfo")
        if info.get("private_keys_enabled") or not info.get("descriptors"):
            raise RailTrouble(
                f'the wallet "{name}" of the node at {self.rpc.place} is not one that only watches: set another name'
            )

    async def watched(self) -> tuple[str, int]:
        """Give our key's descriptor as the node writes it, and the last position below it that the wallet watches.

        That is -1 where it watches none. Raises RailTrouble for a node that makes other addresses of the key, and as
        long as the wallet reads old blocks: what it finds there comes in behind any cursor.
        """
        written = str((await self.rpc.ask("getdescriptorinfo", self._key.descriptor()))["descriptor"])
        if await self.rpc.ask("deriveaddresses", written, [0, 0]) != [self._key.address(0)]:
            raise RailTrouble(f"the node at {self.rpc.place} makes other addresses of the key than are given out")
        listed = await self.wallet.ask("listdescriptors")
        ends = [one["range"][1] for one in listed["descriptors"] if one["desc"] == written and "range" in one]
        if (await self.wallet.ask("getwalletinfo")).get("scanning"):  # asked last: who imports holds it from before
            raise RailTrouble(f"the wallet of the node at {self.rpc.place} is reading old blocks")
        return written, max(ends, default=-1)

    async def watch(self, descriptor: str, end: int, since_s: int) -> None:
        """Watch positions up to `end`, reading again the blocks since a moment: hours, where that is long ago."""
        request = {"desc": descriptor, "timestamp": max(0, since_s - _EARLIER_S), "range": [0, end]}
        (told,) = await self._slow_wallet.ask("importdescriptors", [request])
        if not told.get("success"):  # a failure comes as a result
            words = told.get("error", {}).get("message", "no reason is given")
            raise RailTrouble(f"the node at {self.rpc.place} does not watch the key's addresses: {words}")


def why_behind(network: str, chain: Chain, tip: Header, highest_seen: int | None, now_us: int) -> str:
    """Say why a node is not to be believed yet; empty when it is."""
    if chain.initialblockdownload:
        return f"it is still reading the chain, at block {chain.blocks}"
    if chain.headers - chain.blocks > 1:
        return f"it has read {chain.blocks} of {chain.headers} blocks"
    if network == "regtest":  # blocks come there when somebody makes one
        return ""
    if highest_seen is not None and chain.blocks < highest_seen - _MOST_UNDONE:
        return f"its newest block is {chain.blocks}, block {highest_seen} was seen before"
    if now_us - tip.time * US_PER_S > _OLDEST_TIP_US:
        return f"its newest block, {chain.blocks}, is more than three hours old"
    return ""


def read(answer: Any, kind: type[_T]) -> _T:
    """Read an answer as what it should be. Raises RailTrouble."""
    try:
        return msgspec.convert(sound(answer), kind)
    except msgspec.ValidationError as error:
        raise RailTrouble(f"a node answers in no form that is known: {error}") from error


def sound(answer: Any) -> Any:
    """Give an answer of a batch back, if it is one. Raises RpcError."""
    if isinstance(answer, RpcError):
        raise answer
    return answer
