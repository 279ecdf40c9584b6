"""What pages and calls cost on given books: every query that a page or report makes, and a hold and its settlement."""

import asyncio
import statistics
import time
from typing import Any, Final

import msgspec

from farebox.accounts.accounts import find_account, list_accounts
from farebox.accounts.keys import create_key
from farebox.billing.ledger import Admission, Admit, Settle, Verdict
from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger
from farebox.books.reports import calls, count_calls, entries, totals
from farebox.books.retention import kept
from farebox.clock import DAY_US, day_of
from farebox.ids import new_request_id
from farebox.store.open import open_store
from farebox.store.protocol import Row, Store
from tests.stage import Person, Stage
from tests.web.browse import Browser, enter
from tests.web.operators import enter_admin

PLANS: Final = Plans([Plan("pro", 10**7, 10**12, 10**6)])
FIRST: Final = "customer1@example.com"
"""Whose a third of all calls are."""
_LIGHT: Final = "seldom@example.com"
"""Whose one call is among all those of others: what is found by looking back through time takes longest for her."""
_FILES: Final = 3
"""Files have up to 100,000 lines: they are fetched so many times at most."""


class Cost(msgspec.Struct):
    """What one page cost: its own times, and those of its slowest query, of a file its usual one, in milliseconds."""

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


class Sample(msgspec.Struct, frozen=True):
    """Whose pages are opened, with a call of hers; `files`: those with a line for each call, too."""

    email: str
    request_id: bytes
    key_id: int
    session: str | None = None
    files: bool = False


def paths_of(now_us: int, one: Sample) -> list[str]:
    """Name the pages and answers that a customer sees, with every period, group and filter that there is."""
    shown = f"req_{one.request_id.hex()}"
    return [
        "/dashboard",
        *(f"/dashboard/usage?range={range_}" for range_ in ("24h", "7d", "30d", "90d")),
        *(f"/dashboard/usage?range=90d&by={group}&metric=tokens" for group in ("key", "status")),
        f"/dashboard/usage?range=90d&key={one.key_id}",
        f"/dashboard/usage?day={day_of(now_us - 50 * DAY_US)}",
        "/dashboard/usage.csv?range=90d&by=key",
        "/dashboard/usage.json?range=24h",
        "/dashboard/requests",
        *(f"/dashboard/requests?since={since}" for since in ("1h", "24h", "7d", "90d")),
        "/dashboard/requests?since=24h&status=client_gone",
        "/dashboard/requests?model=claude-opus-4-6&status=client_gone",
        "/dashboard/requests?status=gateway_died",
        f"/dashboard/requests?key={one.key_id}",
        f"/dashboard/requests?before={now_us - 40 * DAY_US}.{one.request_id.hex()}",
        f"/dashboard/requests?id={shown}",
        f"/dashboard/requests/{shown}",
        f"/dashboard/requests/{shown}/receipt.json",
        "/dashboard/keys",
        f"/dashboard/keys/{one.key_id}",
        "/dashboard/limits",
        "/dashboard/agents",
        "/dashboard/agents?range=90d",
        *([f"/dashboard/agents/of/{one.session}", f"/dashboard/requests?session={one.session}"] if one.session else []),
        "/dashboard/transactions",
        f"/dashboard/transactions?before={now_us - 40 * DAY_US}.2.",
        *(["/dashboard/requests.csv", "/dashboard/requests.json?status=client_gone&since=7d"] if one.files else []),
        *(["/dashboard/transactions.csv", "/dashboard/transactions.beancount"] if one.files else []),
        "/dashboard/receipts",
        f"/dashboard/receipts/month/{day_of(now_us - 20 * DAY_US)[:7]}",
        "/dashboard/doctor",
        "/dashboard/topup",
        "/dashboard/live/head",
        "/dashboard/batches",
        "/dashboard/settings/webhooks",
        "/dashboard/playground",
        "/dashboard/settings",
        "/dashboard/settings/sign-in",
        "/dashboard/settings/alerts",
        "/dashboard/settings/data",
    ]


def paths_of_operator(one: Sample) -> list[str]:
    shown = f"req_{one.request_id.hex()}"
    return [
        "/admin",
        *(f"/admin?range={range_}" for range_ in ("24h", "7d", "90d")),
        "/admin/customers",
        "/admin/customers?q=customer4",
        "/admin/customers?before=100&status=active&plan=pro",
        "/admin/customers.csv",
        *("/admin/customers/1", "/admin/customers/1?range=90d", f"/admin/customers/{one.email}?range=24h"),
        "/admin/customers/1/money",
        *("/admin/ledger", "/admin/ledger?account=1", "/admin/ledger?code=usage", "/admin/ledger?ref=paid"),
        f"/admin/ledger?account={one.email}",
        "/admin/ledger.csv",
        f"/admin/ledger/entry?id={shown}",
        *(f"/admin/{name}" for name in ("upstreams", "bills", "topups", "models", "models/history", "invitations")),
        *(f"/admin/{name}" for name in ("announcements", "outbox", "audit", "audit.csv", "settings")),
    ]


