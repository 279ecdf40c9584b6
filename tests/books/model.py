"""The ledger's rules once more, written from the design alone: plain dictionaries, rational token buckets, no SQL.

Shares no code with billing/ledger.py or the stores; only the commands and answers are theirs.
"""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from farebox.billing.ledger import (
    Admission,
    Admit,
    Answer,
    Command,
    Posted,
    Resize,
    Resized,
    Settle,
    Settled,
    Transfer,
    Verdict,
)
from farebox.billing.plans import Plan
from farebox.money import MAX_NANOS

_MINUTE_NS = 60 * 10**9


@dataclass
class Bucket:
    """A leaking bucket of `size` a minute, full at first. Exact."""

    size: int
    level: Fraction = Fraction(0)
    at_ns: int = 0

    def __post_init__(self) -> None:
        self.level = Fraction(self.size)

    def refill(self, now_ns: int) -> None:
        flowed = Fraction((now_ns - self.at_ns) * self.size, _MINUTE_NS)
        self.level = max(Fraction(-10 * self.size), min(Fraction(self.size), self.level + flowed))
        self.at_ns = now_ns

    def wait_ns(self, amount: int) -> int:
        missing = min(amount, self.size) - self.level
        return max(0, math.ceil(missing * _MINUTE_NS / self.size))

    @property
    def left(self) -> int:
        return max(0, min(self.size, math.floor(self.level)))


@dataclass
class ModelAccount:
    plan: Plan
    requests: Bucket
    tokens: Bucket
    active: bool = True
    posted: int = 0
    topped_up: int = 0
    keys: set[int] = field(default_factory=set)


@dataclass
class ModelHold:
    account: int
    amount: int
    tokens: int


class Poisoned(Exception):
    """A command that breaks an invariant."""


