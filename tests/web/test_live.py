"""News of an account as it happens: what a browser's event stream tells, to whom, and when it ends."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from farebox.errors import StoreUnavailable
from farebox.http.client import Answer, HttpClient, Origin
from farebox.http.doors import open_doors
from farebox.http.exchange import Exchange
from farebox.http.failures import UpstreamError
from farebox.http.server import HttpServer
from farebox.web.asgi import AsgiDoor
from farebox.web.hub import MOST_OF_ACCOUNT
from tests.databases import on_postgresql
from tests.stage import OpenStage, Stage
from tests.web.browse import Browser, enter, fund, make_key


async def listen(stage: Stage, browser: Browser) -> Answer:
    """Open the stream as a browser does."""
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    fields = [(b"accept", b"text/event-stream"), (b"cookie", cookie.encode()), (b"sec-fetch-site", b"same-origin")]
    return await stage.client.request("GET", "/dashboard/live", fields, b"", first_byte_s=10)


class Stream:
    """An event stream that is open."""

    def __init__(self, answer: Answer) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._text = ""
        self.answer = answer
        answer.attach(self)

    def on_data(self, data: bytes) -> None:
        self._pieces.put_nowait(data)

    def on_end(self, error: UpstreamError | None) -> None:  # noqa: ARG002  the signature of a sink
        self._pieces.put_nowait(None)

    async def next(self) -> str:
        """Give the name of the next event; "end" at the end of the stream."""
        while "\n\n" not in self._text:
            async with asyncio.timeout(10):
                piece = await self._pieces.get()
            if piece is None:
                return "end"
            self._text += piece.decode()
        block, _, self._text = self._text.partition("\n\n")
        named = [line[7:] for line in block.split("\n") if line.startswith("event: ")]
        return named[0] if named else await self.next()

    async def until(self, name: str) -> list[str]:
        """Read up to an event; answers the names of all until then."""
        told = [await self.next()]
        while told[-1] != name:
            assert told[-1] != "end", told
            told.append(await self.next())
        return told


async def opened(stage: Stage, browser: Browser) -> Stream:
    """Open a stream and read what it begins with: that everything may be new."""
    stream = Stream(await listen(stage, browser))
    assert stream.answer.status == 200
    assert (stream.answer.header(b"content-type") or b"").startswith(b"text/event-stream")
    assert await stream.until("steps") == ["hello", "balance", "calls", "steps"]
    return stream


async def test_a_stream_tells_of_calls_money_and_keys_of_its_own_account_alone(stage: Stage) -> None:
    alice, bob = await enter(stage, stage.alice.email), await enter(stage, stage.bob.email)
    hers, his = await opened(stage, alice), await opened(stage, bob)
    assert (await stage.ask(stage.alice))[0] == 200
    assert "balance" in await hers.until("calls")
    await make_key(stage, alice, stage.alice.email)
    await hers.until("steps")
    await fund(stage, stage.bob.email, 5)
    assert await his.until("calls") == ["balance", "calls"]


async def test_a_page_is_told_of_its_parts_in_the_same_markup(stage: Stage) -> None:
    """What a script puts into a page is what the page had, had it been loaded again."""
    browser = await enter(stage, stage.alice.email)
    assert (await stage.ask(stage.alice))[0] == 200
    for path, parts in (
        ("/dashboard", ("tiles", "usage")),
        ("/dashboard/usage", ("usage",)),
        ("/dashboard/requests", ("log",)),
    ):
        whole = await browser.get(path)
        for part in parts:
            alone = await browser.get(path, {"x-fragment": part})
            assert alone.text.strip()
            assert "<html" not in alone.text
            assert alone.text.strip() in whole.text
    head = await browser.get("/dashboard/live/head", {"x-fragment": "balance"})
    assert "$99." in head.text
    assert head.text.strip() in (await browser.get("/dashboard/keys")).text
    assert (await browser.get("/dashboard/live/head", {"x-fragment": "body"})).path == "/dashboard"
    assert (await browser.get("/dashboard/live")).path == "/dashboard"


async def test_a_stream_ends_with_its_session_and_none_is_opened_without(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    stream = await opened(stage, browser)
    cookies = dict(browser.cookies)
    await browser.post("/logout")
    assert await stream.next() == "end"
    browser.cookies = cookies
    assert (await listen(stage, browser)).status == 303
    assert len(stage.parts.hub) == 0


async def test_streams_of_one_account_are_counted_and_end_when_their_client_goes(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    streams = [Stream(await listen(stage, browser)) for _ in range(MOST_OF_ACCOUNT)]
    assert {stream.answer.status for stream in streams} == {200}
    assert (await listen(stage, browser)).status == 503
    other = await opened(stage, await enter(stage, stage.bob.email))
    streams[0].answer.abandon()
    async with asyncio.timeout(5):
        while (last := await listen(stage, browser)).status != 200:
            await last.read(1000)
    other.answer.abandon()


async def test_a_gateway_stops_at_once_however_many_listen(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        browser = await enter(stage, stage.alice.email)
        streams = [await opened(stage, browser) for _ in range(3)]
        began = time.monotonic()
        await stage.gateway.stop()
        assert time.monotonic() - began < 3
        assert [await stream.next() for stream in streams] == ["end"] * 3


@on_postgresql  # SQLite is served by one process
async def test_what_another_process_did_is_told_as_well(open_stage: OpenStage) -> None:
    """A hub reads the books: whoever writes them, its listeners hear of it."""
    async with open_stage() as one, open_stage() as two:
        browser = await enter(one, "alice@example.com")
        stream = await opened(one, browser)
        await fund(two, "alice@example.com", 5)
        assert await stream.until("calls") == ["balance", "calls"]


async def test_while_the_books_are_away_streams_stay_and_tell_afterwards(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = await enter(stage, stage.alice.email)
    stream = await opened(stage, browser)
    hub = stage.parts.hub

    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(stage.gateway.store, "fetch", away)
        await hub.look()
        await hub.look([7])
        assert await stream.next() == "announcements"
    await fund(stage, stage.alice.email, 5)
    assert "balance" in await stream.until("calls")


async def test_a_page_left_open_keeps_nobody_signed_in(stage: Stage) -> None:
    """What a page asks by itself is no sign of a person."""
    browser = await enter(stage, stage.alice.email)
    await stage.gateway.store.write([("UPDATE session SET seen_at = seen_at - ?", (3_600_000_000,))])
    ((before,),) = await stage.rows("SELECT seen_at FROM session")
    stream = await opened(stage, browser)
    assert (await browser.get("/dashboard", {"x-fragment": "tiles", "x-live": "1"})).status == 200
    assert await stage.rows("SELECT seen_at FROM session") == [(before,)]
    await browser.get("/dashboard")
    assert (await stage.rows("SELECT seen_at FROM session"))[0][0] > before
    stream.answer.abandon()


async def test_what_is_sent_waits_for_its_reader_and_ends_when_there_is_none() -> None:
    """A page that is written piece by piece runs no further ahead than the connection takes, and no further at all
    once its client has gone."""
    written, ended = 0, asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal written
        try:
            while True:
                written += 1
                yield b"x" * 65_536
        finally:
            ended.set()

    async def endless(_: Request) -> StreamingResponse:
        return StreamingResponse(pieces())

    failures: list[str] = []
    door = AsgiDoor(Starlette(routes=[Route("/", endless)]), scheme="http")

    async def handle(exchange: Exchange) -> None:
        try:
            await door.serve(exchange, b"")
        except Exception as error:
            failures.append(repr(error))
            raise

    server = HttpServer(handle, on_bad_request=lambda *_: None)
    port = await server.listen_at(open_doors("127.0.0.1", 0))
    client = HttpClient(Origin("http", "127.0.0.1", port, ""), connect_s=5, connections=1)
    answer = await client.request("GET", "/", [], b"", first_byte_s=5)
    stood = -1
    while stood != written:
        stood = written
        await asyncio.sleep(0.1)
    assert written < 1_000
    answer.abandon()
    async with asyncio.timeout(5):
        await ended.wait()
    assert failures == []
    await client.close()
    await server.shut()
