"""A seeded driver: random batches over the real store, each answer compared with the model's, and crashes between.

A second store on the same books, as the command line opens one, takes part: its writes must be seen at once.
"""

import random
from collections.abc import Callable

from farebox.accounts.accounts import create_account, set_status
from farebox.accounts.keys import create_key, revoke_key
from farebox.billing.ledger import (
    Admission,
    Admit,
    Answer,
    Command,
    Posted,
    Resize,
    Settle,
    Transfer,
    Verdict,
    customer_account,
)
from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger
from farebox.books.runs import resolve_orphans
from farebox.errors import BrokenInvariant
from farebox.ids import new_request_id
from farebox.store.open import open_store
from farebox.store.protocol import Store
from tests.books.model import Model

PLANS = Plans(
    [
        Plan("small", 60, 6_000, 4),
        Plan("narrow", 6, 6_000_000, 60),
        Plan("large", 6_000, 6_000_000, 60),
    ]
)
"""Rates that divide a minute evenly, so that the store's whole nanoseconds and the model's fractions agree."""
_BATCH = 40
_COMPARE_EVERY = 20
MUST_BE_SEEN = (
    "admitted", "duplicate", "key_invalid", "suspended", "requests_limited", "tokens_limited", "too_many_at_once",
    "insufficient", "gone", "resized", "resized short", "settled", "settled before", "shortfall", "waived", "refused",
    "posted", "posted before", "poisoned", "crash", "re-delivered", "by another process",
)  # fmt: skip


