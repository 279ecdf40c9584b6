"""A random life of an EVM chain: whatever is paid, undone, mined again or cut short, credited is what the chain holds.

Two watchers look, one after the other or at once, and crash between any two steps. In the end what is credited for
each address must be what it holds, to the smallest unit.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from farebox.billing.ledger import Transfer
from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger
from farebox.clock import US_PER_S
from farebox.errors import RailTrouble, StoreUnavailable
from farebox.money import NANOS_PER_USD
from farebox.payments.chains.evm import as_topic
from farebox.payments.chains.evm_watcher import EvmWatcher
from farebox.payments.chains.rpc import Call, JsonRpc, RpcError
from farebox.payments.chains.tokens import GONE_AFTER
from farebox.payments.deposits import Deposits
from farebox.payments.rails import Sighting
from farebox.payments.records import Payment
from farebox.store.protocol import Row, Statement, Store
from tests.chains.evm import ETHER, Contract, EvmChain
from tests.chains.nodes import Anvil, running
from tests.chains.room import Room, open_room, settings_of

NEEDED: Final = 3
SLOTS: Final = 6
"""Blocks are final once 12 are on top of them: no branch is undone so deep."""
DEEPEST: Final = 10
CRASHES: Final = (0.04, 0.01, 0.003)
"""How likely each step of a watcher is its last one, in one life or another: a look takes about twenty."""
_PEOPLE: Final = 80
_REMEMBERED: Final = 11
_LAST_LOOKS: Final = 2 + GONE_AFTER // (2 * SLOTS + 3)
"""A token's transfer may be missed by the first of them only; it is given up GONE_AFTER blocks later."""
_T = TypeVar("_T")


class Crash(Exception):
    """The process ends here."""


class Dice:
    """Ends a process between any two steps, as often before a step as after it."""

    def __init__(self, chance: float, seed: int) -> None:
        self.chance = chance
        self._random = random.Random(seed)
        self.crashes = 0

    def roll(self) -> None:
        """Raises Crash."""
        if self._random.random() < self.chance / 2:
            self.crashes += 1
            raise Crash

    async def around(self, work: Awaitable[_T]) -> _T:
        task = asyncio.ensure_future(work)
        try:
            self.roll()
        except Crash:
            task.cancel()
            raise
        done = await task
        self.roll()
        return done


class FragileStore:
    """A store under a process that may end."""

    def __init__(self, store: Store, dice: Dice) -> None:
        self._store = store
        self._dice = dice

    async def fetch(self, sql: str, params: tuple[Any, ...] = ()) -> list[Row]:
        return await self._dice.around(self._store.fetch(sql, params))

    async def write(self, statements: Sequence[Statement]) -> list[int]:
        return await self._dice.around(self._store.write(statements))


class FragileLedger:
    def __init__(self, ledger: Ledger, dice: Dice) -> None:
        self._ledger = ledger
        self._dice = dice

    async def post(self, entry: Transfer) -> Any:
        return await self._dice.around(self._ledger.post(entry))


class FragileDeposits(Deposits):
    dice: Dice

    async def apply(self, sightings: Sequence[Sighting], now_us: int) -> None:
        await self.dice.around(super().apply(sightings, now_us))


class FragileRpc(JsonRpc):
    dice: Dice

    async def ask_all(self, calls: Sequence[Call]) -> list[Any]:
        return await self.dice.around(super().ask_all(calls))


def make_watcher(room: Room, dice: Dice) -> EvmWatcher:
    """Make a watcher as a process has it that has just started: it remembers nothing."""
    store = cast("Store", FragileStore(room.store, dice))
    ledger = cast("Ledger", FragileLedger(room.ledger, dice))
    plans = Plans([Plan("pro", 60, 1_000_000, 5, 0)])
    deposits = FragileDeposits(
        store, ledger, plans, {room.rail.name: room.rail}, site="Farebox", public_url="https://f.example"
    )
    deposits.dice = dice
    rpc = FragileRpc(room.settings.rpc.reveal())
    rpc.dice = dice
    watcher = EvmWatcher(store, deposits, room.settings, room.addresses)
    watcher.node._rpc = rpc
    return watcher


