"""Whatever shape an exchange has: it comes through byte for byte, and is metered to the nano-dollar.

Every exchange of the corpus runs through a running gateway, its answer cut in several ways. FAREBOX_SEED repeats the
cuts of a run; the note at a failure names it.
"""

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

import msgspec
import pytest
import pytest_asyncio

from farebox.http.client import Answer
from tests.corpus.exchanges import CUTTINGS, ROOT, Exchange, Metered, names, plain_head, read
from tests.databases import Databases
from tests.gateway.play import envelope, eventually, message, upstream
from tests.stage import Person, Stage, open_stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED: Final = int(os.environ.get("FAREBOX_SEED") or random.SystemRandom().getrandbits(32))
STOP: Final = b'{"type":"message_stop"}\n\n'
CUT: Final = ("stream/every_event", "stream/ends/message_delta_then_content")
"""Streams that are cut off everywhere."""


class Theirs:
    """An upstream that answers as it was told last, byte for byte, and remembers what it was asked."""

    def __init__(self) -> None:
        self.pieces: Sequence[bytes] = ()
        self.stays_open = False
        self.heard: list[tuple[bytes, bytes]] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.heard.append((head, await reader.readexactly(length)))
            for piece in self.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if self.stays_open:
                await reader.read()
        writer.close()


class Room:
    """A gateway before that upstream, and a customer with money enough."""

    def __init__(self, stage: Stage, theirs: Theirs, alice: Person) -> None:
        self.stage = stage
        self.theirs = theirs
        self.alice = alice
        self.calls = 0

    async def ask(self, exchange: Exchange, pieces: Sequence[bytes]) -> tuple[Answer, bytes]:
        """Make the call of an exchange; gives its answer and all of the body."""
        self.theirs.pieces, self.theirs.stays_open = pieces, exchange.stays_open
        is_stream = exchange.head.lower().find(b"text/event-stream") >= 0
        answer = await self.stage.post(self.alice, message(**{"stream": is_stream, **exchange.ask}))
        async with asyncio.timeout(10):
            body = await answer.read(2**26)
        for way_up in self.stage.parts.pool.upstreams:
            way_up.succeeded()  # whatever this exchange made of its health, the next one begins anew
        return answer, body

    async def metered(self, status: int) -> tuple[Metered, int]:
        """Give the row that the last call left, once it has, and the balance since; nothing is held any more."""
        self.calls += 1
        columns = Metered.__struct_fields__
        sql = f"""
        SELECT (SELECT count(*) FROM usage WHERE account_id = account.id), (SELECT count(*) FROM hold),
            account.held_nanos, account.posted_nanos, {", ".join(f"usage.{column}" for column in columns)}
        FROM account JOIN usage ON usage.account_id = account.id WHERE account.id = ? ORDER BY usage.at DESC LIMIT 1"""
        rows: list[tuple[Any, ...]] = []

        async def ended() -> bool:
            rows[:] = await self.stage.rows(sql, self.alice.account_id)
            return bool(rows) and rows[0][0] == self.calls

        await eventually(ended)
        _, holds, held, posted, *row = rows[0]
        assert (holds, held) == (0, 0)
        told = dict(zip(columns, row, strict=True))
        told["status"] = 0 if told["status"] == status else told["status"]
        return msgspec.convert({name: "" if value is None else value for name, value in told.items()}, Metered), posted

    async def balance(self) -> int:
        return (await self.stage.balance(self.alice))[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room(
    databases: Databases, database_kind: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Room]:
    theirs = Theirs()
    server = await asyncio.start_server(theirs.serve, "127.0.0.1", 0, limit=2**22)
    theirs.port = server.sockets[0].getsockname()[1]
    directory = tmp_path_factory.mktemp("corpus")
    with databases.fresh(database_kind, directory) as url:
        up = upstream("theirs", theirs.port)
        async with open_stage(directory, upstreams=up, limits="attempts = 1", database_url=url) as stage:
            yield Room(stage, theirs, await stage.person("corpus@example.com", 10_000, plan="enterprise"))
    server.close()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing falls through to the event loop, which would log it."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"] == []


async def see(room: Room, exchange: Exchange, pieces: Sequence[bytes]) -> None:
    """Make the call of an exchange and see that all of it is as its files say."""
    before = await room.balance()
    answer, body = await room.ask(exchange, pieces)
    metered, after = await room.metered(answer.status)
    _see_body(exchange, answer, body)
    if exchange.metered.kind == "exact":
        assert metered == exchange.metered
    else:  # of a call that was free the rest is only told
        assert (metered.kind, metered.outcome) == (exchange.metered.kind, exchange.metered.outcome)
        assert (metered.status, metered.charged_nanos) == (0, exchange.metered.charged_nanos)
    assert after == before - exchange.metered.charged_nanos
    assert b"\r\naccept-encoding: identity\r\n" in room.theirs.heard[-1][0]
    for name, value in exchange.headers.items():
        assert answer.header(name.encode()) == value.encode()
    head = plain_head(answer.headers)
    assert not [words for words in exchange.hidden if words.encode() in body + head]


