"""What pages and calls cost on given books: every query that a page makes, and a hold and its settlement."""

import asyncio
import statistics
import time
from typing import Any, Final

import msgspec

from farebox.accounts.keys import create_key
from farebox.billing.ledger import Admission, Admit, Settle, Verdict
from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger
from farebox.clock import DAY_US, day_of
from farebox.ids import new_request_id
from farebox.store.open import open_store
from farebox.store.protocol import Row, Store
from tests.stage import Person, Stage
from tests.web.browse import Browser, enter
from tests.web.operators import enter_admin

PLANS: Final = Plans([Plan("pro", 10**7, 10**12, 10**6)])
FIRST: Final = "customer1@example.com"


class Cost(msgspec.Struct):
    """What one page cost: its own times, and those of its slowest query, in milliseconds."""

    name: str
    page_ms: list[float]
    query_ms: list[float]
    slowest: str = ""


class Watch:
    """Times every read of a store."""

    def __init__(self, store: Any) -> None:
        self._fetch = store.fetch
        self.seen: list[tuple[float, str, tuple[Any, ...]]] = []
        self.asked: dict[str, tuple[Any, ...]] = {}
        store.fetch = self

    async def __call__(self, sql: str, params: tuple[Any, ...] = (), **others: Any) -> list[Row]:
        began = time.perf_counter()
        rows: list[Row] = await self._fetch(sql, params, **others)
        self.asked[sql] = params
        self.seen.append((1000 * (time.perf_counter() - began), sql, params))
        return rows


def paths_of(now_us: int, request_id: bytes, session: str, key_id: int) -> list[str]:
    """Name the pages and answers that a customer sees."""
    return [
        "/dashboard",
        "/dashboard/usage",
        "/dashboard/usage?range=24h",
        "/dashboard/usage?range=90d&by=key",
        f"/dashboard/usage?day={day_of(now_us - 50 * DAY_US)}",
        "/dashboard/requests",
        "/dashboard/requests?since=24h&status=client_gone",
        "/dashboard/requests?model=claude-opus-4-6&status=client_gone",
        f"/dashboard/requests?session={session}",
        f"/dashboard/requests/req_{request_id.hex()}",
        "/dashboard/keys",
        f"/dashboard/keys/{key_id}",
        "/dashboard/limits",
        "/dashboard/agents",
        "/dashboard/agents?range=90d",
        f"/dashboard/agents/of/{session}",
        "/dashboard/transactions",
        "/dashboard/receipts",
        f"/dashboard/receipts/month/{day_of(now_us - 20 * DAY_US)[:7]}",
        "/dashboard/doctor",
        "/dashboard/topup",
        "/dashboard/live/head",
    ]


def paths_of_operator(request_id: bytes) -> list[str]:
    return [
        "/admin",
        "/admin?range=24h",
        "/admin/customers",
        "/admin/customers/1",
        "/admin/ledger",
        "/admin/ledger?account=1",
        f"/admin/ledger/entry?id=req_{request_id.hex()}",
        "/admin/upstreams",
        "/admin/audit",
    ]


async def visit(stage: Stage, rounds: int) -> tuple[list[Cost], Watch]:
    """Open every page so many times, and ask the customer's part of the API; answers also what was asked."""
    now_us = stage.gateway.clock()
    newest = "SELECT request_id, session, key_id FROM usage WHERE account_id = 1 AND session IS NOT NULL "
    ((request_id, session, key_id),) = await stage.rows(newest + "ORDER BY at DESC LIMIT 1")
    watch = Watch(stage.gateway.store)
    customer, operator = await enter(stage, FIRST), await enter_admin(stage)
    costs = []
    for browser, paths in (
        (customer, paths_of(now_us, request_id, session, key_id)),
        (operator, paths_of_operator(request_id)),
    ):
        costs += [await _measure(watch, path, _opened(browser, path), rounds) for path in paths]
    _, key = await create_key(stage.gateway.store, 1, "measured", "sk-cc-", now_us)
    person = Person(1, FIRST, key)
    for path in (
        "/v1/balance",
        "/v1/usage?by=model",
        f"/v1/usage?by=key&from={day_of(now_us - 80 * DAY_US)}",
        "/v1/key",
        f"/v1/requests/req_{request_id.hex()}",
        f"/v1/statusline?session={session}",
        "/v1/doctor",
    ):
        costs.append(await _measure(watch, path, _asked(stage, person, path), rounds))
    return costs, watch


def _opened(browser: Browser, path: str) -> Any:
    async def open_it() -> int:
        return (await browser.get(path)).status

    return open_it


def _asked(stage: Stage, person: Person, path: str) -> Any:
    async def ask() -> int:
        answer = await stage.client.request("GET", path, [(b"x-api-key", person.key.encode())], b"", first_byte_s=30)
        await answer.read(2**26)
        return answer.status

    return ask


async def _measure(watch: Watch, name: str, work: Any, rounds: int) -> Cost:
    cost, worst = Cost(name, [], []), 0.0
    for _ in range(rounds):
        while True:
            watch.seen.clear()
            began = time.perf_counter()
            status = await work()
            if status != 429:
                break
            await asyncio.sleep(1)  # so many questions in a minute an account is not answered: it is asked again later
        cost.page_ms.append(1000 * (time.perf_counter() - began))
        assert status == 200, (name, status)
        took, sql, _ = max(watch.seen, default=(0.0, "", ()))
        cost.query_ms.append(took)
        if took >= worst:
            worst, cost.slowest = took, sql
    return cost


class Till:
    """Holds and settles calls of one account, one after the other."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._ledger = Ledger(store)
        self.admit_us: list[float] = []
        self.settle_us: list[float] = []

    async def serve(self, calls: int, now_us: int) -> None:
        for _ in range(calls):
            request_id = new_request_id(now_us)
            began = time.perf_counter()
            admitted = await self._ledger.admit(Admit(request_id, 1, 1, "claude-sonnet-4-6", 10**6, 1, 10, 1))
            between = time.perf_counter()
            assert isinstance(admitted, Admission)
            assert admitted.verdict is Verdict.ADMITTED, admitted
            await self._ledger.settle(
                Settle(
                    request_id=request_id,
                    account_id=1,
                    kind="exact",
                    model="claude-sonnet-4-6",
                    outcome="finished",
                    status=200,
                    cost_nanos=1000,
                    list_nanos=2000,
                    input_tokens=1,
                    limited_tokens=10,
                )
            )
            self.admit_us.append(1e6 * (between - began))
            self.settle_us.append(1e6 * (time.perf_counter() - between))


async def compare_calls(empty_url: str, full_url: str, now_us: int, rounds: int) -> tuple[Till, Till]:
    """Hold and settle on empty and on full books by turns, so that what else the machine does is in both alike."""
    tills = []
    for url in (empty_url, full_url):
        store = await open_store(url, plans=PLANS, clock=lambda: now_us, serving=True)
        store.run_id = 1
        tills.append(Till(store))
    empty, full = tills
    try:
        for till in tills:
            await till.serve(100, now_us)
            till.admit_us.clear()
            till.settle_us.clear()
        for turn in range(rounds):
            for till in tills if turn % 2 else tills[::-1]:
                await till.serve(20, now_us)
    finally:
        await asyncio.gather(*(till.store.close() for till in tills))
    return empty, full


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