class Fork:
    """A place to come back to, and what was mined on top of it, as it was signed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mined: list[str] = []


class Life:
    """One random life. `seed` says all of it, but for how two looks at once take turns."""

    def __init__(self, room: Room, chain: EvmChain, seed: int) -> None:
        self.random = random.Random(seed)
        self.dice = Dice(self.random.choice(CRASHES), seed)
        self.room = room
        self.chain = chain
        self.clock_s = room.now() // US_PER_S
        self.watchers = [make_watcher(room, self.dice), make_watcher(room, self.dice)]
        self.forks: deque[Fork] = deque(maxlen=_REMEMBERED)
        self.seen: Counter[str] = Counter()
        self.accounts = [room.alice, room.bob]
        self.ether: list[str] = []
        self.tokens: list[str] = []
        self.lost: list[str] = []
        """What was undone and not mined again, as it was signed."""
        self._payer = 0

    @property
    def now_us(self) -> int:
        return self.clock_s * US_PER_S

    async def begin(self, token: Contract) -> None:
        chain = self.chain
        self.token = token
        self.splitter, self.batch, self.fake = [await chain.deploy(one) for one in ("Splitter", "Batch", "Fake")]
        self.clock_s += 30  # deploying has made blocks a second apart
        people = chain.people[1:]
        await token.send("transfer", self.batch.address, 10**12)
        for begin in range(0, len(people), 20):
            some = people[begin : begin + 20]
            await self.batch.send("transfer", token.address, some, [10**9] * len(some))
        if self.random.random() < 0.5:
            await token.send("setParams", 10, 10**6)
        await self._mine()
        self.forks.clear()  # what was prepared is never undone
        for watcher in self.watchers:
            await self._certainly(watcher)
        await self.room.store.write([("UPDATE watcher SET looked_at = ?", (self.now_us + 10**15,))])
        for account in self.accounts:
            for asset in ("ETH", "USDT"):
                await self._open(account, asset)

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await self.step()

    async def step(self) -> None:
        """Pay a little, mine or undo something, and let watchers look."""
        for _ in range(self.random.choice((0, 1, 1, 2, 3))):
            await self._pay()
        if self.random.random() < 0.08:
            await self._open(self.random.choice(self.accounts), self.random.choice(("ETH", "USDT")))
        if self.random.random() < 0.1 and self.seen["deep reorgs"]:
            self.clock_s += 3700  # what was lost is taken back
            await self._mine()
            await self._look(self.random.randrange(len(self.watchers)))
        if self.lost and self.random.random() < 0.2:
            await self._send_again(self.lost.pop(self.random.randrange(len(self.lost))))
        if self.random.random() < 0.2 and self.forks:
            await self._undo(
                self.random.randint(1, 2) if self.random.random() < 0.7 else self.random.randint(3, DEEPEST)
            )
        else:
            await self._mine()
        for _ in range(self.random.choice((1, 1, 2))):
            if self.random.random() < 0.3:
                await asyncio.gather(*(self._look(index) for index in range(len(self.watchers))))
            else:
                await self._look(self.random.randrange(len(self.watchers)))

    async def end(self) -> None:
        """Let all come to rest: blocks on top of everything, and time for what is lost to be taken back."""
        self.dice.chance = 0
        for _ in range(_LAST_LOOKS):
            for _ in range(2 * SLOTS + 2):
                await self._mine()
            self.clock_s += 3700
            await self._mine()
            for watcher in self.watchers:
                await self._certainly(watcher)

    async def check(self) -> None:
        """See that credited is what the chain holds, and that balances are what that is worth."""
        payments = await self.room.payments()
        for payment in payments:
            assert payment.state in {"credited", "gone"}, payment
        credited = Counter[tuple[str, str]]()
        worth = Counter[int]()
        for payment in payments:
            if payment.state == "credited":
                credited[payment.address, payment.asset] += int(payment.units)
                worth[payment.account_id or 0] += payment.worth_nanos or 0
        for address in self.ether + self.tokens:
            held = await self.token.ask("balanceOf", address)
            assert credited[address, "USDT"] == held, f"USDT of {address}: {credited[address, 'USDT']}, not {held}"
            held = await self.chain.balance(address) if address in self.ether else 0
            assert credited[address, "ETH"] == held, f"ETH of {address}: {credited[address, 'ETH']}, not {held}"
        for account in self.accounts:
            assert await self.room.balance(account) == worth[account], account
        await self._check_names(payments)
        self.seen["payments"] = len(payments)
        self.seen["credited again"] = sum(one.epoch > 1 for one in payments if one.state == "credited")
        self.seen["reversals"] = (await self.room.incidents()).count("reversed")
        self.seen["crashes"] = self.dice.crashes
        assert set(await self.room.incidents()) <= {"reversed"}, await self.room.incidents()

    async def _check_names(self, payments: Sequence[Payment]) -> None:
        """See that a transfer that was mined several times is one payment, under one name."""
        ours = {as_topic(address) for address in self.ether + self.tokens}
        for tx, names in Counter(one.tx for one in payments if one.asset == "USDT").items():
            receipt = await self.chain.rpc.ask("eth_getTransactionReceipt", tx)
            if receipt is not None:
                logs = [one for one in receipt["logs"] if one["address"] == self.token.address]
                assert names == sum(one["topics"][2] in ours and int(one["data"], 16) > 0 for one in logs), tx

    async def close(self) -> None:
        for watcher in self.watchers:
            await watcher.close()

    # Watchers

    async def _look(self, index: int) -> None:
        self.seen["looks"] += 1
        try:
            await self.watchers[index].look(self.now_us)
        except Crash:
            await self.watchers[index].close()
            self.watchers[index] = make_watcher(self.room, self.dice)
        except RailTrouble:  # a branch that is shorter than the one read before, or changes meanwhile
            self.seen["troubles"] += 1
        except StoreUnavailable:  # PostgreSQL has ended one of two writes that waited for each other
            self.seen["deadlocks"] += 1

    async def _certainly(self, watcher: EvmWatcher) -> None:
        chance, self.dice.chance = self.dice.chance, 0
        await watcher.look(self.now_us)
        self.dice.chance = chance

    # Customers

    async def _open(self, account: int, asset: str) -> None:
        """Ask for an address: a new one if the last one was paid to."""
        opened = await self.room.topups.open(account, f"ethereum:{asset}", 50 * NANOS_PER_USD, self.now_us)
        address = (await self.room.told(opened)).topup.address
        known = self.ether if asset == "ETH" else self.tokens
        if address not in known:
            known.append(address)
        await self.room.store.write(
            [("UPDATE topup SET state = 'expired' WHERE id = ? AND state = 'waiting'", (opened,))]
        )

    async def _pay(self) -> None:
        self._payer = self._payer % (_PEOPLE - 1) + 1
        how: dict[str, Any] = {"sender": self.chain.people[self._payer], "gwei": self.random.randint(3, 30)}
        ways: list[Callable[[dict[str, Any]], Awaitable[object]]] = [
            self._send_ether,
            self._send_ether_by_contract,
            self._leave_ether,
            self._send_token,
            self._send_token,
            self._send_many_tokens,
            self._forge,
            self._revert,
        ]
        way = self.random.choice(ways)
        self.seen[way.__name__.strip("_")] += 1
        await way(how)

    async def _send_ether(self, how: dict[str, Any]) -> None:
        """Pay ether; to a token's address it is gas."""
        await self.chain.send(self._anyone(), self._wei(), **how)

    async def _send_ether_by_contract(self, how: dict[str, Any]) -> None:
        to = self.random.sample(self.ether + self.tokens, 3)
        await self.splitter.send("pay", to, wei=3 * self._wei(), **how)

    async def _leave_ether(self, how: dict[str, Any]) -> None:
        await self.splitter.send("destroy", self._anyone(), wei=self._wei(), **how)

    async def _send_token(self, how: dict[str, Any]) -> None:
        await self.token.send("transfer", self._anyone(), self.random.randint(0, 2 * 10**6), **how)

    async def _send_many_tokens(self, how: dict[str, Any]) -> None:
        to = [self._anyone(), self._anyone(), self._anyone()]
        await self.batch.send("transfer", self.token.address, to, [self.random.randint(1, 10**6) for _ in to], **how)

    async def _forge(self, how: dict[str, Any]) -> None:
        if self.random.random() < 0.5:
            await self.fake.send("forge", self.chain.people[0], self._anyone(), 10**6, **how)
        else:
            await self.fake.send("noise", self.random.randint(1, 4), **how)

    async def _revert(self, how: dict[str, Any]) -> None:
        if self.random.random() < 0.5:
            await self.splitter.send("payAndRevert", [self._anyone()], wei=self._wei(), **how)
        else:
            await self.batch.send("transferAndRevert", self.token.address, [self._anyone()], [10**6], **how)

    async def _send_again(self, tx: str) -> None:
        try:
            await self.chain.rpc.ask("eth_sendRawTransaction", tx)
            self.seen["returns"] += 1
        except RpcError:
            self.seen["replaced"] += 1  # its sender has paid something else instead

    def _anyone(self) -> str:
        return self.random.choice(self.ether + self.tokens)

    def _wei(self) -> int:
        return self.random.choice((1, self.random.randint(1, ETHER // 100), self.random.randint(1, ETHER // 2)))

    # Blocks

    async def _mine(self) -> None:
        fork = Fork(await self.chain.fork())
        self.clock_s += self.random.choice((1, 2, 12))
        await self.chain.rpc.ask("evm_setNextBlockTimestamp", self.clock_s)
        await self.chain.mine()
        block = await self.chain.rpc.ask("eth_getBlockByNumber", "latest", False)  # noqa: FBT003  JSON
        self.seen["mined"] += len(block["transactions"])
        fork.mined = [await self.chain.raw(tx) for tx in block["transactions"]]
        self.forks.append(fork)

    async def _undo(self, depth: int) -> None:
        """Undo blocks, and mine most of what was in them again, in any order, in a branch that is longer."""
        depth = min(depth, len(self.forks))
        undone = [self.forks.pop() for _ in range(depth)]
        self.seen["reorgs"] += 1
        self.seen["deep reorgs"] += depth >= NEEDED
        await self.chain.undo(undone[-1].name)
        pulled = [tx for fork in undone for tx in fork.mined]
        again = [tx for tx in pulled if self.random.random() < 0.7]
        self.lost += [tx for tx in pulled if tx not in again]
        self.random.shuffle(again)
        for left in range(depth, -1, -1):
            count = self.random.randint(0, len(again)) if left else len(again)
            for tx in again[:count]:
                await self.chain.rpc.ask("eth_sendRawTransaction", tx)
            del again[:count]
            await self._mine()
            if self.random.random() < 0.2:
                await self._look(self.random.randrange(len(self.watchers)))


async def live(database_url: str, directory: Path, seed: int, steps: int) -> Counter[str]:
    """Live through one random life. Raises AssertionError where credited is not what the chain holds."""
    node = Anvil(directory / "anvil", ["--accounts", str(_PEOPLE)], slots=SLOTS)
    with ExitStack() as stack:
        stack.enter_context(running(node))
        chain = await EvmChain(node.url).open()
        token = await chain.token()
        async with open_room(database_url, settings_of(node.url, token.address, needed=NEEDED)) as room:
            life = Life(room, chain, seed)
            try:
                await life.begin(token)
                await life.run(steps)
                await life.end()
                await life.check()
            finally:
                await life.close()
                await chain.close()
    return life.seen
