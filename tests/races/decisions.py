"""Random batches given to PostgreSQL and to SQLite, which folds by billing/ledger.py itself: one clock, one answer.

Every answer is compared, and every row that came of it. The generator looks at the books to aim at the edges: the last
nano-dollar, the last request of a minute, holds that have expired, ids that were used before.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from farebox.accounts.accounts import create_account, set_status
from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import change_key, create_key, disable_key, enable_key, list_keys, revoke_key
from farebox.billing.budgets import RESETS
from farebox.billing.ledger import (
    Admission,
    Admit,
    Answer,
    Command,
    Expire,
    Expired,
    Posted,
    Resize,
    Resized,
    Settle,
    Settled,
    Transfer,
    customer_account,
)
from farebox.billing.plans import Plan, Plans
from farebox.clock import DAY_US, US_PER_S, day_of
from farebox.money import MAX_NANOS
from farebox.store.open import open_store
from farebox.store.protocol import Statement, Store

PLANS: Final = Plans(
    [
        Plan("small", 60, 6_000, 4),
        Plan("odd", 7, 911, 3),
        Plan("large", 6_000, 6_000_000, 60),
        Plan("narrow", 60_000, 10**9, 2),
        Plan("one", 1, 1, 1),
    ]
)
MUST_BE_SEEN: Final = (
    "admitted", "admitted short", "duplicate", "key_invalid", "suspended", "requests_limited", "tokens_limited",
    "too_many_at_once", "insufficient", "key_requests_limited", "key_limited", "key limited as it grew", "resized",
    "resized short", "revived", "gone", "settled", "settled before", "recovered before", "late", "shortfall",
    "waived", "expired", "not held", "posted", "posted before", "refused", "broken", "again",
    "an id twice in a batch", "standing", "closed day", "clock set back", "next day",
)  # fmt: skip
_STRANGE_ACCOUNT: Final = 999_999
_TELLING: Final = 10_000
"""Decisions from which on a run has to have seen everything."""
_COMPARE_EVERY: Final = 8
_USAGE: Final = (
    "request_id, at, account_id, key_id, kind, model, asked_model, price_version, input_tokens, cache_write_5m_tokens, "
    "cache_write_1h_tokens, cache_read_tokens, output_tokens, web_searches, detail, cost_nanos, list_nanos, "
    "charged_nanos, shortfall_nanos, waived_nanos, status, outcome, stop_reason, message_id, upstream, "
    "upstream_request_id, attempts, streamed, first_byte_us, duration_us, session, agent, parent_agent, held_nanos, "
    "tries"
)
_STATE: Final = {
    "account": "id, status, plan, posted_nanos, held_nanos, open_holds, topped_up_nanos, requests_full_ns, "
    "tokens_full_ns",
    "key_budget": "key_id, limit_nanos, resets, since, used_nanos",
    "key_pace": "key_id, requests_full_ns",
    "hold": "request_id, account_id, key_id, model, amount_nanos, tokens, price_version, run_id, created_at, "
    "expired_at",
}
_USED: Final = """
    SELECT b.key_id, b.used_nanos,
      (SELECT coalesce(sum(charged_nanos), 0) FROM usage u
        WHERE u.account_id = k.account_id AND u.key_id = k.id AND u.at >= b.since)
      + (SELECT coalesce(sum(amount_nanos), 0) FROM hold h WHERE h.key_id = k.id AND h.created_at >= b.since)
    FROM key_budget b JOIN api_key k ON k.id = b.key_id ORDER BY b.key_id
