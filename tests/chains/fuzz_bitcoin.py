"""A random life of Bitcoin: whatever is paid, replaced, dropped, undone or cut short, credited is what the chain holds.

Two watchers look, one after the other, at once, and while blocks come and go; they crash between any two steps, and the
node starts again now and then. In the end what is credited for each address must be what lies there, to the satoshi.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from embit.transaction import Transaction, TransactionOutput

from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger
from farebox.clock import US_PER_S
from farebox.errors import RailTrouble
from farebox.money import NANOS_PER_USD
from farebox.payments.chains.bitcoin import BitcoinWatcher
from farebox.store.protocol import Store
from tests.chains.bitcoin_room import AHEAD, SATOSHI, Keys, Room, open_room
from tests.chains.fuzz_evm import (
    CRASHES,
    Crash,
    Dice,
    FragileDeposits,
    FragileLedger,
    FragileRpc,
    FragileStore,
)
from tests.chains.nodes import Bitcoind, NodeError, coins, running

DEEPEST: Final = 9
_MOST_CONFIRMATIONS: Final = 4
_REMEMBERED: Final = 12
_DROPPING: Final = ("-persistmempool=0", "-walletbroadcast=0")
"""What makes a node that starts again forget what waited."""


def make_watcher(room: Room, dice: Dice) -> BitcoinWatcher:
    """Make a watcher as a process has it that has just started: it remembers nothing."""
    store = cast("Store", FragileStore(room.store, dice))
    ledger = cast("Ledger", FragileLedger(room.ledger, dice))
    plans = Plans([Plan("pro", 60, 1_000_000, 5, 0)])
    deposits = FragileDeposits(store, ledger, plans, {"bitcoin": room.rail}, site="F", public_url="https://f.example")
    deposits.dice = dice
    settings = room.settings
    watcher = BitcoinWatcher(store, deposits, settings, room.key, room.addresses, ahead=AHEAD)
    wallet = f"{settings.rpc}/wallet/{settings.wallet}"
    roads = {"rpc": settings.rpc, "slow": settings.rpc, "wallet": wallet, "_slow_wallet": wallet}
    for road, url in roads.items():
        rpc = FragileRpc(url, settings.rpc_user, settings.rpc_password.reveal())
        rpc.dice = dice
        setattr(watcher.node, road, rpc)
    return watcher


class Life:
    """One random life. `seed` says all of it, but for how what happens at once takes turns."""

    def __init__(self, room: Room, seed: int) -> None:
        self.random = random.Random(seed)
        self.dice = Dice(self.random.choice(CRASHES), seed)
        self.room = room
        self.node = room.node
        self.watchers = [make_watcher(room, self.dice), make_watcher(room, self.dice)]
        self.seen: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.sent: list[str] = []
        """The newest payments, as they were signed."""

    async def begin(self) -> None:
        chance, self.dice.chance = self.dice.chance, 0
        for watcher in self.watchers:
            await watcher.look(self.room.now())
        self.dice.chance = chance
        # The rail offers nothing unless it is watched; here nobody but the dice says when that is.
        await self.room.store.write([("UPDATE watcher SET looked_at = ?", (self.room.now() + 10**15,))])
        for account in (self.room.alice, self.room.bob):
            await self._open(account)

    async def step(self) -> None:
        """Pay a little, let something happen to the chain, and let watchers look, sometimes meanwhile."""
        roll = self.random.random
        for _ in range(self.random.choice((0, 1, 1, 2, 3))):
            self._try(self.random.choice(self._ways()))
        if roll() < 0.08:
            await self._open(self.random.choice((self.room.alice, self.room.bob)))
        if roll() < 0.1 and self.seen["deep reorgs"]:
            self.room.ahead_us += 3700 * US_PER_S  # what was lost is taken back
        if roll() < 0.02:
            self._restart()
        chain = self._undo if roll() < 0.2 else self._mine
        if roll() < 0.3:
            await asyncio.gather(asyncio.to_thread(self._try, chain), self._look(0), self._look(1))
        else:
            self._try(chain)
        for _ in range(self.random.choice((0, 1, 1, 2))):
            if roll() < 0.3:
                await asyncio.gather(self._look(0), self._look(1))
            else:
                await self._look(self.random.randrange(2))

    async def end(self) -> None:
        """Let all come to rest: all in blocks, blocks on top, and time for what is lost to be taken back."""
        self.dice.chance = 0
        while self.node.ask("getrawmempool"):
            self.node.mine()
        for _ in range(3):
            self.node.mine(_MOST_CONFIRMATIONS)
            self.room.ahead_us += 3700 * US_PER_S
            for watcher in self.watchers:
                await watcher.look(self.room.now())

    async def check(self) -> None:
        """See that credited is what the chain holds, and that balances are what that is worth."""
        payments = await self.room.payments()
        credited, worth = Counter[str](), Counter[int]()
        for payment in payments:
            assert payment.state in {"credited", "gone"}, payment
            if payment.state == "credited":
                credited[payment.address] += int(payment.units)
                worth[payment.account_id or 0] += int(payment.units)
                assert payment.worth_nanos == int(payment.units) * SATOSHI
        held = await self.room.watcher.scan(self.addresses)
        assert await self.room.watcher.received(self.addresses) == held
        for address in self.addresses:
            assert credited[address] == held[address], f"{address}: {credited[address]}, not {held[address]}"
        for account in (self.room.alice, self.room.bob):
            assert await self.room.satoshis(account) == worth[account], account
        assert set(await self.room.incidents()) <= {"reversed"}, await self.room.incidents()
        self.seen["satoshis"] = sum(held.values())
        self.seen["payments"] = len(payments)
        self.seen["gone"] = sum(one.state == "gone" for one in payments)
        self.seen["credited again"] = sum(one.epoch > 1 for one in payments if one.state == "credited")
        self.seen["reversals"] = (await self.room.incidents()).count("reversed")
        self.seen["crashes"] = self.dice.crashes

    async def close(self) -> None:
        for watcher in self.watchers:
            await watcher.close()

    async def _look(self, index: int) -> None:
        self.seen["looks"] += 1
        try:
            await self.watchers[index].look(self.room.now())
        except Crash:
            await self.watchers[index].close()
            self.watchers[index] = make_watcher(self.room, self.dice)
        except RailTrouble:  # the other reads old blocks just now, or the chain does not hold still
            self.seen["troubles"] += 1

    # Customers

    async def _open(self, account: int) -> None:
        """Ask for an address: a new one if the last one was paid to."""
        opened = await self.room.topups.open(account, "bitcoin:BTC", 50 * NANOS_PER_USD, self.room.now())
        address = (await self.room.told(opened)).topup.address
        if address not in self.addresses:
            self.addresses.append(address)
        done = "UPDATE topup SET state = 'expired' WHERE id = ? AND state = 'waiting'"
        await self.room.store.write([(done, (opened,))])

    def _try(self, what: Callable[[], object]) -> None:
        """Do something that a node may refuse."""
        try:
            what()
            self.seen[getattr(what, "__name__", "").strip("_")] += 1
        except NodeError:
            self.seen["refused"] += 1

    def _ways(self) -> list[Callable[[], object]]:
        return [self._pay, self._pay, self._pay, self._pay_many, self._pay_twice, self._bump, self._cheat, self._return]

    def _satoshis(self) -> int:
        return self.random.choice((300, self.random.randint(300, 10**5), self.random.randint(10**5, 2 * 10**6)))

    def _keep(self, txid: str) -> None:
        self.sent = [*self.sent, str(self.node.ask("getrawtransaction", txid))][-_REMEMBERED:]

    def _pay(self) -> None:
        address = self.random.choice(self.addresses)
        self._keep(self.node.send(address, self._satoshis(), fee_rate=self.random.randint(1, 10)))

    def _pay_many(self) -> None:
        addresses = self.random.sample(self.addresses, min(3, len(self.addresses)))
        self._keep(self.node.send_all({address: self._satoshis() for address in addresses}))

    def _pay_twice(self) -> None:
        """Pay one address twice in one transaction."""
        paid, node = 2 * self._satoshis(), self.node
        draft = node.ask("createrawtransaction", [], {self.random.choice(self.addresses): coins(paid)})
        funded = node.payer("fundrawtransaction", draft, {"fee_rate": 6, "replaceable": True})["hex"]
        tx = Transaction.parse(bytes.fromhex(funded))
        split = next(one for one in tx.vout if one.value == paid)
        split.value //= 2
        tx.vout.append(TransactionOutput(split.value, split.script_pubkey))
        signed = node.payer("signrawtransactionwithwallet", tx.serialize().hex())["hex"]
        self._keep(node.ask("sendrawtransaction", signed))

    def _bump(self) -> None:
        for txid in self._waiting():
            self._keep(self.node.bump(txid))

    def _cheat(self) -> None:
        """Take a payment's coins back before it is in a block."""
        for txid in self._waiting():
            self.node.double_spend(txid)

    def _waiting(self) -> list[str]:
        """Give one transaction that waits, if there is any."""
        pool = self.node.ask("getrawmempool")
        return [str(self.random.choice(pool))] if pool else []

    def _return(self) -> None:
        """Send a payment again that may have been dropped, replaced or undone."""
        if self.sent:
            self.node.ask("sendrawtransaction", self.random.choice(self.sent))

    # Blocks

    def _mine(self) -> None:
        """Mine what waits, or some of it, or nothing."""
        roll = self.random.random()
        if roll < 0.6:
            self.node.mine(self.random.choice((1, 1, 2, 5)))
        elif roll < 0.8:
            self.node.mine_only()
        else:
            pool = self.node.ask("getrawmempool")
            self.node.mine_only(*(txid for txid in pool if self.random.random() < 0.5))

    def _undo(self) -> None:
        """Undo blocks, and mine a longer branch with some of what was in them, or let the old one come back."""
        depth = self.random.randint(1, 2) if self.random.random() < 0.7 else self.random.randint(3, DEEPEST)
        self.seen["reorgs"] += 1
        self.seen["deep reorgs"] += depth > 2
        oldest = self.node.undo(depth)[0]
        for _ in range(self.random.choice((0, 0, 1, 2))):
            self._try(self._cheat)
        for _ in range(self.random.randint(0, depth)):
            self._try(self._mine)
        if self.random.random() < 0.3:
            self.node.redo(oldest)
            self.seen["branches that came back"] += 1
        for _ in range(depth):
            self._try(self._mine)

    def _restart(self) -> None:
        self.node.stop()
        more = self.node.more
        if self.random.random() < 0.5:
            self.node.more = [*more, *_DROPPING]
        self.seen["restarts"] += 1
        self.node.start()
        self.node.more = more


async def live(
    database_url: str, directory: Path, seed: int, steps: int, go_on: Callable[[], bool] = lambda: True
) -> Counter[str]:
    """Live through one random life. Raises AssertionError where credited is not what the chain holds."""
    node = Bitcoind(directory / "bitcoind")
    with running(node):
        async with open_room(database_url, Keys().settings(node), node) as room:
            life = Life(room, seed)
            try:
                await life.begin()
                while steps and go_on():
                    await life.step()
                    steps -= 1
                    life.seen["steps"] += 1
                await life.end()
                await life.check()
            finally:
                await life.close()
    return life.seen
