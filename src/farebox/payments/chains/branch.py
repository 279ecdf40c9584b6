"""A branch of an EVM chain, and what was held in it when: numbers that only rise, found by halving.

Whatever it says of a block is of the branch that ends with its tip, or it says nothing.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from farebox.errors import RailTrouble
from farebox.payments.chains.evm import Block, EvmNode

Ask = Callable[[Sequence[tuple[str, str]]], Awaitable[list[int | None]]]
"""Gives a number for each address at the block whose hash stands beside it; None where the node has dropped that."""


class Branch:
    """The branch that ends with `tip`. `hashes` are those known by height; others are asked of the node."""

    def __init__(self, node: EvmNode, tip: Block, hashes: Mapping[int, str], final: int, low: int) -> None:
        self._node = node
        self._hashes = {**hashes, tip.height: tip.hash}
        self.tip = tip
        self.final = final
        """Up to here nothing is taken back any more."""
        self.low = low
        """The deepest block of which it matters whether something had come already."""
        self._asked = False

    async def hashes(self, heights: Sequence[int]) -> dict[int, str]:
        """Give hashes by height. Raises RailTrouble where the node has no such block."""
        unknown = sorted({height for height in heights if height not in self._hashes})
        if unknown:
            self._asked = True
            for height, block in zip(unknown, await self._node.blocks(unknown), strict=True):
                if block is None:
                    raise RailTrouble(f"the node has not got block {height}, below block {self.tip.height}")
                self._hashes[height] = block.hash
        return {height: self._hashes[height] for height in heights}

    async def check(self) -> None:
        """See that what was asked by height was of this branch. Raises RailTrouble."""
        if self._asked:
            (now,) = await self._node.blocks([self.tip.height])
            if now is None or now.hash != self.tip.hash:
                raise RailTrouble(
                    f"the chain moved at block {self.tip.height} while it was read: the next look will do"
                )

    async def first(self, asked: Sequence[tuple[str, int, int]], ask: Ask) -> list[int]:
        """Find, for each address, the first block by which a number is reached that is reached by the block given.

        By halving, all at once. Blocks whose state the node has dropped count as before it: that it is known to be so
        deep is then said of fewer blocks than it might be, never of more.
        """
        lows = [min(self.low, top) for _, _, top in asked]
        highs = [top for _, _, top in asked]
        while wanting := [index for index in range(len(asked)) if lows[index] < highs[index]]:
            places = [(asked[index][0], (lows[index] + highs[index]) // 2) for index in wanting]
            for index, (_, middle), number in zip(wanting, places, await self.at(places, ask), strict=True):
                if number is not None and number >= asked[index][1]:
                    highs[index] = middle
                else:
                    lows[index] = middle + 1
        return highs

    async def at(self, places: Sequence[tuple[str, int]], ask: Ask) -> list[int | None]:
        """Ask for numbers of addresses, each at the height beside it."""
        if not places:
            return []
        hashes = await self.hashes([height for _, height in places])
        return await ask([(address, hashes[height]) for address, height in places])
