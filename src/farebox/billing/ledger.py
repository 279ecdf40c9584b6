"""The ledger's rules: what admitting, resizing, settling and posting do to an account. Pure; the stores apply them.

Commands go in, answers come out. Each command carries an id chosen before its first try, so that delivering it
twice changes nothing. A batch is folded one command after the other: a refused call never blocks a later one that
fits. No other code moves money (promises 3 and 4).
"""

from enum import StrEnum
from typing import Final

import msgspec

from farebox.billing.budgets import Resets, period_start_us
from farebox.billing.plans import Plan
from farebox.billing.ratelimit import Level, level, settle_state, spend, wait_ns
from farebox.errors import BrokenInvariant
from farebox.money import MAX_NANOS


class Admit(msgspec.Struct, frozen=True, tag="admit", omit_defaults=True):
    """Let a call in: take a request and `tokens` from its plan's buckets and hold money, or do nothing.

    `amount_nanos` is held if it is free, of the balance and of what its key may spend, else all that is free, as long
    as that is at least `least_nanos`. A `standing` hold waits for its item of a batch: it takes nothing of the limits
    of calls, counts among no calls at once, and belongs to no process that could die.
    """

    request_id: bytes
    account_id: int
    key_id: int
    model: str
    amount_nanos: int
    least_nanos: int
    tokens: int
    price_version: int
    standing: bool = False


class Resize(msgspec.Struct, frozen=True, tag="resize"):
    """Bring a hold to `amount_nanos`, or as near to it as balance and key go, and its bucket share to `tokens`.

    A hold that had expired is taken up again: its process was only paused.
    """

    request_id: bytes
    account_id: int
    amount_nanos: int
    tokens: int


class Settle(msgspec.Struct, frozen=True, kw_only=True, tag="settle", omit_defaults=True):
    """End a hold, once: charge `cost_nanos` (or waive it), release the rest, write the usage row.

    What has its default is not sent: postgres_ledger.sql knows these.
    """

    request_id: bytes
    account_id: int
    kind: str
    model: str
    outcome: str
    status: int
    cost_nanos: int = 0
    list_nanos: int = 0
    waive: bool = False
    input_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    web_searches: int = 0
    limited_tokens: int = 0
    detail: str | None = None
    stop_reason: str | None = None
    message_id: str | None = None
    upstream: str | None = None
    upstream_request_id: str | None = None
    attempts: int = 0
    streamed: bool = False
    first_byte_us: int | None = None
    duration_us: int = 0
    session: str | None = None
    agent: str | None = None
    parent_agent: str | None = None
    held_nanos: int | None = None
    tries: str | None = None


class Expire(msgspec.Struct, frozen=True, tag="expire"):
    """Give back the money of a hold whose process seems dead, and keep an empty hold: its settle may still come."""

    request_id: bytes
    account_id: int


class Transfer(msgspec.Struct, frozen=True, kw_only=True, tag="transfer"):
    """Move money from one account to another. Customers are `customer_account(id)`, all others "house:…"."""

    id: str
    debit_account: str
    credit_account: str
    amount_nanos: int
    code: str
    actor: str
    memo: str


Command = Admit | Resize | Settle | Expire | Transfer


class Verdict(StrEnum):
    ADMITTED = "admitted"
    DUPLICATE = "duplicate"
    KEY_INVALID = "key_invalid"
    SUSPENDED = "suspended"
    REQUESTS_LIMITED = "requests_limited"
    KEY_REQUESTS_LIMITED = "key_requests_limited"
    TOKENS_LIMITED = "tokens_limited"
    TOO_MANY_AT_ONCE = "too_many_at_once"
    INSUFFICIENT = "insufficient"
    KEY_LIMITED = "key_limited"


class SpendLimit(msgspec.Struct, frozen=True):
    """The spend limit of a call's key, and what was left of it before the call. Below zero: overrun."""

    limit_nanos: int
    left_nanos: int
    resets: Resets


class Admission(msgspec.Struct, frozen=True):
    """The answer to Admit. `free_nanos` is what was free before it; the levels are after it."""

    verdict: Verdict
    held_nanos: int = 0
    free_nanos: int = 0
    retry_after_ns: int = 0
    requests: Level | None = None
    tokens: Level | None = None
    concurrent: int = 0
    spend_limit: SpendLimit | None = None
    """Of its key, where it has one: with ADMITTED and KEY_LIMITED."""


class Resized(msgspec.Struct, frozen=True):
    """The answer to Resize: what is held now. `gone` when there was no such hold (any more).

    `spend_limit` where that is less than what was asked for, and less than the balance would have allowed.
    """

    amount_nanos: int
    gone: bool = False
    spend_limit: SpendLimit | None = None


class Settled(msgspec.Struct, frozen=True):
    """The answer to Settle. `now` is false when it had been settled before; the figures are then those of that time.

    `recovered` when it had been ended free of charge in its process's stead: nothing of it may be delivered any more.
    """

    charged_nanos: int
    shortfall_nanos: int
    now: bool
    recovered: bool = False


