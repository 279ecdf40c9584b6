"""A node of an EVM chain, read exactly: blocks, logs, receipts, balances. It knows nothing of customers or money.

Near the head ask by a block's hash: a node that has not got the block then says so, where by number or range it would
answer with another branch, or with nothing. Whatever is not the answer to what was asked is a RailTrouble.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

from msgspec import Struct

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble, WrongChain
from farebox.payments.chains.rpc import Call, JsonRpc, RpcError

TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
"""Topic of `Transfer(address indexed from, address indexed to, uint256 value)` (ERC-20)."""
RECIPIENTS: Final = 500
"""Addresses in one filter: nodes limit entries for a position, and hosted ones the size of what they are sent."""
MANY_RECIPIENTS: Final = 2000
"""With more, all transfers in a block are less to ask for than the filters are."""
OLD_S: Final = 600
OLD_BLOCKS: Final = 50
"""A newest block that is older than both, in seconds and in blocks, means that the node is behind."""

_BATCH: Final = 100
"""The most calls in one request; less where a node refuses so many."""
_SPAN: Final = 1000
"""The most blocks in one range."""
_DECIMALS: Final = "0x313ce567"
_BALANCE_OF: Final = "0x70a08231"
_TOO_MUCH: Final = ("range", "too many", "too large", "size", "limit", "exceed", "more than", "timeout", "timed out")
_DROPPED: Final = ("missing trie", "prun", "histor", "archive", "state", "outofrange")
_T = TypeVar("_T")


class Block(Struct, frozen=True):
    """A block's head. Hashes are 0x and lower-case hex."""

    height: int
    hash: str
    parent: str
    at_us: int
    """When it was made, by its own words."""


class Log(Struct, frozen=True):
    """One event that a contract has told of. Addresses and hashes are 0x and lower-case hex."""

    contract: str
    topics: tuple[str, ...]
    data: bytes
    block: str
    height: int
    tx: str
    index: int
    """Its place in the block: another one each time that its transaction is mined."""


class Receipt(Struct, frozen=True):
    """What came of a transaction in the block that it is in now."""

    tx: str
    block: str
    height: int
    succeeded: bool
    logs: tuple[Log, ...]


class Spend(Struct, frozen=True):
    """A transaction that gives some of the chain's own coin to an address. Both are 0x and lower-case hex."""

    tx: str
    to: str
    wei: int