class Model:
    def __init__(self) -> None:
        self.accounts: dict[int, ModelAccount] = {}
        self.holds: dict[bytes, ModelHold] = {}
        self.settled: dict[bytes, tuple[int, int]] = {}
        self.recovered: set[bytes] = set()
        self.transfers: set[str] = set()
        self.seen: Counter[str] = Counter()

    def open_account(self, account_id: int, plan: Plan, keys: set[int]) -> None:
        buckets = Bucket(plan.requests_per_minute), Bucket(plan.tokens_per_minute)
        self.accounts[account_id] = ModelAccount(plan, *buckets, keys=keys)

    def held(self, account_id: int) -> int:
        return sum(hold.amount for hold in self.holds.values() if hold.account == account_id)

    def count(self, account_id: int) -> int:
        return sum(hold.account == account_id for hold in self.holds.values())

    def free(self, account_id: int) -> int:
        return self.accounts[account_id].posted - self.held(account_id)

    def apply(self, batch: list[Command], now_us: int) -> list[Answer | None]:
        """Answer a batch; None for a command that is refused as broken, which leaves the others alone."""
        answers: dict[int, Answer | None] = {}
        for kind in (Settle, Transfer, Resize, Admit):
            for place, command in enumerate(batch):
                if type(command) is kind:
                    answers[place] = self._one(command, now_us * 1000)
        return [answers[place] for place in range(len(batch))]

    def _one(self, command: Command, now_ns: int) -> Answer | None:
        match command:
            case Settle() if self._hold(command) is None and command.request_id not in self.settled:
                self.seen["poisoned"] += 1
                answer: Any = None
            case Admit():
                answer = self._admit(command, now_ns)
                self.seen[answer.verdict.value] += 1
            case Resize():
                answer = self._resize(command, now_ns)
                self.seen["gone" if answer.gone else "resized"] += 1
                self.seen["resized short"] += answer.amount_nanos < command.amount_nanos and not answer.gone
            case Settle():
                answer = self._settle(command, now_ns)
                self.seen["settled" if answer.now else "settled before"] += 1
                self.seen["shortfall"] += answer.shortfall_nanos > 0
                self.seen["waived"] += command.waive and command.cost_nanos > 0
            case Transfer():
                answer = self._post(command)
                self.seen["refused" if answer.refused else "posted" if answer.now else "posted before"] += 1
        return answer  # type: ignore[no-any-return]

    def _admit(self, command: Admit, now_ns: int) -> Admission:
        account = self.accounts.get(command.account_id)
        if account is None or command.key_id not in account.keys:
            return Admission(Verdict.KEY_INVALID)
        if command.request_id in self.holds or command.request_id in self.settled:
            return Admission(Verdict.DUPLICATE)
        account.requests.refill(now_ns)
        account.tokens.refill(now_ns)
        free = self.free(command.account_id)
        wait = 0
        if not account.active:
            verdict = Verdict.SUSPENDED
        elif wait := account.requests.wait_ns(1):
            verdict = Verdict.REQUESTS_LIMITED
        elif wait := account.tokens.wait_ns(command.tokens):
            verdict = Verdict.TOKENS_LIMITED
        elif self.count(command.account_id) >= account.plan.concurrent:
            verdict = Verdict.TOO_MANY_AT_ONCE
        elif free <= 0 or free < command.least_nanos:
            verdict = Verdict.INSUFFICIENT
        else:
            account.requests.level -= 1
            account.tokens.level -= command.tokens
            held = min(free, command.amount_nanos)
            self.holds[command.request_id] = ModelHold(command.account_id, held, command.tokens)
            return Admission(Verdict.ADMITTED, held, free)
        return Admission(verdict, 0, free, wait)

    def _resize(self, command: Resize, now_ns: int) -> Resized:
        hold = self._hold(command)
        if hold is None:
            return Resized(0, gone=True)
        amount = min(command.amount_nanos, hold.amount + self.free(hold.account))
        self._spend(hold.account, command.tokens - hold.tokens, now_ns)
        self.holds[command.request_id] = replace(hold, amount=amount, tokens=command.tokens)
        return Resized(amount)

    def _settle(self, command: Settle, now_ns: int) -> Settled:
        if command.request_id in self.settled:
            recovered = command.request_id in self.recovered
            return Settled(*self.settled[command.request_id], now=False, recovered=recovered)
        hold = self.holds.pop(command.request_id)
        charged = 0 if command.waive else min(command.cost_nanos, self.free(hold.account))
        shortfall = 0 if command.waive else command.cost_nanos - charged
        self.accounts[hold.account].posted -= charged
        self._spend(hold.account, command.limited_tokens - hold.tokens, now_ns)
        self.settled[command.request_id] = charged, shortfall
        if command.kind == "recovered":
            self.recovered.add(command.request_id)
        return Settled(charged, shortfall, now=True)

    def _hold(self, command: Resize | Settle) -> ModelHold | None:
        hold = self.holds.get(command.request_id)
        return hold if hold is not None and hold.account == command.account_id else None

    def _post(self, transfer: Transfer) -> Posted:
        if transfer.id in self.transfers:
            return Posted(now=False)
        legs = [
            (int(name.removeprefix("customer:")), sign * transfer.amount_nanos)
            for name, sign in ((transfer.debit_account, -1), (transfer.credit_account, 1))
            if name.startswith("customer:")
        ]
        for account_id, amount in legs:
            if self.free(account_id) + amount < 0 or self.accounts[account_id].posted + amount > MAX_NANOS:
                return Posted(now=False, refused="refused")
        for account_id, amount in legs:
            self.accounts[account_id].posted += amount
            self.accounts[account_id].topped_up += amount if transfer.code == "deposit" else 0
        self.transfers.add(transfer.id)
        return Posted(now=True)

    def _spend(self, account_id: int, tokens: int, now_ns: int) -> None:
        bucket = self.accounts[account_id].tokens
        bucket.refill(now_ns)
        bucket.level -= tokens