class Expired(msgspec.Struct, frozen=True):
    """The answer to Expire: what was given back. `now` is false when there was no such hold, or it had expired."""

    released_nanos: int
    now: bool


class Posted(msgspec.Struct, frozen=True):
    """The answer to a Transfer: `now` is false when it had been posted before; `refused` says why it cannot be."""

    now: bool
    refused: str | None = None


Answer = Admission | Resized | Settled | Expired | Posted

NO_RUN: Final = -1
"""The run that standing holds name. What process died or came back says nothing of them."""
ORDER: Final = (Settle, Expire, Transfer, Resize, Admit)
"""How a batch is folded. Released money is usable in the same batch: what gives comes before what takes."""

_CUSTOMER: Final = "customer:"


def customer_account(account_id: int) -> str:
    """Name a customer's account in transfers."""
    return f"{_CUSTOMER}{account_id}"


def customer_id(account: str) -> int | None:
    """Give the id behind a customer account's name; None for a house account."""
    return int(account.removeprefix(_CUSTOMER)) if account.startswith(_CUSTOMER) else None


class Hold(msgspec.Struct):
    """Money set aside for one call in flight, and the tokens it has taken from the bucket so far.

    `created_us` says which period of its key's budget it belongs to.
    """

    request_id: bytes
    account_id: int
    key_id: int
    model: str
    amount_nanos: int
    tokens: int
    price_version: int
    created_us: int = 0
    expired: bool = False
    standing: bool = False


def kind_of(command: Settle, hold: Hold) -> str:
    """Name how a call ended: one that is charged although its hold had expired is late."""
    return "late" if hold.expired and command.kind in {"exact", "estimated"} else command.kind


class Budget(msgspec.Struct):
    """What a key may spend in a period, and what is used of that: charged and held in the present one.

    A hold is counted when it is no older than the period, and so is a charge: an entry of the key is never older. What
    is held from the period before is therefore not counted, and what it is charged is. A hold that grows belongs to the
    present period: else each call that runs into it could have all of it.
    """

    limit_nanos: int
    resets: Resets
    since_us: int
    used_nanos: int

    @property
    def left_nanos(self) -> int:
        return self.limit_nanos - self.used_nanos

    def at(self, now_us: int) -> "Budget":
        """Give it as it is in the period of a moment. That of an earlier one is the present one."""
        since_us = period_start_us(self.resets, now_us)
        if since_us <= self.since_us:
            return Budget(self.limit_nanos, self.resets, self.since_us, self.used_nanos)
        return Budget(self.limit_nanos, self.resets, since_us, 0)

    def told(self) -> SpendLimit:
        return SpendLimit(self.limit_nanos, self.left_nanos, self.resets)

    def counts(self, hold: Hold) -> bool:
        return hold.created_us >= self.since_us

    def most(self, hold: Hold) -> int:
        """Give how large a hold may become. One that is not counted is not made to pay for what is."""
        left = max(0, self.left_nanos)
        return hold.amount_nanos + left if self.counts(hold) else max(hold.amount_nanos, left)

    def move(self, hold: Hold, nanos: int) -> None:
        """Take note that a hold is to grow by so much (negative: to shrink)."""
        if self.counts(hold):
            self.used_nanos = max(0, self.used_nanos + nanos)
        elif nanos > 0:
            self.used_nanos += hold.amount_nanos + nanos
            hold.created_us = self.since_us


class Pace(msgspec.Struct):
    """A key's own limit of requests a minute, and the state of its bucket."""

    per_minute: int
    full_ns: int


