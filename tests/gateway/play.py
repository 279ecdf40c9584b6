"""What the tests of the gateway share: listening to a stream, looking at the books, working out a price by hand."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any, Final

from farebox.billing.ledger import Answer as LedgerAnswer
from farebox.billing.ledger import Command, Settle
from farebox.errors import StoreUnavailable
from farebox.http.client import Answer
from farebox.http.failures import UpstreamError
from farebox.store.protocol import Store
from tests.stage import MODEL, Person, Stage

USD: Final = 10**9
SELL: Final = {
    "claude-sonnet-4-6": {"input": "1.5", "output": "7.5", "write_5m": "1.875", "write_1h": "3", "read": "0.15"},
    "claude-opus-5-5": {"input": "2", "output": "10", "write_5m": "2.5", "write_1h": "4", "read": "0.1"},
    "claude-opus-5-5 fast": {"input": "4", "output": "20", "write_5m": "5", "write_1h": "8", "read": "0.2"},
    "claude-haiku-5-5": {"input": "0.05", "output": "0.25", "write_5m": "0.0625", "write_1h": "0.1", "read": "0.005"},
    "claude-haiku-5-5 long": {
        "input": "0.25", "output": "1.25", "write_5m": "0.3125", "write_1h": "0.5", "read": "0.025"
    },
    "claude-opus-4-6": {"input": "7.5", "output": "37.5", "write_5m": "9.375", "write_1h": "15", "read": "0.75"},
}  # fmt: skip
"""Dollars per million tokens, written out by hand from the seed contract, so that tests do not ask the code."""


def exact(tariff: str = MODEL, factor: str = "1", **tokens: int) -> Fraction:
    """Price tokens by class in nano-dollars, not yet rounded."""
    rates = SELL[tariff]
    return sum((Fraction(rates[name]) * count * 1000 for name, count in tokens.items()), Fraction(0)) * Fraction(factor)


def nanos(*amounts: Fraction) -> int:
    """Add up and round up once, at the end."""
    total = sum(amounts, Fraction(0))
    return -(-total.numerator // total.denominator)


def message(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """Give the body of a request."""
    return {"model": MODEL, "max_tokens": 2000, "messages": [{"role": "user", "content": text}], **fields}


class Heard:
    """A streamed answer as its client hears it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.status = answer.status
        self.data = b""
        self.ended = False
        self.error: UpstreamError | None = None
        self._news = asyncio.Event()
        answer.attach(self)

    def on_data(self, data: bytes) -> None:
        self.data += data
        self._news.set()

    def on_end(self, error: UpstreamError | None) -> None:
        self.ended, self.error = True, error
        self._news.set()

    async def until(self, ready: Callable[[], bool], timeout_s: float = 8) -> None:
        async with asyncio.timeout(timeout_s):
            while not ready():
                self._news.clear()
                await self._news.wait()

    async def has(self, part: bytes) -> None:
        await self.until(lambda: part in self.data)

    async def end(self, timeout_s: float = 8) -> "Heard":
        await self.until(lambda: self.ended, timeout_s)
        return self

    def hang_up(self) -> None:
        self.answer.abandon()

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Whole events that are named and carry JSON."""
        found = []
        for part in self.data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")[:-1]:
            lines = dict(
                line.split(b": ", 1) for line in part.split(b"\n") if b": " in line and not line.startswith(b":")
            )
            if b"event" in lines and b"data" in lines:
                found.append((lines[b"event"].decode(), json.loads(lines[b"data"])))
        return found

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    @property
    def visible_bytes(self) -> int:
        """Visible output as it stands on the wire, by the words of the published rule."""
        size = 0
        for name, event in self.events:
            if name == "content_block_delta":
                delta = event["delta"]
                text = delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
                size += len(json.dumps(text, ensure_ascii=False).encode()) - 2
        return size

    @property
    def last(self) -> tuple[str, dict[str, Any]]:
        return self.events[-1]

    @property
    def start_usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = next(event for name, event in self.events if name == "message_start")["message"][
            "usage"
        ]
        return usage

    @property
    def final_usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = [event for name, event in self.events if name == "message_delta"][-1]["usage"]
        return usage


async def listen(stage: Stage, person: Person, text: str = "Hello", **fields: Any) -> Heard:
    """Ask for a stream; answers once its head has come."""
    return Heard(await stage.post(person, message(text, stream=True, **fields)))


async def eventually(check: Callable[[], Awaitable[bool]], timeout_s: float = 8) -> None:
    """Wait until something has become true."""
    async with asyncio.timeout(timeout_s):
        while not await check():  # noqa: ASYNC110  it may be another process's doing
            await asyncio.sleep(0.01)


async def asked_upstream(stage: Stage, count: int = 1) -> None:
    """Wait until the simulator has got so many requests."""

    async def arrived() -> bool:
        return len(stage.simulator.requests) >= count

    await eventually(arrived)


_COLUMNS: Final = (
    "kind", "model", "asked_model", "input_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens",
    "cache_read_tokens", "output_tokens", "web_searches", "cost_nanos", "charged_nanos", "shortfall_nanos",
    "waived_nanos", "status", "outcome", "stop_reason", "message_id", "upstream", "attempts", "streamed",
)  # fmt: skip


async def usage_rows(stage: Stage, person: Person) -> list[dict[str, Any]]:
    sql = f"SELECT {', '.join(_COLUMNS)} FROM usage WHERE account_id = ? ORDER BY at"
    return [dict(zip(_COLUMNS, row, strict=True)) for row in await stage.rows(sql, person.account_id)]


async def books(stage: Stage, person: Person, *, had: int = 100 * USD, calls: int = 1) -> dict[str, Any]:
    """Wait until every call has ended; check that the books are true; answer the last usage row.

    One row a call, no hold left, nothing held, and the balance is what was there less what the rows charged.
    """

    async def ended() -> bool:
        return not await stage.rows("SELECT 1 FROM hold WHERE account_id = ?", person.account_id)

    await eventually(ended)
    rows = await usage_rows(stage, person)
    assert len(rows) == calls, rows
    posted, held = await stage.balance(person)
    assert held == 0
    assert posted == had - sum(row["charged_nanos"] for row in rows)
    assert posted >= 0
    assert (await stage.rows("SELECT open_holds FROM account WHERE id = ?", person.account_id))[0][0] == 0
    for row in rows:
        assert row["cost_nanos"] == row["charged_nanos"] + row["shortfall_nanos"] + row["waived_nanos"]
    return rows[-1]


class TroubledStore:
    """A store that keeps commands waiting, settlements unless told otherwise, or fails for a while."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.open = asyncio.Event()
        """Commands that are held up go through once this is set."""
        self.open.set()
        self.held_up: tuple[type, ...] = (Settle,)
        self.failing: tuple[type, ...] = ()
        """Commands of these kinds are not taken."""
        self.refused = 0
        self.reached = asyncio.Event()

    async def apply(self, batch: Sequence[Command], lane: int = 0) -> list[LedgerAnswer | Exception]:
        if any(isinstance(command, self.failing) for command in batch):
            self.refused += 1
            raise StoreUnavailable("the disk is full")
        if any(isinstance(command, self.held_up) for command in batch):
            self.reached.set()
            await self.open.wait()
        return await self._store.apply(batch, lane)


