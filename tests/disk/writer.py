"""A process that keeps books and tells what it hands in and what it is answered, in a file that outlives it.

python -m tests.disk.writer BOOKS TOLD SEED OPERATIONS SYNCHRONOUS CHECKPOINT

BOOKS is the SQLite file, TOLD the file it tells in: a line before a command is handed in, and a line once it is
answered. Many do so at once, so that commands come in batches; twice in between the books are closed and opened again.
"""

import asyncio
import json
import os
import random
import sys
from typing import Any, Final

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.billing.ledger import (
    Admission,
    Admit,
    Expire,
    Expired,
    Posted,
    Resize,
    Resized,
    Settle,
    Settled,
    Transfer,
    Verdict,
    customer_account,
)
from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger, credit
from farebox.books.prices import pin_prices
from farebox.clock import Clock, steady_clock
from farebox.errors import StoreUnavailable
from farebox.store.sqlite import SqliteStore, open_store
from tests.books.shop import MODELS

PLANS: Final = Plans([Plan("all", 10**6, 10**9, 10**4)])
_AT_ONCE: Final = 12
_LIVES: Final = 3
_TRIES: Final = 20
_NANOS: Final = 7_500
"""What a token of input costs by the prices of `tests.books.shop`."""
Told = dict[str, Any]