class Account(msgspec.Struct):
    """An account's balance and limits while commands are folded over it. The store loads it and writes it back."""

    id: int
    status: str
    plan: str
    posted_nanos: int
    held_nanos: int
    open_holds: int
    topped_up_nanos: int
    requests_full_ns: int
    tokens_full_ns: int

    @property
    def free_nanos(self) -> int:
        return self.posted_nanos - self.held_nanos

    def admit(
        self, command: Admit, plan: Plan, now_ns: int, budget: Budget | None = None, pace: Pace | None = None
    ) -> Admission:
        """Hold the amount if status, limits, free balance and the key's own limits allow; otherwise change nothing."""
        requests_full = settle_state(self.requests_full_ns, now_ns)
        tokens_full = settle_state(self.tokens_full_ns, now_ns)
        free = self.free_nanos
        is_call = not command.standing
        if not is_call:
            pace = None
        verdict, wait, held, spend_limit = Verdict.ADMITTED, 0, 0, None
        if self.status != "active":
            verdict = Verdict.SUSPENDED
        elif is_call and (wait := wait_ns(requests_full, now_ns, 1, plan.requests_per_minute)):
            verdict = Verdict.REQUESTS_LIMITED
        elif pace is not None and (wait := wait_ns(settle_state(pace.full_ns, now_ns), now_ns, 1, pace.per_minute)):
            verdict = Verdict.KEY_REQUESTS_LIMITED
        elif is_call and (wait := wait_ns(tokens_full, now_ns, command.tokens, plan.tokens_per_minute)):
            verdict = Verdict.TOKENS_LIMITED
        elif is_call and self.open_holds >= plan.concurrent:
            verdict = Verdict.TOO_MANY_AT_ONCE
        elif command.least_nanos > free or free <= 0:
            verdict = Verdict.INSUFFICIENT
        elif budget is not None and (command.least_nanos > budget.left_nanos or budget.left_nanos <= 0):
            verdict, spend_limit = Verdict.KEY_LIMITED, budget.told()
        else:
            if is_call:
                requests_full = spend(requests_full, 1, plan.requests_per_minute)
                tokens_full = spend(tokens_full, command.tokens, plan.tokens_per_minute)
                self.requests_full_ns, self.tokens_full_ns = requests_full, tokens_full
                self.open_holds += 1
            held = min(command.amount_nanos, free)
            if pace is not None:
                pace.full_ns = spend(settle_state(pace.full_ns, now_ns), 1, pace.per_minute)
            if budget is not None:
                spend_limit = budget.told()
                held = min(held, budget.left_nanos)
                budget.used_nanos += held
            self.held_nanos += held
            self._check()
        return Admission(
            verdict,
            held,
            free,
            wait,
            level(requests_full, now_ns, plan.requests_per_minute),
            level(tokens_full, now_ns, plan.tokens_per_minute),
            plan.concurrent,
            spend_limit,
        )

    def resize(self, hold: Hold, command: Resize, plan: Plan, now_ns: int, budget: Budget | None = None) -> Resized:
        """Grow or shrink a hold; growth stops at the free balance, and where its key may spend no more."""
        if hold.expired:
            self.open_holds += not hold.standing
            hold.expired = False
        granted = min(command.amount_nanos, hold.amount_nanos + self.free_nanos)
        spend_limit = None
        if budget is not None:
            if budget.most(hold) < granted:
                granted, spend_limit = budget.most(hold), budget.told()
            budget.move(hold, granted - hold.amount_nanos)
        self.held_nanos += granted - hold.amount_nanos
        self._take_tokens(command.tokens - hold.tokens, plan, now_ns)
        hold.amount_nanos, hold.tokens = granted, command.tokens
        self._check()
        return Resized(granted, spend_limit=spend_limit)

    def settle(self, hold: Hold, command: Settle, plan: Plan, now_ns: int, budget: Budget | None = None) -> Settled:
        """Charge at most hold + free balance; what is left of the cost is shortfall, booked and never forgotten.

        The key's limit does not lessen a charge: what the upstream sent beyond it is owed all the same.
        """
        self._release(hold, budget)
        charged = 0 if command.waive else min(command.cost_nanos, self.free_nanos)
        self.posted_nanos -= charged
        if budget is not None:
            budget.used_nanos += charged
        self._take_tokens(command.limited_tokens - hold.tokens, plan, now_ns)
        self._check()
        return Settled(charged, 0 if command.waive else command.cost_nanos - charged, now=True)

    def expire(self, hold: Hold, budget: Budget | None = None) -> int:
        """Give back what a hold holds, and its place among the calls at once. Answers how much it was."""
        released = hold.amount_nanos
        self._release(hold, budget)
        self._check()
        return released

    def refuses(self, amount_nanos: int) -> str | None:
        """Say why the balance cannot move by an amount (negative: a debit); None when it can."""
        if -amount_nanos > self.free_nanos:
            return f"the free balance of account {self.id} is {self.free_nanos} nano-dollars, less than {-amount_nanos}"
        if self.posted_nanos + amount_nanos > MAX_NANOS:
            return f"account {self.id} would hold more than a 64-bit amount"
        return None

    def post(self, amount_nanos: int, code: str) -> None:
        """Move the balance by an amount that it does not refuse."""
        self.posted_nanos += amount_nanos
        if code == "deposit":
            self.topped_up_nanos += amount_nanos
        self._check()

    def _release(self, hold: Hold, budget: Budget | None) -> None:
        if budget is not None:
            budget.move(hold, -hold.amount_nanos)
        self.held_nanos -= hold.amount_nanos
        self.open_holds -= not (hold.expired or hold.standing)
        hold.amount_nanos, hold.expired = 0, True

    def _take_tokens(self, tokens: int, plan: Plan, now_ns: int) -> None:
        if tokens:
            state = settle_state(self.tokens_full_ns, now_ns)
            self.tokens_full_ns = spend(state, tokens, plan.tokens_per_minute)

    def _check(self) -> None:
        if self.held_nanos < 0 or self.posted_nanos < self.held_nanos or self.open_holds < 0:
            raise BrokenInvariant(
                f"account {self.id}: posted {self.posted_nanos}, held {self.held_nanos}, open holds {self.open_holds}"
            )
