"""A real `farebox serve` with several workers over PostgreSQL, a customer with a key, and what can be seen of it."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.books.ledger import Ledger, credit
from farebox.clock import steady_clock
from farebox.config import load_config
from farebox.http.client import Answer, HttpClient, Origin
from farebox.store.open import open_store
from farebox.upstreams.simulator import Simulator
from tests.cli.test_servers import COMMAND, environment
from tests.databases import read
from tests.gateway.play import Heard, message

PAID_NANOS = 100 * 10**9
PLANS = """
[[plans]]
name = "free"
requests_per_minute = 10
tokens_per_minute = 50_000_000
concurrent = 1000
[[plans]]
name = "pro"
requests_per_minute = 100_000
tokens_per_minute = 50_000_000
concurrent = 1000
"""
Figures = dict[str, float]


class Service:
    """A supervisor with its workers."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, url: str, key: str) -> None:
        self.process = process
        self.log = log
        self.url = url
        self.key = key
        self._clients: list[HttpClient] = []

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [told for told in self.events if told["event"] == event]

    @property
    def port(self) -> int:
        return int(self.events[0]["port"])

    def pids(self) -> dict[str, int]:
        """The processes by their names: "1", "2" and so on, and "metrics"."""
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {Path(f"/proc/{pid}/comm").read_text().split()[-1]: int(pid) for pid in pids}

    def client(self) -> HttpClient:
        """Make a client with connections of its own."""
        self._clients.append(HttpClient(Origin("http", "127.0.0.1", self.port, ""), connect_s=5, connections=50))
        return self._clients[-1]

    async def ask(self, text: str = "Hello", *, client: HttpClient | None = None, stream: bool = False) -> Answer:
        """Send a message, over a connection of its own unless a client is given."""
        headers = [(b"x-api-key", self.key.encode()), (b"content-type", b"application/json")]
        body = json.dumps(message(text, stream=stream)).encode()
        return await (client or self.client()).request("POST", "/v1/messages", headers, body, first_byte_s=20)

    async def status(self, text: str = "Hello") -> int:
        answer = await self.ask(text)
        await answer.read(2**20)
        return answer.status

    async def listen(self, text: str) -> Heard:
        return Heard(await self.ask(text, stream=True))

    def served_by(self) -> Counter[str]:
        """How many calls each worker has ended, by the lines they wrote of them."""
        return Counter(told["worker"] for told in self.logged("call"))

    async def figures(self) -> Figures:
        """Scrape the metrics."""
        client = HttpClient(Origin("http", "127.0.0.1", self.events[0]["metrics_port"], ""), connect_s=5, connections=1)
        try:
            answer = await client.request("GET", "/metrics", [], b"", first_byte_s=5)
            lines = (await answer.read(2**20)).decode().splitlines()
        finally:
            await client.close()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def check_books(self, calls: int | None = None) -> None:
        """No hold is left, and the customer's balance is what the calls have left of it."""
        assert read(self.url, "SELECT count(*) FROM hold") == [(0,)]
        ((charged, count),) = read(self.url, "SELECT coalesce(sum(charged_nanos), 0), count(*) FROM usage")
        assert read(self.url, "SELECT posted_nanos, held_nanos FROM account WHERE id > 0") == [
            (PAID_NANOS - charged, 0)
        ]
        assert calls is None or count == calls

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()


@asynccontextmanager
async def serving(
    directory: Path,
    url: str,
    *,
    workers: int = 4,
    shutdown_s: float = 20,
    plan: str = "pro",
    customer: bool = True,
    awaits: str = "listening",
    command: Sequence[str] = COMMAND,
) -> AsyncIterator[Service]:
    """Start it with a simulator upstream, all in a process group of its own. Answers once all have logged `awaits`."""
    simulator = Simulator(speed=0, api_key="theirs")
    await simulator.listen()
    path = directory / "farebox.toml"
    path.write_text(configuration(url, simulator.port, f"port = 0\nworkers = {workers}\nshutdown_s = {shutdown_s}"))
    key = await _customer(path, plan) if customer else ""
    log = directory / "log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, "serve", cwd=directory, env=environment(), stderr=errors, start_new_session=True
        )
    service = Service(process, log, url, key)
    try:
        await until(lambda: len(service.logged(awaits)) == workers or process.returncode is not None)
        yield service
    finally:
        await service.close()
        await simulator.close()


def configuration(url: str, upstream_port: int, server: str) -> str:
    return (
        f'[server]\nmetrics = "127.0.0.1:0"\n{server}\n[database]\nurl = "{url}"\n[limits]\ndrain_s = 0\n'
        '[[upstreams]]\nname = "sim"\nkind = "anthropic"\napi_key = "theirs"\n'
        f'base_url = "http://127.0.0.1:{upstream_port}"\n{PLANS}'
    )


async def until(holds: Callable[[], object], timeout_s: float = 10) -> None:
    """Wait until something has become true that other processes bring about."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _customer(path: Path, plan: str) -> str:
    """Make a customer with money; answers the key."""
    config, clock = load_config(path, {}), steady_clock()
    store = await open_store(config.books_url, plans=config.plans, clock=clock)
    try:
        account = await create_account(store, "alice@example.com", plan, clock())
        _, key = await create_key(store, account.id, "k", "sk-cc-", clock())
        await Ledger(store).post(credit("c", account.id, PAID_NANOS, code="credit", actor="test", memo=""))
        return key
    finally:
        await store.close()
