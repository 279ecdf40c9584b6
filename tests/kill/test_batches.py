"""kill -9 in the middle of batches: nothing is charged twice, nothing stays held, and every item ends."""

import asyncio
import json
import random
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.books.audit import audit
from farebox.books.ledger import Ledger, credit
from farebox.clock import steady_clock
from farebox.store.sqlite import open_store
from farebox.upstreams.simulator import Simulator
from tests.gateway.batches.bench import items
from tests.gateway.play import eventually
from tests.kill.harness import Server

KILLS = 5
HAD = 100 * 10**9
WAYS = {"native": 'run = "native"', "own": 'run = "own"\nat_once = 3'}


class Customer:
    """Somebody who makes a batch, and asks after it whatever becomes of the server."""

    def __init__(self, server: Server, key: str) -> None:
        self._base = f"http://127.0.0.1:{server.port}/v1/messages/batches"
        self._key = key

    async def ask(self, method: str, path: str = "", body: bytes | None = None) -> bytes:
        headers = {"x-api-key": self._key, "anthropic-version": "2023-06-01", "content-type": "application/json"}
        request = urllib.request.Request(self._base + path, body, headers, method=method)

        def send() -> bytes:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return bytes(answer.read())

        return await asyncio.to_thread(send)

    async def has_ended(self, batch_id: str) -> bool:
        return bool(json.loads(await self.ask("GET", f"/{batch_id}"))["processing_status"] == "ended")


@pytest.mark.parametrize("way", WAYS)
async def test_whenever_the_server_is_killed_each_item_ends_once(tmp_path: Path, way: str) -> None:
    simulator = Simulator(speed=0, api_key="literal", keep=100_000)
    await simulator.listen()
    server = Server(tmp_path, "farebox", f"sqlite:///{tmp_path}/farebox.db", simulator.port)
    server.config.write_text(f"{server.config.read_text()}\n[batches]\npoll_s = 0.05\n{WAYS[way]}\n")
    store = await open_store(tmp_path / "farebox.db")
    try:
        clock = steady_clock()
        account = await create_account(store, "alice@example.com", "all", clock())
        _, key = await create_key(store, account.id, "k", "sk-cc-", clock())
        await Ledger(store).post(credit("first", account.id, HAD, code="credit", actor="test", memo=""))
        customer = Customer(server, key)
        count = 40 if way == "own" else 3_000
        await server.launch()
        await server.answers()
        body = json.dumps({"requests": items(*["[[sim delay=30 tokens=3]]"] * count)}).encode()
        batch_id = json.loads(await customer.ask("POST", body=body))["id"]
        killed_in_the_middle = 0
        for _ in range(KILLS):
            await asyncio.sleep(random.uniform(0.02, 0.25))
            await server.kill()
            left = (await store.fetch("SELECT count(*) FROM hold"))[0][0]
            killed_in_the_middle += left > 0
            await server.launch()
            await server.answers()
            await customer.ask("GET", f"/{batch_id}")
        await eventually(lambda: customer.has_ended(batch_id), 60)
        lines = [json.loads(line) for line in (await customer.ask("GET", f"/{batch_id}/results")).splitlines()]
        await server.stop()
        assert killed_in_the_middle
        await _check(store, account.id, lines, count)
        sent = Counter(one.path for one in simulator.requests if one.method == "POST")
        assert sent["/v1/messages/batches" if way == "native" else "/v1/messages"] <= (
            1 if way == "native" else 2 * count
        )
    finally:
        await server.close()
        await store.close()
        await simulator.close()


async def _check(store: Any, account_id: int, lines: list[dict[str, Any]], count: int) -> None:
    rows = await store.fetch(
        "SELECT i.custom_id, i.state, u.charged_nanos FROM batch_item i JOIN usage u ON u.request_id = i.id"
    )
    assert (len(rows), (await store.fetch("SELECT count(*) FROM usage"))[0][0]) == (count, count)
    had = {line["custom_id"]: line["result"] for line in lines}
    assert len(had) == len(lines) == count
    for custom_id, state, charged in rows:
        assert had[custom_id]["type"] == state
        usage = had[custom_id]["message"]["usage"] if state == "succeeded" else None
        assert (charged > 0) == (usage is not None)
    assert sum(state == "succeeded" for _, state, _ in rows) > count // 2
    posted, held, holds = (
        await store.fetch("SELECT posted_nanos, held_nanos, open_holds FROM account WHERE id = ?", (account_id,))
    )[0]
    assert (posted, held, holds) == (HAD - sum(charged for *_, charged in rows), 0, 0)
    assert not await store.fetch("SELECT 1 FROM hold")
    broken = [f"{check.name}: {check.detail}" for check in await audit(store) if not check.ok]
    assert not broken, broken
