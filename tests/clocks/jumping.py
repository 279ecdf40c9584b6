"""A `farebox serve` whose machine's clock jumps while it serves: libfaketime shows it another wall clock.

The monotonic clock goes on as it should, as it does on real machines when somebody sets the time.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.accounts.sessions import Sessions
from farebox.books.ledger import Ledger, credit
from farebox.clock import US_PER_S, steady_clock
from farebox.config import load_config
from farebox.http.client import HttpClient, Origin
from farebox.store.open import open_store
from farebox.store.protocol import Store
from farebox.upstreams.simulator import Simulator
from tests.kill.client import Seen, call
from tests.kill.crowd import Crowd
from tests.kill.harness import Server, free_port
from tests.kill.oracle import check_books
from tests.web.browse import Browser

PER_MINUTE: Final = 12
"""What the narrow plan lets through: so many at once, then one every five seconds."""
_NARROW: Final = f"""
[[plans]]
name = "narrow"
requests_per_minute = {PER_MINUTE}
tokens_per_minute = 1_000_000_000
concurrent = 100
[payments]
simulated = true
"""
_LIBRARIES: Final = "usr/lib/*/faketime/libfaketimeMT.so.1"
_NEVER_LOGGED: Final = frozenset({
    "holds_expired", "run_lost", "run_given_up", "stray_holds_ended", "settled_too_late", "settlement_refused",
    "job_failed", "exchange_failed", "books_unavailable", "books_faltered",
})  # fmt: skip
_PATIENCE_S: Final = 30.0
_SLACK_US: Final = 5 * US_PER_S


def _asking(text: str, *, stream: bool = False) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "claude-sonnet-4-6", "max_tokens": 4_000, "stream": stream, "messages": messages}


class Jumping:
    """One server and its customers. `seen` counts what they saw."""

    def __init__(self, directory: Path, url: str, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self.admitted: list[float] = []
        """When calls of the narrow plan were let in, by the monotonic clock."""
        self.waits_s: list[int] = []
        """How long those were told to wait that were not."""
        self.store: Store
        self.crowd: Crowd
        self.narrow: tuple[int, str]
        self.began_us = steady_clock()()
        self._began = time.monotonic()
        self._directory = directory
        self._url = url
        self._random = random.Random(seed)
        self._simulator = Simulator(speed=0, api_key="literal", keep=2_000_000)
        self._wall = directory / "wall"

    async def open(self) -> None:
        self.set_wall(0)
        await self._simulator.listen()
        self.server = Server(self._directory, "farebox", self._url, self._simulator.port, "lease_s = 2")
        text = self.server.config.read_text().replace('level = "warning"', 'level = "info"')
        self.metrics_port = free_port()
        text = text.replace('metrics = "off"', f'metrics = "127.0.0.1:{self.metrics_port}"')
        self.server.config.write_text(text + _NARROW)
        (library,) = await asyncio.to_thread(lambda: list(Path("/").glob(_LIBRARIES)))
        self.server.before = (
            "env", f"LD_PRELOAD={library}", "FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_CACHE_DURATION=1",
            f"FAKETIME_TIMESTAMP_FILE={self._wall}",
        )  # fmt: skip
        self.store = await open_store(self._url, plans=load_config(self.server.config, {}).plans)
        self.crowd = Crowd(self.store, self._random, self.seen, lambda: self.server.port)
        await self.crowd.open_accounts()
        self.narrow = await self.customer("narrow", "narrow")

    async def customer(self, name: str, plan: str) -> tuple[int, str]:
        """Open the account of somebody with money; gives its id and a key."""
        now = steady_clock()()
        account = await create_account(self.store, f"{name}@example.com", plan, now)
        first = credit(f"first:{name}", account.id, 10**12, code="deposit", actor="test", memo="")
        await Ledger(self.store).post(first)
        self.crowd.deposited.add(first.id)
        return account.id, (await create_key(self.store, account.id, "k", "sk-cc-", now))[1]

    def set_wall(self, ahead_s: int) -> None:
        """Set the server's clock so far ahead of ours, or behind it."""
        written = self._wall.with_suffix(".new")
        written.write_text(f"{ahead_s:+d}\n")
        written.replace(self._wall)

    async def serve(self) -> None:
        await self.server.launch()
        await self.server.answers()

    async def knock(self) -> None:
        """Call again and again in the narrow plan, until cancelled."""
        while True:
            seen = await call(self.server.port, self.narrow[1], _asking("[[sim tokens=1]]"))
            if seen.status == 200:
                self.admitted.append(time.monotonic())
                self.crowd.answers.append(seen)
            else:
                self.seen[f"narrow: {seen.status}"] += 1
            if seen.retry_after_s is not None:
                self.waits_s.append(seen.retry_after_s)
            await asyncio.sleep(0.2)

    async def stream(self, seconds: int, key: str) -> Seen:
        """Have one answer that takes so long."""
        return await call(self.server.port, key, _asking(f"[[sim tokens={100 * seconds} rate=100]]", stream=True))

    async def browser(self) -> Browser:
        """Open the browser of somebody who is signed in."""
        client = HttpClient(Origin("http", "127.0.0.1", self.server.port, ""), connect_s=5, connections=2)
        browser = Browser(client)
        now = steady_clock()()
        browser.cookies["session"] = await Sessions(self.store).begin(
            self.narrow[0], now, agent="a browser", address="127.0.0.1"
        )
        return browser

    async def held(self) -> None:
        """Wait until something is held."""
        async with asyncio.timeout(_PATIENCE_S):
            while not (await self.store.fetch("SELECT count(*) FROM hold"))[0][0]:  # noqa: ASYNC110  the server's doing
                await asyncio.sleep(0.05)

    async def settled(self) -> None:
        """Wait until nothing is held any more."""
        async with asyncio.timeout(_PATIENCE_S):
            while (await self.store.fetch("SELECT count(*) FROM hold"))[0][0]:  # noqa: ASYNC110  the server's doing
                await asyncio.sleep(0.05)

    async def check_money(self) -> None:
        """See that the books are right."""
        rows = await self.store.fetch("SELECT id FROM transfer WHERE id NOT LIKE 'first:%' AND id NOT LIKE 'paid:%'")
        self.crowd.deposited.update(row[0] for row in rows)
        await check_books(self.store, self._simulator, self.crowd.answers, self.crowd.deposited, self.seen)

    async def check_times(self) -> None:
        """See that no time in books or log is before another that it cannot be before."""
        rows = await self.store.fetch(
            "SELECT count(*), min(duration_us), min(first_byte_us), max(duration_us), min(at), max(at) FROM usage"
        )
        count, shortest, first, longest, oldest, newest = rows[0]
        assert count > 0
        assert shortest >= 0
        assert first >= 0
        assert longest < (time.monotonic() - self._began) * US_PER_S
        assert self.began_us - _SLACK_US < oldest <= newest < steady_clock()() + _SLACK_US
        self._check_log()

    def _check_log(self) -> None:
        for line in self.server.log.read_text().splitlines():
            told = json.loads(line)
            assert told["event"] not in _NEVER_LOGGED, line
            assert told.get("ms", 0) >= 0, line
            self.seen[f"log: {told['event']}"] += 1

    async def check_metrics(self) -> None:
        """See that no counter, sum or duration is below zero."""
        client = HttpClient(Origin("http", "127.0.0.1", self.metrics_port, ""), connect_s=5, connections=2)
        answer = await client.request("GET", "/metrics", [], b"", first_byte_s=10)
        text = (await answer.read(2**24)).decode()
        await client.close()
        values = re.findall(r"^(farebox_\S+) (\S+)$", text, re.MULTILINE)
        assert len(values) > 50, text
        below = [name for name, value in values if float(value) < 0]
        assert not below, below

    async def close(self) -> None:
        self.crowd.stop()
        await self.server.close()
        await self.store.close()
        await self._simulator.close()