class Writer:
    """One life of the books, from opening to closing them."""

    def __init__(self, store: SqliteStore, clock: Clock, told: int, choices: random.Random, life: int) -> None:
        self._store = store
        self._ledger = Ledger(store)
        self._clock = clock
        self._told = told
        self._random = choices
        self._life = life
        self._count = 0
        self._prices = 0
        self._accounts: list[tuple[int, int]] = []

    async def write(self, operations: int) -> None:
        """Hand in about so many commands."""
        run = ("INSERT INTO run (id, started_at, stopped_at) VALUES (?, ?, ?)", (self._life, self._clock(), 0))
        await self._insist({"what": "run"}, lambda: self._store.write([run]))
        self._store.run_id = self._life
        prices = await self._insist({"what": "prices"}, lambda: pin_prices(self._store, MODELS, self._clock()))
        self._prices = prices.version
        while len(self._accounts) < 3:
            await self._open_account()
        await asyncio.gather(*(self._work(operations) for _ in range(_AT_ONCE)))
        await self._ledger.drained()

    async def _work(self, operations: int) -> None:
        while self._count < operations:
            dice = self._random.random()
            if dice < 0.02:
                await self._open_account()
            elif dice < 0.2:
                await self._transfer()
            else:
                await self._call()

    async def _open_account(self) -> None:
        email = f"c{self._life}-{self._count}@example.com"
        sent = {"what": "account", "id": email}
        if (account := await self._do(sent, create_account(self._store, email, "all", self._clock()))) is None:
            return
        sent = {"what": "key", "id": str(account.id)}
        made = await self._do(sent, create_key(self._store, account.id, "k", "sk-cc-", self._clock()))
        if made is not None:
            self._accounts.append((account.id, made[0].id))
            await self._post(self._credit(account.id, 10**9))

    async def _transfer(self) -> None:
        (one, _), (two, _) = self._random.sample(self._accounts, 2)
        if self._random.random() < 0.6:
            await self._post(self._credit(one, self._random.choice((1, 1_000, 10**8))))
            return
        name = f"t{self._life}-{self._count}"
        amount = self._random.choice((5, 70_000, 10**12))
        accounts = customer_account(one), customer_account(two)
        await self._post(
            Transfer(
                id=name,
                debit_account=accounts[0],
                credit_account=accounts[1],
                amount_nanos=amount,
                code="gift",
                actor="test",
                memo="",
            )
        )

    def _credit(self, account_id: int, nanos: int) -> Transfer:
        return credit(f"t{self._life}-{self._count}", account_id, nanos, code="deposit", actor="test", memo="")

    async def _post(self, transfer: Transfer) -> None:
        sent = {"what": "transfer", "id": transfer.id, "nanos": transfer.amount_nanos, "to": transfer.credit_account}
        for _ in range(2 if self._random.random() < 0.1 else 1):
            await self._insist(sent, lambda: self._ledger.post(transfer))

    async def _call(self) -> None:
        """Let a call in, resize it or not, give it up or not, and mostly settle it."""
        account_id, key_id = self._random.choice(self._accounts)
        request_id = self._random.randbytes(16)
        amount = self._random.choice((1, 30_000, 2 * 10**6))
        admit = Admit(request_id, account_id, key_id, "opus", amount, amount // 2, 10, self._prices)
        sent = {"id": request_id.hex(), "account": account_id}
        answer = await self._insist({"what": "admit", "nanos": amount, **sent}, lambda: self._ledger.admit(admit))
        if not isinstance(answer, Admission) or answer.verdict not in {Verdict.ADMITTED, Verdict.DUPLICATE}:
            return
        if self._random.random() < 0.3:
            size = self._random.choice((0, amount // 2, amount * 3))
            resize = Resize(request_id, account_id, size, 10)
            await self._insist({"what": "resize", "nanos": size, **sent}, lambda: self._ledger.resize(resize))
        if self._random.random() < 0.1:
            expire = Expire(request_id, account_id)
            await self._insist({"what": "expire", **sent}, lambda: self._ledger.expire(expire))
        if self._random.random() < 0.1:
            return
        tokens = self._random.choice((0, 1, amount // _NANOS, 4 * amount // _NANOS))
        settle = Settle(
            request_id=request_id,
            account_id=account_id,
            kind="exact",
            model="opus",
            outcome="finished",
            status=200,
            cost_nanos=tokens * _NANOS,
            list_nanos=tokens * _NANOS * 2,
            input_tokens=tokens,
        )
        for _ in range(2 if self._random.random() < 0.1 else 1):
            told = {"what": "settle", "cost": settle.cost_nanos, **sent}
            await self._insist(told, lambda: self._ledger.settle(settle))

    async def _insist(self, sent: Told, hand_in: Any) -> Any:
        """Hand a command in until it is answered, or too often not."""
        for _ in range(_TRIES):
            if (answer := await self._do(sent, hand_in())) is not None:
                return answer
        return None

    async def _do(self, sent: Told, answer: Any) -> Any:
        """Tell what is handed in, and what it is answered; None when it is not."""
        self._count += 1
        number = f"{self._life}-{self._count}"
        self._tell({"sent": number, **sent})
        try:
            got = await answer
        except StoreUnavailable as error:
            self._tell({"unknown": number, "error": str(error)})
            return None
        self._tell({"done": number, **_shown(got)})
        return got

    def _tell(self, line: Told) -> None:
        data = json.dumps(line).encode() + b"\n"
        assert os.write(self._told, data) == len(data)


def _shown(answer: Any) -> Told:
    match answer:
        case Admission():
            return {"verdict": answer.verdict.value, "held": answer.held_nanos}
        case Resized():
            return {"held": answer.amount_nanos, "gone": answer.gone}
        case Expired():
            return {"now": answer.now}
        case Settled():
            return {"charged": answer.charged_nanos, "short": answer.shortfall_nanos}
        case Posted():
            return {"refused": answer.refused is not None}
    return {}


async def _open(books: str, clock: Clock, synchronous: str, checkpoint: int) -> SqliteStore | None:
    """Open the books as a server does; with faults that may fail, and is tried again."""
    for _ in range(_TRIES):
        try:
            store = await open_store(books, plans=PLANS, clock=clock, serving=True)
            break
        except StoreUnavailable:
            continue
    else:
        return None
    store._writer.execute(f"PRAGMA wal_autocheckpoint={checkpoint}")
    if synchronous != "FULL":
        store._writer.execute(f"PRAGMA synchronous={synchronous}")
    return store


async def _live(books: str, told: str, seed: int, operations: int, synchronous: str, checkpoint: int) -> None:
    choices = random.Random(seed)
    clock = steady_clock()
    descriptor = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for life in range(1, _LIVES + 1):
        store = await _open(books, clock, synchronous, checkpoint)
        if store is None:
            return
        await Writer(store, clock, descriptor, choices, life).write(operations // _LIVES)
        await store.close()


if __name__ == "__main__":
    _, books, told, seed, operations, synchronous, checkpoint = sys.argv
    asyncio.run(_live(books, told, int(seed), int(operations), synchronous, int(checkpoint)))
