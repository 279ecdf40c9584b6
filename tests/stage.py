"""A gateway to test: started in process from a configuration file, over books on disk, with the simulator upstream."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.app import Gateway, start_gateway
from farebox.books.ledger import credit
from farebox.config import load_config
from farebox.http.client import Answer, HttpClient, Origin
from farebox.logs import Logger
from farebox.money import NANOS_PER_USD
from farebox.parts import Parts
from farebox.upstreams.simulator import Simulator

MODEL = "claude-sonnet-4-6"
OpenStage = Callable[..., AbstractAsyncContextManager["Stage"]]
"""`open_stage` with everything about its books said already."""


class Person:
    """A customer with a key."""

    def __init__(self, account_id: int, email: str, key: str) -> None:
        self.account_id = account_id
        self.email = email
        self.key = key


class Stage:
    """A running gateway with its simulator, and the means to call it and to look at its books."""

    def __init__(
        self, gateway: Gateway, simulator: Simulator, client: HttpClient, events: list[dict[str, Any]]
    ) -> None:
        self.gateway = gateway
        self.simulator = simulator
        self.client = client
        self.events = events
        """What was logged, one dict an event."""
        self.alice: Person
        self.bob: Person

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}/api/proxy"

    @property
    def parts(self) -> Parts:
        """What the gateway is made of."""
        assert self.gateway.parts is not None
        return self.gateway.parts

    async def person(self, email: str, usd: float = 0, plan: str = "pro") -> Person:
        """Make a customer with a key and, perhaps, money."""
        store, ledger = self.gateway.store, self.gateway.ledger
        account = await create_account(store, email, plan, self.gateway.clock())
        _, key = await create_key(store, account.id, "test", self.gateway.config.keys.prefix, self.gateway.clock())
        if usd:
            await ledger.post(
                credit(f"test:{email}", account.id, int(usd * NANOS_PER_USD), code="credit", actor="test", memo="")
            )
        return Person(account.id, email, key)

    async def sibling(self, person: Person) -> Person:
        """Give a customer with another key of the same account."""
        key = await create_key(
            self.gateway.store, person.account_id, "other", self.gateway.config.keys.prefix, self.gateway.clock()
        )
        return Person(person.account_id, person.email, key[1])

    async def post(
        self,
        person: Person,
        body: Mapping[str, Any] | bytes,
        *,
        path: str = "/api/proxy/v1/messages",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request as a customer; the answer's body is still to be read."""
        fields = {
            "x-api-key": person.key,
            "anthropic-version": "2023-06-01",
            "content-type": "application/json",
            **(headers or {}),
        }
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.request(
            "POST", path, [(name.encode(), value.encode()) for name, value in fields.items()], raw, first_byte_s=30
        )

    async def ask(self, person: Person, text: str = "Hello", **fields: Any) -> tuple[int, bytes]:
        """Send one message; answers status and body."""
        body = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": text}], **fields}
        answer = await self.post(person, body)
        return answer.status, await answer.read(2**26)

    async def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        return await self.gateway.store.fetch(sql, params)

    async def balance(self, person: Person) -> tuple[int, int]:
        """Posted and held nano-dollars."""
        rows = await self.rows("SELECT posted_nanos, held_nanos FROM account WHERE id = ?", person.account_id)
        return rows[0][0], rows[0][1]


def config_text(
    directory: Path,
    extra: str = "",
    *,
    upstreams: str | None = None,
    limits: str = "",
    database_url: str = "",
    database: str = "",
    server: str = "",
) -> str:
    """Write the configuration of a test gateway. Its books are in SQLite if nothing else is said."""
    return f"""
[server]
port = 0
metrics = "off"
shutdown_s = 5
{server}
[database]
url = "{database_url or f"sqlite:///{directory}/farebox.db"}"
{database}
[log]
level = "info"
[limits]
retry_wait_s = 0.01
{limits}
{upstreams or "[[upstreams]]" + chr(10) + 'name = "sim"' + chr(10) + 'kind = "simulator"'}
{extra}
"""


@asynccontextmanager
async def open_stage(
    directory: Path,
    extra: str = "",
    *,
    upstreams: str | None = None,
    limits: str = "",
    speed: float = 0,
    alice_usd: float = 100,
    database_url: str = "",
    database: str = "",
    server: str = "",
) -> AsyncIterator[Stage]:
    """Start a gateway and its simulator; end both."""
    path = directory / "farebox.toml"
    path.write_text(
        config_text(
            directory,
            extra,
            upstreams=upstreams,
            limits=limits,
            database_url=database_url,
            database=database,
            server=server,
        )
    )
    simulator = Simulator(speed=speed)
    await simulator.listen()
    events: list[dict[str, Any]] = []
    gateway = await start_gateway(load_config(path, {}), simulator=simulator, logger=_recorder(events))
    client = HttpClient(Origin("http", "127.0.0.1", gateway.port, ""), connect_s=5, connections=2000)
    stage = Stage(gateway, simulator, client, events)
    try:
        fresh = not await stage.rows("SELECT 1 FROM account")
        if fresh:
            stage.alice = await stage.person("alice@example.com", alice_usd)
            stage.bob = await stage.person("bob@example.com")
        yield stage
    finally:
        await client.close()
        await gateway.stop()
        await simulator.close()


def _recorder(events: list[dict[str, Any]]) -> Logger:
    def record(_: Any, level: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        events.append({**event, "level": level})
        raise structlog.DropEvent

    logger: Logger = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[record], wrapper_class=structlog.make_filtering_bound_logger(10)
    )
    return logger