def trouble(stage: Stage) -> TroubledStore:
    """Put a store that can be troubled under the ledger."""
    store = TroubledStore(stage.gateway.store)
    stage.gateway.ledger._store = store  # type: ignore[assignment]
    return store


WAIT: Final = b""
"""In a script: say nothing more until the other side has gone."""


class Script:
    """An upstream that says what it was told to, byte for byte, one script a request, the last one again and again."""

    def __init__(self, *answers: Sequence[bytes], keep: bool = False) -> None:
        self.answers = [list(answer) for answer in answers]
        self.keep = keep
        self.heard: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, or one after the other where connections are kept."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._answer(reader, writer)
            while self.keep:
                await self._answer(reader, writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        self.heard.append(head + await reader.readexactly(length))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        for piece in answer:
            if piece == WAIT:
                await reader.read()
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)


@asynccontextmanager
async def script(*answers: Sequence[bytes], keep: bool = False) -> AsyncIterator[Script]:
    """Serve a script; `upstream` makes it the gateway's."""
    written = Script(*answers, keep=keep)
    server = await asyncio.start_server(written.serve, "127.0.0.1", 0)
    written.port = server.sockets[0].getsockname()[1]
    try:
        yield written
    finally:
        server.close()


def upstream(name: str, port: int, **more: str) -> str:
    """Write the configuration of one upstream on this machine."""
    lines = ["[[upstreams]]", f'name = "{name}"', 'kind = "anthropic"', 'api_key = "sk-ant-theirs"']
    lines += [f'base_url = "http://127.0.0.1:{port}"', *(f"{key} = {value}" for key, value in more.items())]
    return "\n".join(lines) + "\n"


def envelope(body: bytes) -> tuple[str, str]:
    """Give type and message of an error, checking the shape of its envelope."""
    error = json.loads(body)
    assert error["type"] == "error"
    assert error["request_id"].startswith("req_")
    return error["error"]["type"], error["error"]["message"]