class EvmNode:
    """Reads one node. `name` is what messages call the chain; `block_s` is how often it makes a block.

    Before the first question, and again after every failure, the node has to name the chain that the settings name.
    """

    def __init__(self, rpc: JsonRpc, chain_id: int, block_s: float, name: str) -> None:
        self._rpc = rpc
        self._chain_id = chain_id
        self._block_s = block_s
        self._name = name
        self._is_sure = False
        self._span = _SPAN
        self._batch = _BATCH

    @property
    def is_sure(self) -> bool:
        """Whether the node has answered well ever since it named its chain."""
        return self._is_sure

    async def close(self) -> None:
        await self._rpc.close()

    async def check_chain(self) -> None:
        """See that the node is on the chain of the settings. Raises WrongChain, RailTrouble."""
        try:
            self._see_chain(await self._rpc.ask("eth_chainId"))
        except RailTrouble:
            self._is_sure = False
            raise

    async def tip(self, now_us: int) -> Block:
        """Give the newest block, once the node has named its chain and says that it is not catching up itself.

        Raises WrongChain; RailTrouble also for a tip that is too old to be the chain's newest block.
        """
        calls: list[Call] = [
            ("eth_chainId", []),
            ("eth_syncing", []),
            ("eth_getBlockByNumber", ["latest", False]),
        ]
        chain_id, syncing, latest = await self._ask_all(calls, check=False)
        self._see_chain(self._sound(chain_id))
        if isinstance(syncing, dict):  # else it is false, or the host does not answer that
            raise self._trouble("the node is still fetching the chain: wait until it has it all")
        block = self._block(self._sound(latest))
        if block is None:
            raise self._trouble("the node knows no newest block")
        age_s = (now_us - block.at_us) // US_PER_S
        if age_s > max(OLD_S, OLD_BLOCKS * self._block_s):
            raise self._trouble(f"the node is behind: its newest block, {block.height}, is {age_s} s old")
        return block

    async def finalized(self) -> int | None:
        """Give the height up to which the chain takes nothing back; None where a chain or node knows no such thing."""
        (answer,) = await self._ask_all([("eth_getBlockByNumber", ["finalized", False])])
        if isinstance(answer, RpcError):
            if _is_unknown(answer):
                return None
            self._sound(answer)
        block = self._block(answer)
        return block.height if block else None

    async def blocks(self, heights: Sequence[int]) -> list[Block | None]:
        """Give the canonical blocks at these heights, as the node sees it now; None for those it has not got."""
        answers = await self._ask_all([("eth_getBlockByNumber", [hex(height), False]) for height in heights])
        found = [self._block(self._sound(one)) for one in answers]
        for height, block in zip(heights, found, strict=True):
            if block is not None and block.height != height:
                raise self._trouble(f"asked for block {height}, the node gave block {block.height}")
        return found

    async def block_by_hash(self, block_hash: str) -> Block | None:
        """Give a block by its hash, of whatever branch; None when the node has not got it."""
        (answer,) = await self._ask_all([("eth_getBlockByHash", [block_hash, False])])
        block = self._block(self._sound(answer))
        if block is not None and block.hash != block_hash:
            raise self._trouble(f"asked for block {block_hash}, the node gave block {block.hash}")
        return block

    async def transfers_in(
        self, blocks: Sequence[Block], contracts: Sequence[str], recipients: Sequence[str]
    ) -> list[Log]:
        """Give the Transfer logs of these contracts to these addresses, if not to others as well, in these very blocks.

        Raises RailTrouble when the node has not got one of them: nothing can be said then about any.
        """
        if not contracts or not recipients:
            return []
        parts = _parts(recipients, RECIPIENTS) if len(recipients) <= MANY_RECIPIENTS else [()]
        asked = [(block, some) for block in blocks for some in parts]
        calls = [("eth_getLogs", [{"blockHash": block.hash, **_transfers(contracts, some)}]) for block, some in asked]
        logs: list[Log] = []
        for (block, _), answer in zip(asked, await self._ask_all(calls), strict=True):
            for log in self._logs(self._sound(answer)):
                if (log.block, log.height) != (block.hash, block.height):
                    raise self._trouble(f"asked for logs of block {block.hash}, the node gave some of {log.block}")
                logs.append(log)
        return logs

    async def transfers_between(
        self, first: int, last: Block, contracts: Sequence[str], recipients: Sequence[str]
    ) -> list[Log]:
        """Give the Transfer logs of these contracts to these addresses from height `first` up to the block `last`.

        Only for blocks so deep that they move no more. Ranges are halved as often as the node finds them too large, and
        grow again by and by.
        With every range the node has to show the block `last`: one that has not got it would find nothing there.
        """
        if not contracts or not recipients or first > last.height:
            return []
        logs: list[Log] = []
        for some in _parts(recipients, RECIPIENTS):
            begin = first
            while begin <= last.height:
                end = min(begin + self._span - 1, last.height)
                span = {"fromBlock": hex(begin), "toBlock": hex(end), **_transfers(contracts, some)}
                calls: list[Call] = [("eth_getBlockByNumber", [hex(last.height), False]), ("eth_getLogs", [span])]
                shown, answer = await self._ask_all(calls)
                block = self._block(self._sound(shown))
                if block is None or block.hash != last.hash:
                    raise self._trouble(f"the node has lost block {last.height} while it was read: trying again")
                if isinstance(answer, RpcError) and begin < end and _is_too_much(answer):
                    self._span = (end - begin + 1) // 2
                    continue
                found = self._logs(self._sound(answer))
                if any(not begin <= log.height <= end for log in found):
                    raise self._trouble(f"asked for logs of {begin} to {end}, the node gave some of other blocks")
                logs += found
                begin = end + 1
                self._span = min(_SPAN, self._span + self._span // 8)
        return logs

    async def receipts(self, txs: Sequence[str]) -> dict[str, Receipt | None]:
        """Give the receipts of transactions; None for one that is in no block of the node's branch."""
        answers = await self._ask_all([("eth_getTransactionReceipt", [tx]) for tx in txs])
        return {tx: self._receipt(tx, self._sound(answer)) for tx, answer in zip(txs, answers, strict=True)}

    async def balances(self, addresses: Sequence[str], block_hash: str) -> list[int]:
        """Give what addresses hold of the chain's own coin at a block, in wei (EIP-1898: of that block, or an error).

        Raises RailTrouble when the block is not, or no longer, in the node's branch.
        """
        at = _at(block_hash)
        answers = await self._ask_all([("eth_getBalance", [address, at]) for address in addresses])
        return [self._number(self._sound(one)) for one in answers]

    async def nonces(self, addresses: Sequence[str], block_hash: str) -> list[int]:
        """Give how many transactions addresses have sent by a block. Raises RailTrouble as `balances` does."""
        at = _at(block_hash)
        answers = await self._ask_all([("eth_getTransactionCount", [address, at]) for address in addresses])
        return [self._number(self._sound(one)) for one in answers]

    async def balances_at(self, asked: Sequence[tuple[str, str]]) -> list[int | None]:
        """Give what addresses hold, each at the block whose hash stands beside it.

        None where the node has the block, but has dropped what was held then. Raises RailTrouble as `balances` does.
        """
        return await self._states("eth_getBalance", asked)

    async def nonces_at(self, asked: Sequence[tuple[str, str]]) -> list[int | None]:
        """Give how many transactions addresses have sent, each by the block beside it; None as `balances_at`."""
        return await self._states("eth_getTransactionCount", asked)

    async def spent_in(self, block_hash: str) -> list[Spend]:
        """Give the transactions of a block that give some of the chain's own coin to somebody, also reverted ones."""
        (answer,) = await self._ask_all([("eth_getBlockByHash", [block_hash, True])])
        told = self._sound(answer)
        if told is None:
            raise self._trouble(f"the node has not got block {block_hash}")
        spends = [self._fields(one) for one in self._list(self._fields(told).get("transactions"))]
        return [
            Spend(self._hash(one.get("hash")), "0x" + self._bytes(one.get("to"), 20).hex(), wei)
            for one in spends
            if one.get("to") is not None and (wei := self._number(one.get("value")))
        ]

    async def decimals(self, contract: str) -> int:
        """Ask a token's contract for its decimals. Raises WrongChain where there is no such contract."""
        call = {"to": contract, "data": _DECIMALS}
        (answer,) = await self._ask_all([("eth_call", [call, "latest"])])
        if answer == "0x" or (isinstance(answer, RpcError) and (answer.code == 3 or "revert" in answer.words.lower())):
            raise WrongChain(f"{self._name}: there is no token contract at {contract}: correct `contract`")
        return int.from_bytes(self._word(self._sound(answer)), "big")

    async def token_balances(self, contract: str, holders: Sequence[str], block_hash: str) -> list[int]:
        """Give what addresses hold of a token at a block, in its smallest unit. Raises RailTrouble as `balances`."""
        at = _at(block_hash)
        calls = [
            ("eth_call", [{"to": contract, "data": _BALANCE_OF + holder.removeprefix("0x").lower().rjust(64, "0")}, at])
            for holder in holders
        ]
        return [int.from_bytes(self._word(self._sound(one)), "big") for one in await self._ask_all(calls)]

    # Asking

    async def _states(self, method: str, asked: Sequence[tuple[str, str]]) -> list[int | None]:
        answers = await self._ask_all([(method, [address, _at(block_hash)]) for address, block_hash in asked])
        return [
            None if isinstance(one, RpcError) and _is_dropped(one) else self._number(self._sound(one))
            for one in answers
        ]

    async def _ask_all(self, calls: Sequence[Call], *, check: bool = True) -> list[Any]:
        try:
            if check and not self._is_sure:
                await self.check_chain()
            answers: list[Any] = []
            while len(answers) < len(calls):
                answers += await self._ask_some(calls[len(answers) : len(answers) + self._batch])
        except RailTrouble:
            self._is_sure = False
            raise
        return answers

    async def _ask_some(self, calls: Sequence[Call]) -> list[Any]:
        """Ask the first of these calls: all of them, unless the node refuses so many in one request."""
        try:
            return await self._rpc.ask_all(calls)
        except RpcError as refused:  # the batch as a whole: a no to one call stands in the place of its answer
            if len(calls) == 1 or _is_too_fast(refused):
                raise
            self._batch = len(calls) // 2
            return await self._ask_some(calls[: self._batch])

    def _see_chain(self, told: Any) -> None:
        chain_id = self._number(told)
        if chain_id != self._chain_id:
            self._is_sure = False
            raise WrongChain(
                f"{self._name}: the node is on chain {chain_id}, the configuration says {self._chain_id}: "
                "correct `rpc` or `chain_id`"
            )
        self._is_sure = True

    def _sound(self, answer: Any) -> Any:
        if isinstance(answer, RpcError):
            self._is_sure = False
            raise answer
        return answer

    def _trouble(self, words: str) -> RailTrouble:
        self._is_sure = False
        return RailTrouble(f"{self._name}: {words}")

    # Reading what was answered

    def _number(self, told: Any) -> int:
        """Read a quantity: 0x and hex digits, of any length."""
        if not isinstance(told, str) or not told.startswith("0x") or not 3 <= len(told) <= 66:
            raise self._trouble(f"the node gave {str(told)[:80]!r} where a number belongs")
        return int(self._digits(told), 16)

    def _bytes(self, told: Any, size: int | None = None) -> bytes:
        """Read bytes: 0x and an even number of hex digits."""
        if not isinstance(told, str) or not told.startswith("0x") or len(told) % 2:
            raise self._trouble(f"the node gave {str(told)[:80]!r} where bytes belong")
        read = bytes.fromhex(self._digits(told))
        if size is not None and len(read) != size:
            raise self._trouble(f"the node gave {len(read)} bytes where {size} belong")
        return read

    def _word(self, told: Any) -> bytes:
        return self._bytes(told, 32)

    def _digits(self, told: str) -> str:
        digits = told[2:]
        if any(one not in "0123456789abcdefABCDEF" for one in digits):
            raise self._trouble(f"the node gave {told[:80]!r} where hex digits belong")
        return digits

    def _hash(self, told: Any) -> str:
        return "0x" + self._word(told).hex()

    def _block(self, told: Any) -> Block | None:
        if told is None:
            return None
        fields = self._fields(told)
        at_s = self._number(fields.get("timestamp"))
        return Block(
            height=self._number(fields.get("number")),
            hash=self._hash(fields.get("hash")),
            parent=self._hash(fields.get("parentHash")),
            at_us=at_s * US_PER_S,
        )

    def _logs(self, told: Any) -> list[Log]:
        return [self._log(self._fields(one)) for one in self._list(told)]

    def _log(self, fields: dict[str, Any]) -> Log:
        if fields.get("removed"):
            raise self._trouble("the node gave a log that it has taken back: trying again")
        return Log(
            contract="0x" + self._bytes(fields.get("address"), 20).hex(),
            topics=tuple(self._hash(one) for one in self._list(fields.get("topics"))),
            data=self._bytes(fields.get("data")),
            block=self._hash(fields.get("blockHash")),
            height=self._number(fields.get("blockNumber")),
            tx=self._hash(fields.get("transactionHash")),
            index=self._number(fields.get("logIndex")),
        )

    def _receipt(self, tx: str, told: Any) -> Receipt | None:
        if told is None:
            return None
        fields = self._fields(told)
        if self._hash(fields.get("transactionHash")) != tx:
            raise self._trouble(f"asked for the receipt of {tx}, the node gave that of another")
        return Receipt(
            tx=tx,
            block=self._hash(fields.get("blockHash")),
            height=self._number(fields.get("blockNumber")),
            succeeded=self._number(fields.get("status")) == 1,
            logs=tuple(self._logs(fields.get("logs"))),
        )

    def _list(self, told: Any) -> list[Any]:
        if not isinstance(told, list):
            raise self._trouble(f"the node gave {str(told)[:80]!r} where a list belongs")
        return told

    def _fields(self, told: Any) -> dict[str, Any]:
        if not isinstance(told, dict):
            raise self._trouble(f"the node gave {str(told)[:80]!r} where fields belong")
        return told


def as_topic(address: str) -> str:
    """Write an address as it stands in a log's topics."""
    return "0x" + address.removeprefix("0x").lower().rjust(64, "0")


def _transfers(contracts: Sequence[str], recipients: Iterable[str]) -> dict[str, Any]:
    topics = [as_topic(one) for one in recipients]
    return {"address": list(contracts), "topics": [TRANSFER, None, topics] if topics else [TRANSFER]}


def _at(block_hash: str) -> dict[str, Any]:
    return {"blockHash": block_hash, "requireCanonical": True}


def _is_unknown(error: RpcError) -> bool:
    """Whether a node says that it knows no such block tag, or has none yet, and not that it has trouble just now."""
    words = ("not supported", "unsupported", "not found", "unknown block", "invalid")
    return error.code in {-32601, -32602} or any(one in error.words.lower() for one in words)


def _is_dropped(error: RpcError) -> bool:
    """Whether a node has the block, but only the newest states: each says so in its own way."""
    words = error.words.lower()
    return any(one in words for one in _DROPPED)


def _is_too_fast(error: RpcError) -> bool:
    """Whether a node has been asked too often, which passes by itself."""
    return error.code in {429, -32005, -32029} or "rate" in error.words.lower()


def _is_too_much(error: RpcError) -> bool:
    """Whether a node finds a range too large: each says so in its own way."""
    words = error.words.lower()
    return error.code in {-32005, -32602} or any(one in words for one in _TOO_MUCH)


def _parts(whole: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [whole[begin : begin + size] for begin in range(0, len(whole), size)]
