"""A chain of numbers: balances by block, branches, and nodes that have seen only some of it. For runs of many steps."""

from collections.abc import Sequence

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble
from farebox.payments.chains.evm import Block, EvmNode, Receipt, Spend
from farebox.payments.chains.rpc import JsonRpc

FINALIZED = 8


class State:
    """What a block leaves: what addresses hold, how much they have sent, and what it took in."""

    def __init__(self, block: Block, held: dict[str, int], sent: dict[str, int], paid: list[tuple[str, int]]) -> None:
        self.block = block
        self.held = held
        self.sent = sent
        self.paid = paid


class ModelChain:
    """All branches there ever were; `states` is the one that counts."""

    def __init__(self, at_us: int) -> None:
        self.made = 0
        self.states = [State(Block(0, self._hash(), "", at_us), {}, {}, [])]
        self.all = {self.states[0].block.hash: self.states[0]}

    @property
    def tip(self) -> Block:
        return self.states[-1].block

    def mine(self, paid: Sequence[tuple[str, int]] = (), sweep: str = "") -> None:
        last = self.states[-1]
        held, sent = dict(last.held), dict(last.sent)
        if sweep:
            held[sweep], sent[sweep] = 0, sent.get(sweep, 0) + 1
        for address, wei in paid:
            held[address] = held.get(address, 0) + wei
        block = Block(last.block.height + 1, self._hash(), last.block.hash, last.block.at_us + 12 * US_PER_S)
        self.states.append(State(block, held, sent, list(paid)))
        self.all[block.hash] = self.states[-1]

    def received(self, address: str, deep: int = 1) -> int:
        """Give what had come to an address, so many blocks deep, before it sent something."""
        seen = self.states[: len(self.states) - min(deep, len(self.states)) + 1]
        return next(state.held.get(address, 0) for state in reversed(seen) if not state.sent.get(address))

    def undo(self, depth: int) -> list[tuple[str, int]]:
        """Undo blocks; answers what had been paid in them."""
        undone, self.states = self.states[-depth:], self.states[:-depth]
        return [one for state in undone for one in state.paid]

    def _hash(self) -> str:
        self.made += 1
        return f"0x{self.made:064x}"


class ModelNode(EvmNode):
    """A node that takes what the chain was when it last looked for the truth; `keeps` states of the newest blocks."""

    def __init__(self, chain: ModelChain, keeps: int = 10**9) -> None:
        super().__init__(JsonRpc("http://127.0.0.1:9"), 1, 12, "model")
        self._chain = chain
        self._keeps = keeps
        self.branch = list(chain.states)

    def follow(self) -> None:
        self.branch = list(self._chain.states)

    async def finalized(self) -> int | None:
        return max(0, self.branch[-1].block.height - FINALIZED)

    async def blocks(self, heights: Sequence[int]) -> list[Block | None]:
        return [self.branch[height].block if height < len(self.branch) else None for height in heights]

    async def balances(self, addresses: Sequence[str], block_hash: str) -> list[int]:
        return [self._state(block_hash).held.get(address, 0) for address in addresses]

    async def nonces(self, addresses: Sequence[str], block_hash: str) -> list[int]:
        return [self._state(block_hash).sent.get(address, 0) for address in addresses]

    async def balances_at(self, asked: Sequence[tuple[str, str]]) -> list[int | None]:
        return [None if self._dropped(one) else self._state(one).held.get(address, 0) for address, one in asked]

    async def nonces_at(self, asked: Sequence[tuple[str, str]]) -> list[int | None]:
        return [None if self._dropped(one) else self._state(one).sent.get(address, 0) for address, one in asked]

    async def spent_in(self, block_hash: str) -> list[Spend]:
        return [Spend(f"0x{wei:064x}", address.lower(), wei) for address, wei in self._state(block_hash).paid]

    async def receipts(self, txs: Sequence[str]) -> dict[str, Receipt | None]:
        return dict.fromkeys(txs)

    def _dropped(self, block_hash: str) -> bool:
        return self._state(block_hash).block.height <= self.branch[-1].block.height - self._keeps

    def _state(self, block_hash: str) -> State:
        state = self._chain.all[block_hash]
        if state.block.height >= len(self.branch) or self.branch[state.block.height] is not state:
            raise RailTrouble(f"hash {block_hash} is not currently canonical")
        return state