def _see_body(exchange: Exchange, answer: Answer, body: bytes) -> None:
    said = exchange.seen_body
    way, _, wanted = exchange.gets.partition(" ")
    if way == "end" and answer.status == 502:  # it broke before a byte of it had been passed on
        assert envelope(body)[0] == "upstream_error"
        return
    assert answer.status == exchange.status, body[:500]
    if exchange.gets == "the same":
        assert body == said
        assert answer.header(b"request-id") != b"req_011CTheirs"
    elif way == "at":
        assert said.startswith(body)
        assert STOP in body
    elif way == "error":
        assert envelope(body)[0] == wanted
    else:
        assert way == "end"
        begin, mark, end = body.rpartition(b"event: error" if b"event: error" in body else b"data: ")
        assert said.startswith(begin)
        assert b'"message_stop"' not in begin
        assert json.loads((mark + end).partition(b"data: ")[2])["error"]["type"] == wanted
        assert exchange.ends_with == "" or said.endswith(mark + end)


@pytest.mark.parametrize("name", names())
async def test_an_exchange_comes_through_and_is_metered(room: Room, name: str) -> None:
    """However the bytes are cut: in one piece, byte by byte, by the line, at random."""
    exchange = read(name)
    for cutting in CUTTINGS:
        try:
            await see(room, exchange, cutting(exchange, random.Random(f"{SEED} {name}")))
        except AssertionError as error:
            error.add_note(f"{cutting.__name__}, FAREBOX_SEED={SEED}: {exchange.shows}")
            raise


def _events(name: str) -> list[bytes]:
    return [event + b"\n\n" for event in read(name).body.split(b"\n\n")[:-1]]


def _passed_on(events: list[bytes]) -> bytes:
    """Join what a client may have had of these: all but a message_delta that may be the last one, and what follows."""
    ends = [at for at, event in enumerate(events) if b"event: message_delta" in event]
    if ends and not any(b"event: content_block" in event for event in events[ends[-1] :]):
        events = events[: ends[-1]]
    return b"".join(events)


@pytest.mark.parametrize("within", [False, True], ids=["after the event", "within the event"])
@pytest.mark.parametrize(("name", "number"), [(name, at) for name in CUT for at in range(len(_events(name)))])
async def test_a_stream_that_is_cut_off_anywhere_is_free_and_never_looks_whole(
    room: Room, name: str, number: int, *, within: bool
) -> None:
    """Whether the connection closes in order or too soon: without message_stop there is no answer."""
    exchange, events = read(name), _events(name)
    event = events[number]
    if event.startswith(b"event: message_stop") and not within:
        return await see(room, exchange, CUTTINGS[0](exchange, random.Random(0)))
    whole = events[: number if within else number + 1]
    body = b"".join(whole) + (event[: len(event) // 2] if within else b"")
    for framing in (b"", b"content-length: %d\r\n" % len(body), b"content-length: %d\r\n" % (len(body) + 1)):
        before = await room.balance()
        answer, heard = await room.ask(exchange, [exchange.head + b"\r\n" + framing + b"\r\n" + body])
        row, after = await room.metered(answer.status)
        assert (row.kind, row.outcome, row.charged_nanos) == ("waived", "upstream_broke", 0)
        assert after == before
        if not whole:
            assert (answer.status, envelope(heard)[0]) == (502, "upstream_error")
            continue
        begin, _, end = heard.rpartition(b"event: error\n")
        assert begin == _passed_on(whole)
        assert json.loads(end.removeprefix(b"data: "))["error"]["type"] == "upstream_error"
    return None


async def test_an_upstream_that_never_ends_the_body_keeps_no_connection(room: Room) -> None:
    """The message has ended, so has the call; soon the connection does, too, and others get its place."""
    exchange = read("framing/stays_open_after_the_end")
    await see(room, exchange, CUTTINGS[0](exchange, random.Random(0)))
    (way_up,) = room.stage.parts.pool.upstreams

    async def free() -> bool:
        return way_up.in_flight == 0

    await eventually(free)


REQUESTS: Final = sorted(path.stem for path in ROOT.glob("requests/*.json"))


class Sent(msgspec.Struct, forbid_unknown_fields=True):
    """What is sent beside a body, and what the client gets."""

    shows: str
    headers: dict[str, str] = {}
    grow: dict[str, int] = {}
    status: int = 200
    error: str = ""
    """An error code, or words of the message."""


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_goes_up_byte_for_byte_or_is_refused_before_it_costs_anything(room: Room, name: str) -> None:
    sent = msgspec.toml.decode((ROOT / "requests" / f"{name}.toml").read_bytes(), type=Sent)
    body = (ROOT / "requests" / f"{name}.json").read_bytes()
    for mark, count in sent.grow.items():
        body = body.replace(mark.encode(), b"x" * count)
    plain = read("json/plain")
    room.theirs.pieces, room.theirs.stays_open = CUTTINGS[0](plain, random.Random(0)), False
    room.theirs.heard.clear()
    before = await room.balance()
    answer = await room.stage.post(room.alice, body, headers=sent.headers)
    told = await answer.read(2**20)
    assert answer.status == sent.status, told
    if sent.status == 200:
        assert (told, [asked for _, asked in room.theirs.heard]) == (plain.body, [body])
        assert await room.metered(200) == (plain.metered, before - plain.metered.charged_nanos)
    else:
        assert envelope(told)[0] == "invalid_request_error"
        assert sent.error in told.decode()
        assert room.theirs.heard == []
        assert await room.stage.rows("SELECT count(*) FROM hold") == [(0,)]
        assert await room.balance() == before