class Driver:
    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.seed = seed
        self.random = random.Random(seed)
        self.model = Model()
        self.now_us = 1_800_000_000_000_000
        self.operations = 0
        self.store: Store
        self.other: Store
        self._keys: dict[int, list[int]] = {}
        self._admitted: list[bytes] = []
        self._revoked: list[tuple[int, int]] = []
        self._posted: list[Transfer] = []
        self._last: list[Command] = []
        self._transfers = 0

    async def run(self, operations: int, on_progress: Callable[[int], None] | None = None) -> None:
        """Apply at least so many commands; raises AssertionError, with the seed, at the first difference."""
        await self._open()
        await self._people()
        batches = 0
        try:
            while self.operations < operations:
                await self._step()
                batches += 1
                if batches % _COMPARE_EVERY == 0:
                    await self._compare_state()
                    if on_progress:
                        on_progress(self.operations)
            await self._crash()
            await self._compare_state()
            missing = [name for name in MUST_BE_SEEN if not self.model.seen[name]]
            assert not missing or operations < 20_000, f"never seen: {missing}"
        except AssertionError as error:
            error.add_note(f"FAREBOX_SEED={self.seed}, operation {self.operations}")
            raise
        finally:
            await self.store.close()
            await self.other.close()

    async def _open(self) -> None:
        self.store = await open_store(self.url, plans=PLANS, clock=lambda: self.now_us, serving=True)
        self.store.run_id = self.model.seen["crash"] + 1
        await self.store.write([("INSERT INTO run (id, started_at) VALUES (?, ?)", (self.store.run_id, self.now_us))])
        self.other = await open_store(self.url, plans=PLANS, clock=lambda: self.now_us)

    async def _people(self) -> None:
        for number in range(8):
            plan = ("large", "small", "large", "narrow")[number % 4]
            account = await create_account(self.store, f"c{number}@example.com", plan, self.now_us)
            keys = [(await create_key(self.store, account.id, "k", "sk-cc-", self.now_us))[0].id for _ in range(3)]
            self._keys[account.id] = keys
            self.model.open_account(account.id, PLANS.get(plan), set(keys))

    async def _step(self) -> None:
        self.now_us += self.random.choice((0, 1, 977, 50_000, 400_000, 9_000_000))
        dice = self.random.random()
        if dice < 0.004:
            await self._crash()
        elif dice < 0.03:
            await self._change_account()
        elif dice < 0.10 and self._last:
            self.model.seen["re-delivered"] += 1
            await self._apply(self.store, self._last)
        elif dice < 0.16:
            self.model.seen["by another process"] += 1
            await self._apply(self.other, [self._command() for _ in range(self.random.randint(1, 3))])
        else:
            size = self.random.choice((1, 1, 2, 5, _BATCH, _BATCH))
            await self._apply(self.store, [self._command() for _ in range(size)])

    async def _apply(self, store: Store, batch: list[Command]) -> None:
        self._last = batch
        self.operations += len(batch)
        expected = self.model.apply(batch, self.now_us)
        answers = await store.apply(batch)
        for command, answer, right in zip(batch, answers, expected, strict=True):
            self._compare(command, answer, right)

    def _compare(self, command: Command, answer: Answer | Exception, right: Answer | None) -> None:
        if right is None:
            assert isinstance(answer, BrokenInvariant), f"{command} → {answer!r}, should be refused as broken"
        elif isinstance(right, Posted):
            assert isinstance(answer, Posted)
            assert (answer.now, answer.refused is None) == (right.now, right.refused is None), command
        elif isinstance(right, Admission):
            assert isinstance(answer, Admission), f"{command} → {answer!r}"
            if answer.verdict is Verdict.ADMITTED and isinstance(command, Admit):
                self._admitted.append(command.request_id)
            shown = (answer.verdict, answer.held_nanos, answer.free_nanos, answer.retry_after_ns)
            assert shown == (right.verdict, right.held_nanos, right.free_nanos, right.retry_after_ns), command
        else:
            assert answer == right, command

    async def _compare_state(self) -> None:
        model = self.model
        rows = await self.store.fetch(
            "SELECT id, posted_nanos, held_nanos, open_holds, topped_up_nanos FROM account ORDER BY id"
        )
        assert rows == [
            (number, account.posted, model.held(number), model.count(number), account.topped_up)
            for number, account in sorted(model.accounts.items())
        ]
        holds = await self.store.fetch("SELECT request_id, account_id, amount_nanos, tokens FROM hold")
        assert {row[0]: row[1:] for row in holds} == {
            one: (hold.account, hold.amount, hold.tokens) for one, hold in model.holds.items()
        }

    async def _compare_entries(self) -> None:
        model = self.model
        counts = await self.store.fetch(
            "SELECT (SELECT count(*) FROM usage), (SELECT coalesce(sum(charged_nanos), 0) FROM usage), "
            "(SELECT coalesce(sum(shortfall_nanos), 0) FROM usage), (SELECT count(*) FROM transfer)"
        )
        charged, shortfall = (sum(pair[side] for pair in model.settled.values()) for side in (0, 1))
        assert counts[0] == (len(model.settled), charged, shortfall, len(model.transfers))

    async def _crash(self) -> None:
        """End the process in the middle of its calls; the next one frees every hold before anything else."""
        self.model.seen["crash"] += 1
        await self._compare_entries()
        await self.store.close()
        await self.other.close()
        await self._open()
        left = sorted(self.model.holds)
        settles: list[Command] = [_settle(one, self.model.holds[one].account, kind="recovered") for one in left]
        self.model.apply(settles, self.now_us)
        assert await resolve_orphans(self.store, Ledger(self.store)) == len(left)
        assert await self.store.fetch("SELECT * FROM hold") == []

    async def _change_account(self) -> None:
        store = self.random.choice((self.store, self.other))
        suspended = [number for number, account in self.model.accounts.items() if not account.active]
        number = self.random.choice(suspended or list(self._keys))
        account = self.model.accounts[number]
        if suspended or self.random.random() < 0.5:
            account.active = not account.active
            await set_status(store, number, "active" if account.active else "suspended")
            return
        revoked = self._keys[number].pop(0)
        account.keys.discard(revoked)
        await revoke_key(store, revoked, self.now_us)
        made, _ = await create_key(store, number, "new", "sk-cc-", self.now_us)
        account.keys.add(made.id)
        self._keys[number] += [made.id]
        self._revoked.append((number, revoked))

    def _command(self) -> Command:
        dice = self.random.random()
        if dice < 0.50:
            return self._admit()
        if dice < 0.65:
            return self._resize()
        if dice < 0.86:
            return self._settle()
        return self._transfer()

    def _admit(self) -> Admit:
        number = self.random.choice(list(self._keys))
        free = max(0, self.model.free(number))
        amount = self.random.choice((1, free, free + 1, free // 3, free // 10, free // 50 + 1, 10**6))
        request_id = new_request_id(self.now_us)[:6] + self.random.randbytes(10)
        if self._admitted and self.random.random() < 0.04:
            request_id = self.random.choice(self._admitted[-400:])
        key_id = self.random.choice(self._keys[number])
        if self._revoked and self.random.random() < 0.05:
            number, key_id = self.random.choice(self._revoked)
        elif self.random.random() < 0.02:
            key_id = self.random.choice(self._keys[self.random.choice(list(self._keys))])
        return Admit(
            request_id=request_id,
            account_id=number,
            key_id=key_id,
            model="any",
            amount_nanos=amount,
            least_nanos=self.random.choice((amount, amount, amount // 2, 0)),
            tokens=self.random.choice((0, 1, 50, 400, 7_000)),
            price_version=1,
        )

    def _some_hold(self) -> tuple[bytes, int]:
        """Mostly an open hold, now and then one that ended, rarely one that never was."""
        dice = self.random.random()
        if self.model.holds and dice < 0.93:
            one = self.random.choice(list(self.model.holds))
            return one, self.model.holds[one].account
        if self._admitted and dice < 0.998:
            return self.random.choice(self._admitted[-400:]), self.random.choice(list(self._keys))
        return self.random.randbytes(16), self.random.choice(list(self._keys))

    def _resize(self) -> Resize:
        one, number = self._some_hold()
        free = max(0, self.model.free(number))
        amount = self.random.choice((0, 1, free // 2, free * 2, 10**7))
        return Resize(request_id=one, account_id=number, amount_nanos=amount, tokens=self.random.choice((0, 10, 900)))

    def _settle(self) -> Settle:
        one, number = self._some_hold()
        hold = self.model.holds.get(one)
        amount = hold.amount if hold else 5
        cost = self.random.choice((0, 1, amount, amount // 2, amount + 1, amount * 2 + 10))
        return _settle(
            one,
            number,
            cost_nanos=cost,
            waive=self.random.random() < 0.1,
            limited_tokens=self.random.choice((0, 5, 100, 2_000)),
        )

    def _transfer(self) -> Transfer:
        if self._posted and self.random.random() < 0.15:
            return self.random.choice(self._posted)
        one, two = (customer_account(number) for number in self.random.sample(sorted(self._keys), 2))
        debit, credit, code = self.random.choice(
            (
                ("house:cash", one, "deposit"),
                ("house:cash", one, "deposit"),
                ("house:promotion", one, "promotion"),
                (one, "house:adjustments", "debit"),
                (one, two, "gift"),
            )
        )
        self._transfers += 1
        made = Transfer(
            id=f"t{self._transfers}",
            debit_account=debit,
            credit_account=credit,
            amount_nanos=self.random.choice((1, 1_000, 10**6, 10**8, 10**10)),
            code=code,
            actor="test",
            memo="",
        )
        self._posted.append(made)
        return made


def _settle(
    request_id: bytes,
    account_id: int,
    *,
    kind: str = "exact",
    cost_nanos: int = 0,
    waive: bool = False,
    limited_tokens: int = 0,
) -> Settle:
    return Settle(
        request_id=request_id,
        account_id=account_id,
        kind="waived" if waive else kind,
        model="any",
        outcome="finished",
        status=200,
        cost_nanos=cost_nanos,
        list_nanos=cost_nanos * 2,
        waive=waive,
        limited_tokens=limited_tokens,
    )
