"""Customers who make calls of every kind, one after the other, whatever becomes of the servers, and some who top up."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.books.ledger import Ledger, credit
from farebox.clock import steady_clock
from farebox.errors import StoreUnavailable
from farebox.store.protocol import Store
from tests.kill.client import Seen, call
from tests.kill.oracle import NANOS

PLAN: Final = """
[[plans]]
name = "all"
requests_per_minute = 1_000_000
tokens_per_minute = 1_000_000_000
concurrent = 1000
top_up = 0
"""
_FIRST_NANOS: Final = (10**12, 10**12, 10**12, 3_000_000, 1_500_000, 0)
_POOR: Final = slice(3, 5)
_RETRY_AFTER_S: Final = 0.2
_FAULTS: Final = (
    "cut_after=4", "reset_after=6", "error=529", "error=400", "error=500", "fail_first=1", "truncate", "refusal=0",
    "refusal=9", "error_after=5", "garbage_after=5", "close_before", "many_deltas=3", "cache_read=500",
    "cache_write_5m=300", "cache_write_1h=200", "wrong_length",
)  # fmt: skip


class Crowd:
    """The customers of one run. `answers` is what they had, `deposited` what they paid in and were told of."""

    def __init__(self, store: Store, choices: random.Random, seen: Counter[str], door: Callable[[], int]) -> None:
        self.answers: list[Seen] = []
        self.deposited: set[str] = set()
        self.calling: Counter[int] = Counter()
        """Calls under way, by the port they went to."""
        self._store = store
        self._ledger = Ledger(store)
        self._random = choices
        self._seen = seen
        self._door = door
        self._keys: list[str] = []
        self._accounts: list[int] = []
        self._calls = True
        self._deposits = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def open_accounts(self) -> None:
        """Open accounts: three rich, two with little, one without anything."""
        now = steady_clock()()
        for number, nanos in enumerate(_FIRST_NANOS):
            account = await create_account(self._store, f"c{number}@example.com", "all", now)
            self._keys.append((await create_key(self._store, account.id, "k", "sk-cc-", now))[1])
            self._accounts.append(account.id)
            if nanos:
                await self._deposit(account.id, nanos, f"first:{number}")

    def begin(self, customers: int, *, pause_s: float = 0, depositors: int = 1, deposit_pause_s: float = 0.05) -> None:
        """Let them begin. They pause between calls for up to so long."""
        self._calls = True
        self._tasks = [asyncio.create_task(self._customer(pause_s)) for _ in range(customers)]
        for number in range(depositors):
            self._tasks.append(asyncio.create_task(self._depositor(number, deposit_pause_s)))

    async def end(self) -> None:
        """Let everybody end what they are at."""
        self._calls = False
        await asyncio.gather(*self._tasks)

    def stop(self) -> None:
        """End everybody at once: the run has failed."""
        for task in self._tasks:
            task.cancel()

    async def _customer(self, pause_s: float) -> None:
        while self._calls:
            number = self._random.choices(range(len(self._keys)), (6, 6, 6, 2, 2, 1))[0]
            model = self._random.choice(list(NANOS))
            tokens = self._random.choice((1, 8, 60, 400, 1_500))
            knobs = f"tokens={tokens}"
            if self._random.random() < 0.5:
                knobs += f" rate={tokens * self._random.choice((2, 5, 30))} ttft={self._random.choice((0, 30))}"
            if self._random.random() < 0.25:
                knobs += " " + self._random.choice(_FAULTS)
            body = {
                "model": model,
                "max_tokens": self._random.choice((1, 50, 2_000)),
                "stream": self._random.random() < 0.7,
                "messages": [{"role": "user", "content": f"[[sim {knobs}]] {self._random.random()}"}],
            }
            hang_up_s = self._random.uniform(0.001, 0.2) if self._random.random() < 0.15 else None
            port = self._door()
            self.calling[port] += 1
            seen = await call(port, self._keys[number], body, hang_up_s=hang_up_s)
            self.calling[port] -= 1
            if not seen.refused:
                self.answers.append(seen)
            if seen.refused:
                await asyncio.sleep(0.02)
            else:
                await asyncio.sleep(_RETRY_AFTER_S if seen.status == 503 else self._random.uniform(0, pause_s))

    async def _depositor(self, who: int, pause_s: float) -> None:
        """Credit money from a process of its own, as the command line does, delivering everything twice."""
        while self._calls:
            self._deposits += 1
            number = self._deposits
            account = self._random.choice(self._accounts[_POOR])
            nanos = self._random.choice((1_000, 200_000, 900_000))
            for _ in range(2):
                await self._deposit(account, nanos, f"paid:{who}:{number}")
            await asyncio.sleep(pause_s)

    async def _deposit(self, account_id: int, nanos: int, name: str) -> None:
        """Deliver a deposit until it is answered. Without a first answer it may have been posted all the same."""
        transfer = credit(name, account_id, nanos, code="deposit", actor="test", memo="")
        while True:
            try:
                posted = await self._ledger.post(transfer)
                break
            except StoreUnavailable:
                self._seen["deposits delivered again"] += 1
                await asyncio.sleep(0.05)
        assert posted.refused is None, posted
        if name in self.deposited:
            assert not posted.now, f"{name} was posted twice"
        elif not posted.now:
            self._seen["deposits that had been posted without an answer"] += 1
        self.deposited.add(name)
