"""Following the canonical branch of an EVM chain: which blocks are still in it, which are to be read next.

What has been read is kept as hashes of the newest blocks. Each look finds the newest of them that the node still has in
its branch; what lies above was undone, and is read anew. Nothing is written down before the caller says that all that
the blocks hold was told (`done`), so that whatever stops a look, the next one reads the same again.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from farebox.clock import DAY_US
from farebox.errors import RailTrouble, WrongChain
from farebox.payments.chains.evm import Block, EvmNode
from farebox.payments.incidents import opened
from farebox.store.protocol import Statement, Store

KEPT: Final = 256
"""Heights below the newest one whose hashes are kept. What is undone deeper is an incident, and read anew."""
FAR: Final = 200
"""A distance to the tip above which blocks are read by ranges, many at once ..."""
DEEP: Final = 128
"""... but only those so deep below the tip that a range means the same to each node that could answer."""
_RANGE: Final = 1000
_SLICE: Final = 100
_BACK: Final = 64
"""So far below the place where it begins are blocks read, so that the first ones cannot be undone unseen."""
_BEFORE_US: Final = 7 * DAY_US
"""Of a chain that is new to the books, so much is read at most: addresses may be older than its settings."""


class Moved(RailTrouble):
    """The node went over to another branch while it was read: looking again is all it takes."""


class Step(Struct, frozen=True, kw_only=True):
    """What is to be read next, and what is known of the branch then."""

    base: int
    """Up to here the branch is the one that was read before."""
    top: Block
    """The newest block, once this has been read."""
    blocks: tuple[Block, ...] = ()
    """To be read one by one."""
    first: int | None = None
    """Where a range begins that is to be read up to `top`; None where there is none."""
    hashes: Mapping[int, str]
    """Hashes of the branch up to `top`, at those heights that are kept."""
    is_last: bool
    """Nothing is left to be read after it."""
    before: str
    """The cursor that it goes on from."""
    lost: str = ""
    """Why more was undone than is kept: words for an incident."""

    def holds(self, height: int, block: str) -> bool:
        """Whether a block that was read, now or at an earlier time, is in the branch."""
        known = self.hashes.get(height)
        return height <= self.base if known is None else known == block


class Heads:
    """Where one rail is on its chain. `rail` is its name in the books; `watcher.cursor` and chain_block are its own.

    Two processes may follow the same chain: the one that comes second writes nothing down.
    """

    def __init__(self, store: Store, node: EvmNode, rail: str) -> None:
        self._store = store
        self._node = node
        self._rail = rail

    async def next(self, tip: Block, now_us: int) -> Step:
        """Say what is to be read next on the way to `tip`.

        Raises RailTrouble while the node is behind what was read; Moved when its branch changes under one's eyes;
        WrongChain for one that the books know by another name.
        """
        cursor, kept = await self._read()
        if not kept:
            await self._see_that_it_is_new()
            anchor = await self._beginning(tip, now_us)
            return await self._onward(anchor.height, {anchor.height: anchor.hash}, tip, cursor)
        top = max(kept)
        if tip.height < top and tip.height not in kept:
            raise RailTrouble(f"{self._rail}: the node knows blocks up to {tip.height}, and {top} were read before")
        fork = await self._fork(kept, tip)
        if fork is None:
            return await self._start_over(kept, tip, cursor)
        if fork == tip.height < top:  # a node that is a little behind: what was read above stays
            newest = Block(top, kept[top], "", tip.at_us)
            return Step(base=top, top=newest, hashes=kept, is_last=True, before=cursor)
        return await self._onward(fork, {height: one for height, one in kept.items() if height <= fork}, tip, cursor)

    async def height(self) -> int | None:
        """Give the height of the newest block that was read; None before there is one."""
        return max((await self._read())[1], default=None)

    async def done(self, step: Step, now_us: int) -> None:
        """Write down that a step was read and told. Does nothing if another process has moved on meanwhile."""
        after = f"{step.top.height}:{step.top.hash}"
        move = (
            "INSERT INTO watcher (name, cursor) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET "
            "cursor = excluded.cursor WHERE watcher.cursor = ?"
        )
        ours, mine = "(SELECT cursor FROM watcher WHERE name = ?) = ?", (self._rail, after)
        drop = f"DELETE FROM chain_block WHERE rail = ? AND (height > ? OR height <= ?) AND {ours}"  # noqa: S608  fixed
        keep = (
            f"INSERT INTO chain_block (id, rail, height, hash) SELECT ?, ?, ?, ? WHERE {ours} "
            "ON CONFLICT (id) DO UPDATE SET hash = excluded.hash"
        )
        oldest = step.top.height - KEPT
        statements: list[Statement] = [
            (move, (self._rail, after, step.before)),
            (drop, (self._rail, step.base, oldest, *mine)),
        ]
        for height, block in step.hashes.items():
            if height >= step.base and height > oldest:
                statements.append((keep, (f"{self._rail}:{height}", self._rail, height, block, *mine)))
        if step.lost:
            statements.append(opened("deep_reorg", f"{self._rail}:{step.base}", step.lost, now_us))
        await self._store.write(statements)

    async def _read(self) -> tuple[str, dict[int, str]]:
        """Read how far it has come. Were it moved on in between, `done` would see that the cursor is another."""
        rows = await self._store.fetch("SELECT cursor FROM watcher WHERE name = ?", (self._rail,))
        kept = await self._store.fetch("SELECT height, hash FROM chain_block WHERE rail = ?", (self._rail,))
        return str(rows[0][0]) if rows else "", {int(height): str(block) for height, block in kept}

    async def _fork(self, kept: Mapping[int, str], tip: Block) -> int | None:
        """Find the newest block that was read and is still in the node's branch; None where there is none."""
        heights = sorted((height for height in kept if height <= tip.height), reverse=True)
        begin = 0
        for size in (1, 8, 64, len(heights)):
            some, begin = heights[begin : begin + size], begin + size
            asked = [height for height in some if height != tip.height]
            found = {tip.height: tip} | dict(zip(asked, await self._blocks(asked), strict=True))
            for height in some:
                if found[height].hash == kept[height]:
                    return height
        return None

    async def _onward(self, base: int, hashes: Mapping[int, str], tip: Block, cursor: str) -> Step:
        """Go on above `base`, whose hash is in `hashes`."""
        if tip.height - base > FAR:
            (top,) = await self._blocks([min(base + _RANGE, tip.height - DEEP)])
            known = {**hashes, top.height: top.hash}
            return Step(base=base, top=top, first=base + 1, hashes=known, is_last=False, before=cursor)
        heights = list(range(base + 1, min(base + _SLICE, tip.height) + 1))
        blocks = await self._blocks([height for height in heights if height < tip.height])
        if heights and heights[-1] == tip.height:
            blocks.append(tip)
        parent = hashes[base]
        for block in blocks:
            if block.parent != parent:
                raise Moved(f"{self._rail}: the node changed its branch at block {block.height} while it was read")
            parent = block.hash
        top = blocks[-1] if blocks else tip
        return Step(
            base=base,
            top=top,
            blocks=tuple(blocks),
            hashes={**hashes, **{block.height: block.hash for block in blocks}},
            is_last=top.height == tip.height,
            before=cursor,
        )

    async def _see_that_it_is_new(self) -> None:
        """See that no other rail has read this chain: its payments would count once more. Raises WrongChain."""
        newest = "SELECT rail, max(height) FROM chain_block WHERE rail <> ? GROUP BY rail"
        for rail, top in await self._store.fetch(newest, (self._rail,)):
            heights = [int(top), max(0, int(top) - _BACK)]  # the newest may have been undone since
            where = "SELECT hash FROM chain_block WHERE rail = ? AND height IN (?, ?)"
            read = {str(block) for (block,) in await self._store.fetch(where, (rail, *heights))}
            found = await self._node.blocks(heights)
            if read & {block.hash for block in found if block is not None}:
                raise WrongChain(
                    f'{self._rail}: this chain is "{rail}" in the books: give it that name, or what came there would '
                    "be credited again"
                )

    async def _beginning(self, tip: Block, now_us: int) -> Block:
        """Find where a chain that is new to the books is read from: where the oldest address could be paid to."""
        rows = await self._store.fetch("SELECT min(created_at) FROM deposit_address WHERE family = 'evm'")
        since = tip.at_us if rows[0][0] is None else max(int(rows[0][0]), now_us - _BEFORE_US)
        low, high = 0, tip.height  # the first block that is not older lies in here
        while low < high and since < tip.at_us:
            (middle,) = await self._blocks([(low + high) // 2])
            low, high = (low, middle.height) if middle.at_us >= since else (middle.height + 1, high)
        (anchor,) = await self._blocks([max(0, high - _BACK)])
        return anchor

    async def _start_over(self, kept: Mapping[int, str], tip: Block, cursor: str) -> Step:
        """Go back below all that may have been undone."""
        rows = await self._store.fetch(
            "SELECT min(height) FROM payment WHERE rail = ? AND final = 0 AND block IS NOT NULL", (self._rail,)
        )
        places = [min(kept), tip.height] + ([] if rows[0][0] is None else [int(rows[0][0])])
        (anchor,) = await self._blocks([max(0, min(places) - KEPT)])
        step = await self._onward(anchor.height, {anchor.height: anchor.hash}, tip, cursor)
        lost = (
            f"none of the blocks {min(kept)} to {max(kept)} of {self._rail} that were read is in its chain any more: "
            f"read anew from block {anchor.height}. See that the node is sound, and compare chain and books"
        )
        return replace(step, lost=lost)

    async def _blocks(self, heights: list[int]) -> list[Block]:
        """Give blocks that the node must have. Raises RailTrouble where it has not."""
        blocks = await self._node.blocks(heights)
        found = [block for block in blocks if block is not None]
        if len(found) < len(heights):
            raise RailTrouble(f"{self._rail}: the node has not got all the blocks below its own newest one")
        return found