async def visit(stage: Stage, rounds: int) -> tuple[list[Cost], Watch]:
    """Open every page so many times, ask the customer's part of the API, and read what commands report.

    For the account with most calls, for one with a single one, and for the operator. Answers also what was asked.
    """
    now_us = stage.gateway.clock()
    newest = "SELECT request_id, session, key_id FROM usage WHERE account_id = 1 AND session IS NOT NULL "
    ((request_id, session, key_id),) = await stage.rows(newest + "ORDER BY at DESC LIMIT 1")
    heavy, light = Sample(FIRST, request_id, key_id, session, files=True), await _light(stage)
    watch = Watch(stage.gateway.store)
    customer, seldom, operator = await enter(stage, FIRST), await enter(stage, _LIGHT), await enter_admin(stage)
    costs = []
    for browser, who, paths in (
        (customer, "", paths_of(now_us, heavy)),
        (seldom, " (one call)", paths_of(now_us, light)),
        (operator, "", paths_of_operator(light)),
    ):
        costs += [await _measure(watch, path + who, _opened(browser, path), _times(path, rounds)) for path in paths]
    costs += await _api(stage, watch, heavy, rounds)
    for name, read in _reports(stage.gateway.store, now_us).items():
        costs.append(await _measure(watch, name, read, rounds))
    return costs, watch


def _times(path: str, rounds: int) -> int:
    return min(rounds, _FILES) if _is_file(path) else rounds


def _is_file(path: str) -> bool:
    """Tell files from pages: they ask one question again and again, of which half take longer than what is told."""
    return any(kind in path for kind in (".csv", ".json?", ".beancount"))


async def _light(stage: Stage) -> Sample:
    """Give somebody who has called once, a month ago."""
    now_us = stage.gateway.clock()
    if not await stage.rows("SELECT 1 FROM account WHERE email = ?", _LIGHT):
        await stage.person(_LIGHT, usd=5)
        request_id = new_request_id(now_us - 30 * DAY_US)
        put = (
            "INSERT INTO usage (request_id, at, account_id, key_id, kind, model, asked_model, price_version, "
            "input_tokens, output_tokens, cost_nanos, list_nanos, charged_nanos, shortfall_nanos, waived_nanos, "
            "status, outcome) SELECT ?, ?, a.id, k.id, 'exact', 'claude-sonnet-4-6', 'claude-sonnet-4-6', 1, 1, 1, "
            "0, 0, 0, 0, 0, 200, 'finished' FROM account a JOIN api_key k ON k.account_id = a.id WHERE a.email = ?"
        )
        await stage.gateway.store.write([(put, (request_id, now_us - 30 * DAY_US, _LIGHT))])
    account = await find_account(stage.gateway.store, _LIGHT)
    call = "SELECT request_id, key_id FROM usage WHERE account_id = ?"
    ((request_id, key_id),) = await stage.rows(call, account.id)
    return Sample(_LIGHT, request_id, key_id)


async def _api(stage: Stage, watch: Watch, one: Sample, rounds: int) -> list[Cost]:
    """Ask what clients ask about an account."""
    now_us = stage.gateway.clock()
    _, key = await create_key(stage.gateway.store, 1, "measured", "sk-cc-", now_us)
    person = Person(1, one.email, key)
    paths = (
        "/v1/balance",
        "/v1/usage?by=model",
        f"/v1/usage?by=key&from={day_of(now_us - 80 * DAY_US)}",
        "/v1/key",
        f"/v1/requests/req_{one.request_id.hex()}",
        f"/v1/requests/req_{one.request_id.hex()}/receipt",
        f"/v1/statusline?session={one.session}",
        "/v1/doctor",
    )
    return [await _measure(watch, path, _asked(stage, person, path), rounds) for path in paths]


def _reports(store: Store, now_us: int) -> dict[str, Any]:
    """Name what commands read, as they do."""

    async def usage(account_id: int | None, since_us: int, limit: int = 50) -> int:
        await count_calls(store, account_id=account_id, since_us=since_us)
        assert [call async for call in calls(store, account_id=account_id, since_us=since_us, limit=limit)]
        return 200

    async def ledger(account_id: int | None, limit: int = 50) -> int:
        assert await entries(store, account_id=account_id, limit=limit)
        return 200

    async def read(work: Any) -> int:
        assert await work(store)
        return 200

    return {
        "farebox usage": lambda: usage(None, 0),
        "farebox usage --since 24h --limit 1000": lambda: usage(None, now_us - DAY_US, 1000),
        "farebox usage --account": lambda: usage(1, 0),
        "farebox usage --account --since": lambda: usage(1, now_us - 40 * DAY_US - 1),
        "farebox ledger": lambda: ledger(None),
        "farebox ledger --account": lambda: ledger(1),
        "farebox ledger --totals": lambda: read(totals),
        "farebox account list": lambda: read(list_accounts),
        "farebox books show": lambda: read(kept),
    }


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
        seen = sorted(watch.seen, reverse=True)
        took, sql, _ = seen[len(seen) // 2 if _is_file(name) else 0] if seen else (0.0, "", ())
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
