"""SIGTERM to a real `farebox serve` with streams in flight: what may end does, the rest is told so and is free."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.books.ledger import Ledger, credit
from farebox.clock import steady_clock
from farebox.config import load_config
from farebox.http.client import Answer, HttpClient, Origin
from farebox.http.failures import UpstreamError
from farebox.store.open import open_store
from farebox.upstreams.simulator import Simulator
from tests.cli.test_servers import COMMAND, environment
from tests.databases import read
from tests.gateway.play import Heard, eventually, message

USD = 10**9
SLOW = "[[sim tokens=5000 rate=50 ttft=0]]"


class Served:
    """A gateway process, and a customer with a key."""

    def __init__(
        self, process: asyncio.subprocess.Process, port: int, key: str, simulator: Simulator, database_url: str
    ) -> None:
        self.process = process
        self.port = port
        self.simulator = simulator
        self._key = key
        self._database_url = database_url
        self.client = HttpClient(Origin("http", "127.0.0.1", port, ""), connect_s=2, connections=20)

    async def ask(self, text: str, *, stream: bool = True) -> Answer:
        headers = [(b"x-api-key", self._key.encode()), (b"content-type", b"application/json")]
        body = json.dumps(message(text, stream=stream)).encode()
        return await self.client.request("POST", "/v1/messages", headers, body, first_byte_s=20)

    async def listen(self, text: str) -> Heard:
        return Heard(await self.ask(text))

    async def accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def refuses(self) -> bool:
        return not await self.accepts()

    async def has_left_upstream(self) -> bool:
        return all(request.outcome == "gone" for request in self.simulator.requests)

    async def has_asked_twice(self) -> bool:
        return len(self.simulator.requests) == 2

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        return read(self._database_url, sql)

    def check_books(self, *ends: tuple[str, str]) -> None:
        """No hold is left, the calls ended so, and only what is no longer waived was paid."""
        assert self.rows("SELECT * FROM hold") == []
        assert sorted(self.rows("SELECT kind, outcome FROM usage")) == sorted(ends)
        ((charged,),) = self.rows("SELECT coalesce(sum(charged_nanos), 0) FROM usage")
        assert isinstance(charged, int)
        assert (charged > 0) is any(kind != "waived" for kind, _ in ends)
        assert self.rows("SELECT posted_nanos, held_nanos FROM account WHERE id = 1") == [(USD - charged, 0)]
        assert self.rows("SELECT count(*) FROM run WHERE stopped_at IS NULL") == [(0,)]


@asynccontextmanager
async def served(directory: Path, database_url: str, shutdown_s: float) -> AsyncIterator[Served]:
    simulator = Simulator(speed=0, api_key="theirs")
    await simulator.listen()
    path = directory / "farebox.toml"
    path.write_text(
        f'[server]\nport = 0\nmetrics = "off"\nshutdown_s = {shutdown_s}\n[limits]\ndrain_s = 0\n'
        f'[database]\nurl = "{database_url}"\n'
        '[[upstreams]]\nname = "sim"\nkind = "anthropic"\napi_key = "theirs"\n'
        f'base_url = "http://127.0.0.1:{simulator.port}"\n'
    )
    config, clock = load_config(path, {}), steady_clock()
    store = await open_store(config.books_url, plans=config.plans, clock=clock, serving=False)
    account = await create_account(store, "alice@example.com", "pro", clock())
    _, key = await create_key(store, account.id, "k", "sk-cc-", clock())
    await Ledger(store).post(credit("c", account.id, USD, code="credit", actor="test", memo=""))
    await store.close()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "serve", cwd=directory, env=environment(), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    port = json.loads(await process.stderr.readline())["port"]
    opened = Served(process, port, key, simulator, database_url)
    try:
        yield opened
    finally:
        await opened.client.close()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await simulator.close()


async def test_sigterm_closes_the_doors_lets_calls_end_and_exits_with_0(tmp_path: Path, database_url: str) -> None:
    async with served(tmp_path, database_url, 20) as server, asyncio.timeout(15):
        heard = await server.listen("[[sim tokens=60 rate=60 ttft=0]]")
        await heard.has(b"content_block_delta")
        asking = asyncio.create_task(server.ask("[[sim delay=600 tokens=30]]", stream=False))
        await eventually(server.has_asked_twice)
        server.process.send_signal(signal.SIGTERM)
        await eventually(server.refuses)
        assert server.process.returncode is None
        await heard.end()
        assert heard.names[-1] == "message_stop"
        answer = await asking
        assert (answer.status, answer.header(b"connection")) == (200, b"close")
        assert json.loads(await answer.read(2**20))["usage"]["output_tokens"] == 30
        assert await server.process.wait() == 0
        server.check_books(("exact", "finished"), ("exact", "finished"))


@pytest.mark.parametrize("second", [False, True])
async def test_streams_are_ended_free_of_charge_when_the_time_is_up_or_a_second_sigterm_comes(
    tmp_path: Path, database_url: str, *, second: bool
) -> None:
    async with served(tmp_path, database_url, 60 if second else 0.5) as server, asyncio.timeout(10):
        heard = [await server.listen(SLOW) for _ in range(3)]
        for stream in heard:
            await stream.has(b"content_block_delta")
        server.process.send_signal(signal.SIGTERM)
        await eventually(server.refuses)
        if second:
            await asyncio.sleep(0.2)
            assert not any(stream.ended for stream in heard)
            server.process.send_signal(signal.SIGTERM)
        for stream in heard:
            await stream.end()
            name, event = stream.last
            assert (name, event["error"]["type"]) == ("error", "overloaded_error")
            assert "nothing was charged" in event["error"]["message"]
            assert "message_stop" not in stream.names
            assert stream.error is None  # an orderly end of the body, for clients that read it to the end
        assert await server.process.wait() == 0
        server.check_books(*[("waived", "gateway_broke")] * 3)
        await eventually(server.has_left_upstream)


async def test_sigterm_without_calls_ends_the_process_at_once_whatever_connections_idle(
    tmp_path: Path, database_url: str
) -> None:
    async with served(tmp_path, database_url, 30) as server, asyncio.timeout(5):
        answer = await server.ask("Hello", stream=False)
        await answer.read(2**20)
        server.process.send_signal(signal.SIGTERM)
        assert await server.process.wait() == 0
        server.check_books(("exact", "finished"))
        with pytest.raises(UpstreamError):
            await server.ask("Hello")
