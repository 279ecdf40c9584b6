"""Ether by balance over thousands of random blocks: two watchers, each with a node of its own that may lag or err."""

import random
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from farebox.clock import US_PER_S
from farebox.money import NANOS_PER_USD
from farebox.payments.chains.ether import EtherReader
from farebox.payments.rails import Sighting
from farebox.payments.records import Payment
from tests.chains.room import RATES, Room, open_room, settings_of
from tests.databases import Databases
from tests.payments.model_chain import FINALIZED, ModelChain, ModelNode

GWEI: Final = 10**9
NEEDED: Final = 3


class Run:
    """Random payments, reorgs, and looks of two watchers; after each step nothing may be credited that is not there."""

    def __init__(self, room: Room, seed: int, deepest: int, keeps: int, *, sweeps: bool) -> None:
        self.random = random.Random(seed)
        self.room = room
        self.deepest = deepest
        self.sweeps = sweeps
        self.now_us = room.now()
        self.chain = ModelChain(self.now_us)
        self.nodes = [ModelNode(self.chain, keeps), ModelNode(self.chain, keeps)]
        self.readers = [EtherReader(room.store, node, room.settings) for node in self.nodes]
        self.seen: Counter[str] = Counter()
        self.addresses: list[str] = []

    async def begin(self) -> None:
        now = self.now_us
        await self.room.store.write([("INSERT INTO watcher (name, looked_at) VALUES ('ethereum', ?)", (now,))])
        for account in (self.room.alice, self.room.bob):
            opened = await self.room.topups.open(account, "ethereum:ETH", 40 * NANOS_PER_USD, now)
            self.addresses.append((await self.room.told(opened)).topup.address)

    async def step(self) -> None:
        self.now_us += self.random.choices((12, 7200), (0.97, 0.03))[0] * US_PER_S
        if self.random.random() < 0.2 and len(self.chain.states) > 1:
            depth = min(self.random.randint(1, self.deepest), len(self.chain.states) - 1)
            again = [one for one in self.chain.undo(depth) if self.random.random() < 0.7]
            self.random.shuffle(again)
            self.seen["reorgs"] += 1
            for _ in range(depth):
                self.chain.mine([again.pop() for _ in range(self.random.randint(0, len(again)))])
            self.chain.mine(again)
        paid = [(self.random.choice(self.addresses), self._wei()) for _ in range(self.random.choice((0, 0, 1, 1, 2)))]
        sweep = self.random.choice(self.addresses) if self.sweeps and self.random.random() < 0.03 else ""
        self.seen["sweeps"] += bool(sweep)
        self.chain.mine([one for one in paid if one[0] != sweep], sweep)
        waiting: list[list[Sighting]] = []
        for node, reader in zip(self.nodes, self.readers, strict=True):
            if self.random.random() < 0.5:
                node.follow()
            if self.random.random() < 0.7:
                waiting.append(await self.look(node, reader))
            if self.random.random() < 0.5:  # else both have looked before either tells
                await self.tell(waiting)
        self.random.shuffle(waiting)
        await self.tell(waiting)

    async def look(self, node: ModelNode, reader: EtherReader) -> list[Sighting]:
        tip = node.branch[-1].block
        hashes = {state.block.height: state.block.hash for state in node.branch[-self.random.choice((1, 300)) :]}
        self.seen["looks"] += 1
        return await reader.look(tip, hashes, self.now_us)

    async def tell(self, waiting: list[list[Sighting]]) -> None:
        while waiting:
            await self.room.deposits.apply(waiting.pop(), self.now_us)

    async def settle(self) -> None:
        """Let all come to rest: blocks without a reorg, and time for what has been lost to be taken back."""
        for _ in range(6):
            for _ in range(40):
                self.chain.mine()
            self.now_us += 40 * 60 * US_PER_S
            for node, reader in zip(self.nodes, self.readers, strict=True):
                node.follow()
                await self.tell([await self.look(node, reader)])

    def _wei(self) -> int:
        return self.random.choice((1, self.random.randint(1, GWEI), self.random.randint(GWEI, 10**18)))

    async def credited(self, *states: str) -> dict[str, int]:
        sums = dict.fromkeys(self.addresses, 0)
        for payment in await self.room.payments():
            if payment.state in states:
                sums[payment.address] += int(payment.units)
        return sums

    async def check_no_more_than_there_is(self) -> None:
        """What is credited is in a block as deep as it had to be."""
        for address, wei in (await self.credited("crediting", "credited", "reversing")).items():
            came = self.chain.received(address, NEEDED)
            assert wei <= came, (address, wei, came)

    async def check_all(self) -> None:
        came = {address: self.chain.received(address) for address in self.addresses}
        assert await self.credited("credited") == came
        for account, address in zip((self.room.alice, self.room.bob), self.addresses, strict=True):
            mine = [one for one in await self.room.payments() if one.address == address and one.state == "credited"]
            assert await self.room.balance(account) == sum(one.worth_nanos or 0 for one in mine)
            assert all(worth(one) for one in mine)


def worth(payment: Payment) -> bool:
    return payment.worth_nanos == int(payment.units) * RATES["ETH"] // 10**18


@pytest.mark.parametrize("seed", [1, random.SystemRandom().getrandbits(32)], ids=["kept", "any"])
@pytest.mark.parametrize(
    ("deepest", "keeps", "sweeps"),
    [(NEEDED - 1, 10**9, False), (FINALIZED - 1, 10**9, False), (FINALIZED - 1, 6, False), (NEEDED - 1, 10**9, True)],
    ids=["shallow", "deep", "pruned", "swept"],
)
async def test_what_is_credited_is_what_the_chain_holds(
    databases: Databases, tmp_path: Path, seed: int, deepest: int, keeps: int, *, sweeps: bool
) -> None:
    settings = settings_of("http://127.0.0.1:9", needed=NEEDED)
    with databases.fresh("sqlite", tmp_path) as url:
        async with open_room(url, settings) as room:
            run = Run(room, seed, deepest, keeps, sweeps=sweeps)
            await run.begin()
            for _ in range(120):
                await run.step()
                if deepest < NEEDED:
                    await run.check_no_more_than_there_is()
            await run.settle()
            await run.check_all()
            incidents = Counter(await room.incidents())
            print(f"seed {seed}: {dict(run.seen)}, {len(await room.payments())} payments, {dict(incidents)}")
