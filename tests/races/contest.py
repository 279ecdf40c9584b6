"""Nodes race for an account's last money, round after round, on many accounts at once so that a race costs little.

Each round brings an account to a known balance, lets all nodes at it at the same moment, and then asks whether what
they were told can be true (history.py). At the end the rows must be what the histories came to.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.billing.ledger import Admit, Command, Expire, Resize, Settle, Transfer
from farebox.books.ledger import credit, debit
from farebox.store.protocol import Store
from tests.races.history import Balance, explain
from tests.races.node import Event, Player, Strand

_DELAYS_S: Final = (0, 0, 0, 0.001, 0.003)
Given = Sequence[Sequence[Command]]
"""What one node is given: strands of commands."""


class Contest:
    """Rounds between nodes. `seen` counts rounds and answers, so that a contest gone soft can be told."""

    def __init__(self, store: Store, nodes: Sequence[Player], seed: int) -> None:
        self.store = store
        self.nodes = nodes
        self.seed = seed
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self._numbers = itertools.count()

    async def run(self, rounds: int, accounts: int, on_progress: Callable[[int], None] | None = None) -> None:
        """Play so many rounds, spread over so many accounts. A failure names the seed."""
        left = iter(range(rounds))

        async def play(number: int) -> None:
            account = await _Account.open(self, f"c{number}@example.com")
            for one in left:
                await account.round()
                if on_progress:
                    on_progress(one + 1)
            opened.append(account)

        opened: list[_Account] = []
        try:
            async with asyncio.TaskGroup() as playing:
                for number in range(accounts):
                    playing.create_task(play(number))
            await self._check(opened)
        except* AssertionError as errors:
            errors.add_note(f"FAREBOX_SEED={self.seed}")
            raise

    async def _check(self, accounts: list["_Account"]) -> None:
        rows = await self.store.fetch("SELECT id, posted_nanos, held_nanos, open_holds FROM account ORDER BY id")
        assert rows == [(one.id, one.free, 0, 0) for one in sorted(accounts, key=lambda one: one.id)]
        assert await self.store.fetch("SELECT count(*) FROM hold") == [(0,)]
        kinds = await self.store.fetch("SELECT kind, count(*) FROM usage GROUP BY kind")
        assert dict(map(tuple, kinds)) == {"exact": self.seen["settled"], "late": self.seen["settled late"]}
        assert await self.store.fetch("SELECT count(*) FROM transfer") == [(self.seen["posted"],)]

    def note(self, events: list[Event]) -> None:
        """Count what happened in a round."""
        for event in events:
            self.seen[event.said] += 1
        self.seen["rounds"] += 1

    def name(self) -> str:
        return f"t{next(self._numbers)}"


class _Account:
    """An account that is raced for, and what must be free of it."""

    def __init__(self, contest: Contest, account_id: int, key_id: int) -> None:
        self.id = account_id
        self.free = 0
        self._key_id = key_id
        self._contest = contest
        self._random = contest.random
        self._events: list[Event] = []

    @classmethod
    async def open(cls, contest: Contest, email: str) -> "_Account":
        account = await create_account(contest.store, email, "open", 1)
        key, _ = await create_key(contest.store, account.id, "k", "sk-cc-", 1)
        return cls(contest, account.id, key.id)

    async def round(self) -> None:
        """Race once, in one of three ways, and settle what is left."""
        self._events = []
        race = self._random.choice((self._for_the_last_cent, self._for_what_is_released, self._over_the_same_calls))
        await race()
        await self._settle_the_rest()
        events = await self._with_late_ones()
        after = explain(Balance(self.free), events)
        assert not after.holds, after
        self.free = after.free
        self._contest.note(events)

    async def _for_the_last_cent(self) -> None:
        """There is enough for exactly so many calls, and nothing is given back: exactly so many are let in."""
        price, calls = self._random.randint(2, 1_000), self._random.randint(1, 3)
        await self._bring_to(price * calls + self._random.randrange(price))
        given = [[[self._admit(price)] for _ in range(calls + 1)] for _ in self._contest.nodes]
        events = await self._play(given)
        admitted = {event.command.request_id for event in events if event.said == "admitted"}  # type: ignore[union-attr]
        assert len(admitted) == calls, f"{len(admitted)} calls were let in where the money was for {calls}"
        assert all(event.said in {"admitted", "insufficient"} for event in events)
        won = [any(admit.request_id in admitted for (admit,) in strands) for strands in given]
        self._contest.seen["last cent"] += 1
        self._contest.seen["won by both"] += all(won)
        for number, has_won in enumerate(won):
            self._contest.seen[f"won by node {number}"] += has_won

    async def _for_what_is_released(self) -> None:
        """Calls end while others ask: what is released is there for the next one."""
        price = self._random.randint(2, 1_000)
        await self._bring_to(price * self._random.randint(1, 2) + self._random.randrange(price))
        strands = [
            [[*self._call(price), *self._call(price)] for _ in range(self._random.randint(1, 2))]
            for _ in self._contest.nodes
        ]
        await self._play(strands)
        self._contest.seen["released"] += 1

    async def _over_the_same_calls(self) -> None:
        """All nodes settle, resize and expire the same calls, move money under the same ids, and let others in."""
        price = self._random.randint(2, 1_000)
        await self._bring_to(price * 3)
        asked = await self._play([[[self._admit(price)], [self._admit(price)]]])
        held = [event.command.request_id for event in asked if isinstance(event.command, Admit)]
        transfers = [self._transfer(price), self._transfer(price)]
        strands = []
        for _ in self._contest.nodes:
            one = [[self._ending(request_id, price)] for request_id in held for _ in range(self._random.randint(1, 2))]
            one += [[transfer] for transfer in transfers if self._random.random() < 0.8]
            one += [self._call(price) for _ in range(self._random.randrange(2))]
            self._random.shuffle(one)
            strands.append(one)
        await self._play(strands)
        self._contest.seen["same calls"] += 1

    async def _settle_the_rest(self) -> None:
        """End every call that may still be held, from all nodes."""
        left = {event.command.request_id for event in self._events if isinstance(event.command, Admit)}
        left &= {event.command.request_id for event in self._events if event.said == "admitted"}  # type: ignore[union-attr]
        settles = [[_settle(request_id, self.id, cost=7)] for request_id in sorted(left)]
        await self._play([settles for _ in self._contest.nodes])

    async def _with_late_ones(self) -> list[Event]:
        """Tell apart the calls that were settled after they had expired: their rows say so, the answers do not."""
        if all(event.said != "expired" for event in self._events):
            return self._events
        read = "SELECT request_id FROM usage WHERE kind = 'late' AND account_id = ?"
        late = {row[0] for row in await self._contest.store.fetch(read, (self.id,))}
        return [
            msgspec.structs.replace(event, said="settled late")
            if event.said == "settled" and isinstance(event.command, Settle) and event.command.request_id in late
            else event
            for event in self._events
        ]

    async def _bring_to(self, nanos: int) -> None:
        """Make so much free, by one transfer that every node posts."""
        missing = nanos - self.free
        name = self._contest.name()
        if missing > 0:
            transfer = credit(name, self.id, missing, code="deposit", actor="test", memo="")
        elif missing < 0:
            transfer = debit(name, self.id, -missing, actor="test", memo="")
        else:
            return
        await self._play([[[transfer]] for _ in self._contest.nodes])

    async def _play(self, given: Sequence[Given]) -> list[Event]:
        """Let each node play its strands, all at the same time."""
        played = await asyncio.gather(
            *(
                node.play([Strand(self._random.choice(_DELAYS_S), list(commands)) for commands in strands])
                for node, strands in zip(self._contest.nodes, given, strict=False)
            )
        )
        events = list(itertools.chain.from_iterable(played))
        self._events += events
        return events

    def _admit(self, price: int) -> Admit:
        return Admit(
            request_id=self._random.randbytes(16),
            account_id=self.id,
            key_id=self._key_id,
            model="any",
            amount_nanos=price,
            least_nanos=price,
            tokens=1,
            price_version=1,
        )

    def _call(self, price: int) -> list[Command]:
        """A whole call, which costs some of what was held for it, nothing, or more."""
        admit = self._admit(price)
        cost = self._random.choice((0, 1, price // 2, price, price * 2))
        return [admit, _settle(admit.request_id, self.id, cost=cost)]

    def _ending(self, request_id: bytes, price: int) -> Command:
        dice = self._random.random()
        if dice < 0.5:
            return _settle(request_id, self.id, cost=price // 3 + 1)
        if dice < 0.8:
            return Expire(request_id, self.id)
        return Resize(request_id, self.id, self._random.choice((0, price // 2, price * 2)), tokens=1)

    def _transfer(self, price: int) -> Transfer:
        name = self._contest.name()
        if self._random.random() < 0.5:
            return debit(name, self.id, self._random.choice((1, price, price * 2)), actor="test", memo="")
        return credit(name, self.id, price, code="deposit", actor="test", memo="")


def _settle(request_id: bytes, account_id: int, *, cost: int) -> Settle:
    return Settle(
        request_id=request_id,
        account_id=account_id,
        kind="exact",
        model="any",
        outcome="finished",
        status=200,
        cost_nanos=cost,
        list_nanos=cost,
        limited_tokens=1,
    )
