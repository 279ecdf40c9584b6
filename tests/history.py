"""Books with a past, written by the ledger itself: customers with keys, calls of every kind, money that came and went.

Days lie behind them, closed by digests. All by the rules, so that the audit holds; nothing depends on the kind of
database.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.billing.ledger import Admission, Admit, Expire, Settle, Verdict
from farebox.billing.plans import Plan, Plans
from farebox.billing.pricing import Catalogue
from farebox.billing.usage import Line, Usage
from farebox.books.days import close_days
from farebox.books.ledger import Ledger, credit, debit
from farebox.books.prices import pin_prices
from farebox.books.runs import Runs
from farebox.clock import DAY_US, US_PER_S
from farebox.config.load import default_offer
from farebox.ids import new_request_id
from farebox.money import NANOS_PER_USD
from farebox.store.open import open_store
from farebox.store.protocol import Store

PLANS: Final = Plans([Plan("free", 10**6, 10**12, 10**6), Plan("pro", 10**6, 10**12, 10**6)])
BEGIN_US: Final = 1_790_000_000 * US_PER_S
"""In September 2026."""
_DAYS: Final = 3
_CROWD: Final = 200
_KINDS: Final = ("exact", "exact", "exact", "exact", "estimated", "waived", "failed")
_MODELS: Final = ("claude-sonnet-4-6", "claude-haiku-4-5")


class History(msgspec.Struct, frozen=True):
    """What was written: whose key is whose, and what every account must have."""

    keys: dict[str, str]
    """The key of each customer, by email address."""
    balances: dict[str, int]
    calls: int


class _Writer:
    def __init__(self, store: Store, ledger: Ledger, catalogue: Catalogue) -> None:
        self.store = store
        self.ledger = ledger
        self.catalogue = catalogue
        self.key_ids: dict[int, int] = {}

    async def customer(self, email: str, now_us: int) -> str:
        account = await create_account(self.store, email, "pro", now_us)
        key, text = await create_key(self.store, account.id, "laptop", "sk-cc-", now_us)
        self.key_ids[account.id] = key.id
        money = credit(f"open:{account.id}", account.id, 500 * NANOS_PER_USD, code="deposit", actor="test", memo="wire")
        await self.ledger.post(money)
        return text

    async def admit(self, account_id: int, model: str, now_us: int) -> bytes:
        request_id = new_request_id(now_us)
        admission = await self.ledger.admit(
            Admit(
                request_id=request_id,
                account_id=account_id,
                key_id=self.key_ids[account_id],
                model=model,
                amount_nanos=NANOS_PER_USD,
                least_nanos=1,
                tokens=10,
                price_version=self.catalogue.version,
            )
        )
        assert isinstance(admission, Admission)
        assert admission.verdict is Verdict.ADMITTED, admission
        return request_id

    async def call(self, number: int, now_us: int) -> None:
        """Serve one call; which kind follows from its number."""
        account_ids = list(self.key_ids)
        account_id, model = account_ids[number % len(account_ids)], _MODELS[number % len(_MODELS)]
        kind = _KINDS[number % len(_KINDS)]
        request_id = await self.admit(account_id, model, now_us)
        await self.ledger.settle(self.settlement(request_id, account_id, model, kind, number))

    def settlement(self, request_id: bytes, account_id: int, model: str, kind: str, number: int) -> Settle:
        tokens = 0 if kind == "failed" else number % 5_000 + 1
        usage = Usage((Line(model, input=tokens, cache_write_5m=tokens // 3, output=tokens // 2),))
        priced = self.catalogue.price(usage, self.catalogue.models[model])
        return Settle(
            request_id=request_id,
            account_id=account_id,
            kind=kind,
            model=model,
            outcome={"exact": "finished", "estimated": "client_gone", "waived": "upstream_broke"}.get(kind, "refused"),
            status=200 if tokens else 400,
            cost_nanos=priced.cost_nanos,
            list_nanos=priced.list_nanos,
            waive=kind == "waived",
            input_tokens=tokens,
            cache_write_5m_tokens=tokens // 3,
            output_tokens=tokens // 2,
            detail=msgspec.json.encode(usage).decode() if number % 10 == 0 and tokens else None,
            stop_reason="end_turn" if tokens else None,
            message_id=f"msg_ä{number}",
            upstream="anthropic",
            attempts=1,
            streamed=bool(number % 2),
            first_byte_us=1_000 + number if tokens else None,
            duration_us=2_000 + number,
        )


@asynccontextmanager
async def _opened(url: str, clock: list[int]) -> AsyncIterator[_Writer]:
    store = await open_store(url, plans=PLANS, clock=lambda: clock[0], serving=True)
    try:
        ledger = Ledger(store)
        models, _ = default_offer()
        catalogue = await pin_prices(store, tuple(models), clock[0])
        runs = Runs(store, ledger, lease_s=30, warn=lambda *_, **__: None)
        await runs.begin(clock[0])
        yield _Writer(store, ledger, catalogue)
        await ledger.drained()
        await runs.end(clock[0])
    finally:
        await store.close()


async def write_history(url: str, *, calls: int = 300, customers: int = 5, in_flight: int = 0) -> History:
    """Fill empty books; `in_flight` calls are left without an end, as by a process that died."""
    clock = [BEGIN_US]
    async with _opened(url, clock) as writer:
        keys = {}
        for number in range(customers):
            email = f"customer{number}@example.com"
            keys[email] = await writer.customer(email, clock[0])
        for begin in range(0, calls, _CROWD):
            numbers = range(begin, min(begin + _CROWD, calls))
            await asyncio.gather(*(writer.call(number, clock[0] + number) for number in numbers))
            clock[0] += _DAYS * DAY_US * len(numbers) // calls
        ids = list(writer.key_ids)
        await writer.ledger.post(credit("gift:1", ids[0], 7, code="promotion", actor="test", memo="süß"))
        await writer.ledger.post(debit("back:1", ids[1], 5 * NANOS_PER_USD, actor="test", memo=""))
        clock[0] += DAY_US
        assert len(await close_days(writer.store, clock[0])) >= _DAYS
        await writer.call(1, clock[0])
        late = await writer.admit(ids[2], _MODELS[0], clock[0])
        await writer.ledger.expire(Expire(late, ids[2]))
        await writer.ledger.settle(writer.settlement(late, ids[2], _MODELS[0], "exact", 77))
        for _ in range(in_flight):
            await writer.admit(ids[0], _MODELS[0], clock[0])
        rows = await writer.store.fetch("SELECT email, posted_nanos FROM account")
    return History(keys, dict(rows), calls + 2)