"""
_ENTRIES: Final = {
    "usage": (_USAGE, "request_id"),
    "transfer": ("id, at, debit_account, credit_account, amount_nanos, code, actor, memo", "id"),
}


class Decisions:
    """One run over fresh books of both kinds. `seen` counts the answers, so that a run gone soft can be told."""

    def __init__(self, url: str, directory: Path, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.made = 0
        self.now_us = 1_800_000_000_000_000
        self._url = url
        self._directory = directory
        self._stores: tuple[Store, ...] = ()
        self._keys: dict[int, list[int]] = {}
        self._free: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._holds: list[tuple[bytes, int, int]] = []
        self._ids: deque[bytes] = deque(maxlen=300)
        self._expired: set[bytes] = set()
        self._posted: deque[Transfer] = deque(maxlen=100)
        self._batches: deque[list[Command]] = deque(maxlen=4)
        self._transfers = 0

    def _missing(self) -> list[str]:
        """Name what has to happen in a run that tells anything, and has not happened yet."""
        return [name for name in MUST_BE_SEEN if not self.seen[name]]

    async def run(self, decisions: int, on_progress: Callable[[int], None] | None = None) -> None:
        """Make at least so many decisions, more where something rare is still to come.

        Raises AssertionError, with the seed, at the first difference.
        """
        for url in (self._url, self._directory / "fold.db"):
            store = await open_store(url, plans=PLANS, clock=lambda: self.now_us, serving=True)
            self._stores += (store,)
        try:
            await self._people()
            batches = 0
            while self.made < decisions or (self._missing() and decisions >= _TELLING and self.made < 3 * decisions):
                await self._step()
                batches += 1
                if batches % _COMPARE_EVERY == 0:
                    await self._compare_rows()
                    if on_progress:
                        on_progress(self.made)
            await self._compare_rows()
            assert not self._missing() or decisions < _TELLING, f"never seen: {self._missing()}"
        except AssertionError as error:
            error.add_note(f"FAREBOX_SEED={self.seed}, decision {self.made}")
            raise
        finally:
            for store in self._stores:
                await store.close()

    async def _people(self) -> None:
        plans = ("large", "small", "odd", "large", "one", "withdrawn", "large", "narrow", "narrow")
        for number, plan in enumerate(plans):
            for store in self._stores:
                account = await create_account(store, f"c{number}@example.com", plan, self.now_us)
                rules = (Rules(), Rules(requests_per_minute=2), Rules(expires_at_us=self.now_us + 3600 * US_PER_S))
                keys = [await create_key(store, account.id, "k", "sk-cc-", self.now_us, one) for one in rules]
                self._keys[account.id] = [key.id for key, _ in keys]

    async def _both(self, *statements: Statement) -> None:
        for store in self._stores:
            await store.write(statements)

    async def _step(self) -> None:
        dice = self.random.random()
        self.now_us += self.random.choice((0, 0, 1, 977, 50_000, 400_000, 9_000_000, 30_000_000))
        if dice < 0.01:
            self.now_us -= self.random.choice((1, 3_000_000, 900_000_000))
            self.seen["clock set back"] += 1
        elif dice < 0.03:
            await self._change_account()
        elif dice < 0.035:
            await self._close_day()
        elif dice < 0.04:
            self.now_us += DAY_US
            self.seen["next day"] += 1
        elif dice < 0.1:
            await self._change_key()
        for store in self._stores:
            store.run_id = self.random.choice((1, 2, 3)) if store is self._stores[0] else self._stores[0].run_id
        if dice > 0.9 and self._batches:
            await self._again(self.random.choice(self._batches))
            return
        await self._look()
        size = self.random.choice((1, 1, 2, 5, 12, 40, 40))
        batch = [self._command() for _ in range(size)]
        self._batches.append(batch)
        await self._apply(batch)

    async def _look(self) -> None:
        """Learn where the edges are."""
        fold = self._stores[1]
        rows = await fold.fetch("SELECT id, posted_nanos - held_nanos FROM account")
        self._free = dict(map(tuple, rows))
        held = await fold.fetch("SELECT request_id, account_id, amount_nanos, expired_at FROM hold")
        self._holds = [row[:3] for row in held]
        self._expired = {row[0] for row in held if row[3] is not None}
        rows = await fold.fetch("SELECT key_id, limit_nanos - used_nanos FROM key_budget")
        self._left = dict(map(tuple, rows))

    async def _again(self, batch: list[Command]) -> None:
        """Deliver a batch once more, with another moment and in another process's name: nothing is done twice."""
        self.seen["again"] += 1
        count = "SELECT (SELECT count(*) FROM usage), (SELECT count(*) FROM hold)"
        before = (await self._stores[0].fetch(count))[0]
        answers = await self._apply(batch)
        after = (await self._stores[0].fetch(count))[0]
        settled = sum(isinstance(answer, Settled) and answer.now for answer in answers)
        admitted = sum(isinstance(answer, Admission) and answer.verdict == "admitted" for answer in answers)
        assert after == (before[0] + settled, before[1] + admitted - settled)

    async def _apply(self, batch: list[Command]) -> list[Answer | Exception]:
        self.made += len(batch)
        postgres, fold = self._stores
        answers = await postgres.apply(batch, self.random.randrange(postgres.lanes))
        expected = await fold.apply(batch)
        for command, answer, right in zip(batch, answers, expected, strict=True):
            same = type(answer) is type(right) if isinstance(right, Exception) else answer == right
            assert same, f"{command}\n  by PostgreSQL {answer!r}\n  by the fold   {right!r}\n  in {batch}"
            self._note(command, answer)
        names = [command.id if isinstance(command, Transfer) else command.request_id for command in batch]
        self.seen["an id twice in a batch"] += len(set(names)) < len(names)
        return answers

    def _note(self, command: Command, answer: Answer | Exception) -> None:
        seen = self.seen
        match answer:
            case Exception():
                seen["broken"] += 1
            case Admission() if isinstance(command, Admit):
                seen[answer.verdict.value] += 1
                if answer.verdict == "admitted":
                    self._ids.append(command.request_id)
                    seen["standing"] += command.standing
                    seen["admitted short"] += answer.held_nanos < command.amount_nanos
            case Resized() if isinstance(command, Resize):
                seen["gone" if answer.gone else "resized"] += 1
                seen["resized short"] += not answer.gone and answer.amount_nanos < command.amount_nanos
                seen["key limited as it grew"] += answer.spend_limit is not None
                seen["revived"] += not answer.gone and command.request_id in self._expired
            case Settled() if isinstance(command, Settle):
                seen["settled" if answer.now else "recovered before" if answer.recovered else "settled before"] += 1
                seen["shortfall"] += answer.now and answer.shortfall_nanos > 0
                seen["waived"] += answer.now and command.waive and command.cost_nanos > 0
            case Expired():
                seen["expired" if answer.now else "not held"] += 1
            case Posted():
                seen["refused" if answer.refused else "posted" if answer.now else "posted before"] += 1

    async def _compare_rows(self) -> None:
        """See that both have the same rows: state in full, entries as far back as they can have come since."""
        postgres, fold = self._stores
        for table, columns in _STATE.items():
            sql = f"SELECT {columns} FROM {table} ORDER BY 1"
            ours, theirs = await postgres.fetch(sql), await fold.fetch(sql)
            assert ours == theirs, _difference(table, ours, theirs)
        wrong = [row for row in await fold.fetch(_USED) if row[1] != row[2]]
        assert not wrong, f"key, used, and what its entries and holds say: {wrong}"
        for table, (columns, key) in _ENTRIES.items():
            sql = f"SELECT {columns} FROM {table} ORDER BY at DESC, {key} LIMIT 1000"
            ours, theirs = await postgres.fetch(sql), await fold.fetch(sql)
            assert ours == theirs, _difference(table, ours, theirs)
            total = f"SELECT count(*) FROM {table}"
            assert await postgres.fetch(total) == await fold.fetch(total), table
        late = await postgres.fetch("SELECT count(*) FROM usage WHERE kind = 'late'")
        self.seen["late"] = late[0][0]

    async def _change_account(self) -> None:
        number = self.random.choice(list(self._keys))
        key_id = self.random.choice(self._keys[number])
        dice = self.random.random()
        for store in self._stores:
            if dice < 0.7:
                await set_status(store, number, "active" if dice < 0.55 else "suspended")
            elif dice < 0.8:
                await revoke_key(store, key_id, self.now_us)
        if dice >= 0.8:
            for store in self._stores:
                made, _ = await create_key(store, number, "new", "sk-cc-", self.now_us)
            self._keys[number].insert(0, made.id)

    async def _change_key(self) -> None:
        """Give a key a spend limit near what is left of it, or none; a limit of requests, or none; let it rest."""
        number = self.random.choice(list(self._keys))
        key_id, dice = self.random.choice(self._keys[number]), self.random.random()
        free = max(0, self._free.get(number, 0))
        rules = Rules(
            limit_nanos=self.random.choice((None, 0, free // 9, free // 3, free, free // 20 + 1, 10**7, MAX_NANOS)),
            resets=self.random.choice(RESETS),
            requests_per_minute=self.random.choice((None, None, 1, 7, 600)),
        )
        for store in self._stores:
            if dice < 0.1:
                await disable_key(store, key_id, self.now_us)
            elif dice < 0.3:
                await enable_key(store, key_id)
            else:
                key = next(one for one in await list_keys(store, number) if one.id == key_id)
                await change_key(
                    store, key, "k", msgspec.structs.replace(rules, expires_at_us=key.expires_at_us), self.now_us
                )

    async def _close_day(self) -> None:
        """Close today, as a clock that ran ahead would: entries of today then go to tomorrow."""
        insert = "INSERT INTO day_close VALUES (?, 0, 0, '', '', ?) ON CONFLICT DO NOTHING"
        await self._both((insert, (day_of(self.now_us), self.now_us)))
        self.seen["closed day"] += 1
        if self.random.random() < 0.5:
            self.now_us += DAY_US

    def _command(self) -> Command:
        dice = self.random.random()
        if dice < (0.5 if len(self._holds) > 20 else 0.7):
            return self._admit()
        if dice < 0.85:
            return self.random.choice((self._resize, self._resize, self._settle, self._settle, self._expire))()
        return self._transfer()

    def _tokens(self) -> int:
        """Mostly few: an account in debt is refused for that alone."""
        return self.random.choice((0, 1, 50, 911, 912) if self.random.random() < 0.9 else (6_000, 6_001, 10**7))

    def _account(self) -> int:
        return _STRANGE_ACCOUNT if self.random.random() < 0.01 else self.random.choice(list(self._keys))

    def _some_hold(self) -> tuple[bytes, int]:
        """Mostly an open hold; now and then one that has ended, another account's, or none there ever was."""
        dice = self.random.random()
        if self._holds and dice < 0.88:
            request_id, account_id, _ = self.random.choice(self._holds)
            return request_id, account_id if dice > 0.02 else self._account()
        if self._ids and dice < 0.99:
            return self.random.choice(self._ids), self._account()
        return self.random.randbytes(16), self._account()

    def _admit(self) -> Admit:
        number = self._account()
        keys = (self._keys.get(number) or [1])[: 3 if self.random.random() < 0.1 else 2]
        if self.random.random() < 0.03:
            keys = [self.random.choice((*self._keys[1], 777_777))]
        key_id = self.random.choice(keys)
        free = max(0, self._free.get(number, 0))
        if self.random.random() < 0.3:
            free = max(0, self._left.get(key_id, free))
        usual, edge = (free // 20, free // 99, 10**6), (0, 1, max(0, free - 1), free, free + 1, MAX_NANOS)
        amount = self.random.choice(usual if self.random.random() < 0.8 else edge)
        request_id = self.random.randbytes(16)
        if self._ids and self.random.random() < 0.08:
            request_id = self.random.choice(self._ids)
        return Admit(
            request_id=request_id,
            account_id=number,
            key_id=key_id,
            model=self.random.choice(("any", "", "größer \\ \"'\t$1")),
            amount_nanos=_fit(amount),
            least_nanos=_fit(self.random.choice((amount, amount, amount // 2, amount // 2, 0, 0, free, free + 1))),
            tokens=self._tokens(),
            price_version=self.random.choice((1, 2)),
            standing=self.random.random() < 0.15,
        )

    def _expire(self) -> Expire:
        return Expire(*self._some_hold())

    def _resize(self) -> Resize:
        request_id, number = self._some_hold()
        free = max(0, self._free.get(number, 0))
        amount = self.random.choice((0, 1, free // 9, free // 99, free, free * 2, 10**6, 10**7))
        return Resize(request_id, number, _fit(amount), self._tokens())

    def _settle(self) -> Settle:
        request_id, number = self._some_hold()
        amount = next((held for one, _, held in self._holds if one == request_id), 5)
        free = max(0, self._free.get(number, 0))
        usual, edge = (amount // 2, amount // 9, 10**5), (0, 1, amount, amount + free, amount + free + 1, 10**12)
        kind = self.random.choice(("exact", "exact", "exact", "estimated", "waived", "failed", "recovered"))
        waive = kind not in {"exact", "estimated"}
        if self.random.random() < 0.004:
            kind = "nonsense"
        return Settle(
            request_id=request_id,
            account_id=number,
            kind=kind,
            model=self.random.choice(("any", "claude-ü")),
            outcome=self.random.choice(("finished", "client_gone")),
            status=self.random.choice((0, 200)),
            cost_nanos=_fit(self.random.choice(usual if self.random.random() < 0.8 else edge)),
            list_nanos=self.random.choice((0, 5)),
            waive=waive,
            input_tokens=self.random.randrange(2**40),
            cache_write_5m_tokens=self.random.randrange(3),
            cache_write_1h_tokens=self.random.randrange(3),
            cache_read_tokens=self.random.randrange(3),
            output_tokens=self.random.randrange(3),
            web_searches=self.random.randrange(3),
            limited_tokens=self._tokens(),
            detail=self.random.choice((None, "", '{"a": "b\\n"}')),
            stop_reason=self.random.choice((None, "end_turn")),
            message_id=self.random.choice((None, "msg_\U0001f600", "'; --")),
            upstream=self.random.choice((None, "u")),
            upstream_request_id=self.random.choice((None, "req")),
            attempts=self.random.randrange(3),
            streamed=self.random.random() < 0.5,
            first_byte_us=self.random.choice((None, 0, 7)),
            duration_us=self.random.randrange(100),
            session=self.random.choice((None, "5fe5")),
            agent=self.random.choice((None, "a1")),
            parent_agent=self.random.choice((None, "a0")),
            held_nanos=self.random.choice((None, 0, amount)),
            tries=self.random.choice((None, '[{"status":529}]')),
        )

    def _transfer(self) -> Transfer:
        if self._posted and self.random.random() < 0.2:
            return self.random.choice(self._posted)
        one, two = self._account(), self._account()
        free = max(0, self._free.get(one, 0))
        customer, other = customer_account(one), customer_account(two)
        debit, credit, code = self.random.choice(
            (
                ("house:cash", customer, "deposit"),
                ("house:cash", customer, "deposit"),
                ("house:promotion", customer, "promotion"),
                (customer, "house:cash", "deposit"),  # a deposit undone
                (customer, "house:adjustments", "debit"),
                (customer, other, "gift"),
                ("house:cash", "house:adjustments", "audit"),
            )
        )
        amounts = (1, 10**6, 10**8, 10**9, free, free + 1, max(1, free // 2))
        name = f"t{self._transfers}"
        self._transfers += 1
        if self._posted and self.random.random() < 0.03:
            name = self.random.choice(self._posted).id
        amount = self.random.choice(amounts) if self.random.random() < 0.99 else self.random.choice((0, MAX_NANOS))
        made = Transfer(
            id=name,
            debit_account=debit,
            credit_account=credit,
            amount_nanos=_fit(amount),
            code=code,
            actor="test",
            memo="'$1 \\",
        )
        self._posted.append(made)
        return made


def _fit(nanos: int) -> int:
    """Keep an amount to 64 bits, as its makers do."""
    return min(nanos, MAX_NANOS)


def _difference(table: str, ours: list[tuple[object, ...]], theirs: list[tuple[object, ...]]) -> str:
    only_ours, only_theirs = set(ours) - set(theirs), set(theirs) - set(ours)
    return f"{table}: PostgreSQL alone has {list(only_ours)[:3]}, the fold alone {list(only_theirs)[:3]}"
