"""Processes that serve one set of books, as far as the books know of them: each with a store, a ledger and a run."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from msgspec.structs import replace

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.billing.ledger import Admit, Settle, Verdict
from farebox.books.ledger import Ledger, credit
from farebox.books.prices import pin_prices
from farebox.books.runs import Runs
from farebox.clock import steady_clock
from farebox.ids import new_request_id
from farebox.store.open import open_store
from farebox.store.protocol import Row, Store
from tests.books.shop import MODELS, PLANS

LEASE_S: Final = 0.25
CENT: Final = 10_000_000


class Node:
    """One process. It beats when it is told to."""

    def __init__(self, store: Store, *, lease_s: float, clock: Callable[[], int]) -> None:
        self.store = store
        self.ledger = Ledger(store)
        self.clock = clock
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.runs = Runs(
            store, self.ledger, lease_s=lease_s, warn=lambda event, **facts: self.told.append((event, facts))
        )
        self.account = 0
        self.key = 0

    async def beat(self) -> None:
        """What a gateway's job does."""
        await self.runs.beat(self.clock())
        if self.runs.leads:
            await self.runs.recover()

    def events(self) -> list[str]:
        return [event for event, _ in self.told]

    async def rows(self, sql: str, *params: Any) -> list[Row]:
        return await self.store.fetch(sql, params)

    async def balance(self) -> tuple[int, int, int]:
        """Posted, held and the number of open holds."""
        rows = await self.rows("SELECT posted_nanos, held_nanos, open_holds FROM account WHERE id = ?", self.account)
        posted, held, count = rows[0]
        return posted, held, count

    async def hold(self, amount: int) -> bytes:
        """Let a call in."""
        request_id = new_request_id(self.clock())
        admit = Admit(request_id, self.account, self.key, "opus", amount, amount, 1, 1)
        assert (await self.ledger.admit(admit)).verdict is Verdict.ADMITTED
        return request_id

    def settlement(self, request_id: bytes, cost: int, **fields: Any) -> Settle:
        plain = Settle(
            request_id=request_id,
            account_id=self.account,
            kind="exact",
            model="opus",
            outcome="finished",
            status=200,
            cost_nanos=cost,
            list_nanos=cost,
        )
        return replace(plain, **fields)

    async def usage(self, request_id: bytes) -> tuple[str, int, int]:
        """Kind, charge and shortfall of a call that has ended."""
        sql = "SELECT kind, charged_nanos, shortfall_nanos FROM usage WHERE request_id = ?"
        ((kind, charged, shortfall),) = await self.rows(sql, request_id)
        return kind, charged, shortfall


@asynccontextmanager
async def open_node(
    url: str, *, lease_s: float = LEASE_S, clock: Callable[[], int] | None = None, alice_nanos: int = 100 * CENT
) -> AsyncIterator[Node]:
    """Open the books as a serving process does, and begin a run. The first one makes alice."""
    store = await open_store(url, plans=PLANS, serving=True)
    try:
        node = Node(store, lease_s=lease_s, clock=clock or steady_clock())
        await node.runs.begin(node.clock())
        await pin_prices(store, MODELS, node.clock())
        if not await node.rows("SELECT 1 FROM account"):
            account = await create_account(store, "alice@example.com", "pro", node.clock())
            await create_key(store, account.id, "key", "sk-cc-", node.clock())
            await node.ledger.post(credit("first", account.id, alice_nanos, code="deposit", actor="test", memo=""))
        ((node.account, node.key),) = await node.rows("SELECT account_id, id FROM api_key ORDER BY id LIMIT 1")
        yield node
    finally:
        await store.close()


@asynccontextmanager
async def beating(*nodes: Node, every_s: float = LEASE_S / 3) -> AsyncIterator[None]:
    """Let nodes beat as their jobs would."""

    async def beat(node: Node) -> None:
        while True:
            await node.beat()
            await asyncio.sleep(every_s)

    tasks = [asyncio.create_task(beat(node)) for node in nodes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(check: Callable[[], Awaitable[Any]], timeout_s: float = 5) -> None:
    """Wait until something has become true."""
    async with asyncio.timeout(timeout_s):
        while not await check():  # noqa: ASYNC110  it is another process's doing
            await asyncio.sleep(0.005)


async def is_reaped(node: Node, run_id: int) -> bool:
    return bool(await node.rows("SELECT 1 FROM run WHERE id = ? AND reaped_at IS NOT NULL", run_id))


def leaders(nodes: Iterable[Node]) -> list[Node]:
    return [node for node in nodes if node.runs.leads]
