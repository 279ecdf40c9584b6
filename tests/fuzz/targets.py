"""What is fuzzed, each as a function of bytes that raises when a promise is broken.

The first two bytes say where the rest is cut: any cutting has the same result as none.
"""

import asyncio
import random
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgspec

from farebox.errors import FareboxError
from farebox.gateway.ask import read_request
from farebox.gateway.demand import demand_of
from farebox.gateway.settings import Features
from farebox.gateway.sse import Meter
from farebox.http.client import Answer, ClientConnection, HttpClient, Origin
from farebox.http.exchange import Exchange
from farebox.http.failures import UpstreamError
from farebox.http.server import HttpServer, ServerConnection
from tests.books.shop import MODELS

_BOUNDARY: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_VISIBLE: Final = re.compile(rb'"(?:text|thinking|partial_json)": ?"((?:[^"\\\r\n]|\\[^\r\n])*)"')


def cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """Give what is to be fed, whole and in pieces."""
    dice = random.Random(data[:2])
    rest, pieces = data[2:], []
    at = 0
    while at < len(rest):
        size = dice.choice((1, 1, 2, 3, 7, 40))
        pieces.append(rest[at : at + size])
        at += size
    return rest, pieces


def meter(data: bytes) -> None:
    """The meter reads a stream alike however it is cut, and as a slow reader of one event after the other does."""
    whole, pieces = cut(data)
    told = _metered([whole])
    assert told == _metered(pieces), (told, _metered(pieces))
    known = whole[:-1] if whole.endswith(b"\n\r") else whole  # that CR is known for an end by what comes next
    events = [match.end() for match in _BOUNDARY.finditer(known)]
    one_by_one = [whole[begin:end] for begin, end in zip([0, *events], [*events, len(whole)], strict=True)]
    assert told == _metered(one_by_one), (told, _metered(one_by_one))
    if told["finished"] is False and told["broken"] is None and told["error"] is None:
        seen = sum(len(b"".join(_VISIBLE.findall(event))) for event in one_by_one[:-1])
        assert told["visible"] == seen, (told, seen)


def _metered(pieces: list[bytes]) -> Mapping[str, Any]:
    reader = Meter()
    passed = b"".join([reader.feed(piece) for piece in pieces])
    ended = reader.finished or reader.broken is not None or reader.error is not None
    names = (
        "started",
        "finished",
        "broken",
        "error",
        "model",
        "message_id",
        "stop_reason",
        "usage",
        "usage_is_final",
    )
    told: dict[str, Any] = {name: getattr(reader, name) for name in names}
    rest = b"" if ended else passed + reader.held + bytes(reader._tail)
    assert ended or rest == b"".join(pieces), "bytes were lost or changed"
    ends = b"\r\n"  # of several blank lines in a row, whichever event takes them
    told |= {"passed": passed.rstrip(ends), "visible": -1 if ended else reader.visible_bytes}
    return told | {"held": b"" if ended else reader.held.strip(ends), "error_event": reader.error_event.strip(ends)}


class _Wire:
    """A transport that leads nowhere."""

    def __init__(self) -> None:
        self.said = bytearray()
        self.closed = False
        self.protocol: asyncio.Protocol | None = None

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.said += data

    def get_extra_info(self, _: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def requests(data: bytes) -> None:
    """The server reads the same requests however their bytes are cut, and gives the same answers."""
    whole, pieces = cut(data)
    with asyncio.Runner() as runner:
        at_once = runner.run(_served([whole]))
        in_pieces = runner.run(_served(pieces))
    assert at_once == in_pieces, (at_once, in_pieces)


async def _served(pieces: list[bytes]) -> tuple[list[Any], bytes]:
    seen: list[Any] = []
    odd: list[Exception] = []

    async def serve(exchange: Exchange) -> None:
        body = await exchange.read_body(2**16)
        seen.append((exchange.method, exchange.path, exchange.query, exchange.headers, body))
        exchange.respond(200, [], b"%d" % len(seen))

    def refuse(exchange: Exchange, error: Exception) -> None:
        if not isinstance(error, FareboxError | ConnectionResetError):
            odd.append(error)
        if not exchange.started:
            exchange.respond(getattr(error, "status", 400), [], b"no")

    server = HttpServer(serve, on_bad_request=refuse)
    line = ServerConnection(server, asyncio.get_running_loop())
    wire = _Wire()
    line.connection_made(cast("asyncio.Transport", wire))
    for piece in pieces:
        if not wire.closed:
            line.data_received(piece)
            await _quiet()
    await _quiet()
    line.connection_lost(None)
    await _quiet()
    assert not odd, odd
    assert not server.tasks, "somebody still waits for a client that is gone"
    return seen, bytes(wire.said).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")  # only who waits is invited


async def _quiet() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


def answers(data: bytes) -> None:
    """The client reads the same answer however it is cut, and keeps its connection only after a whole one."""
    whole, pieces = cut(data)
    with asyncio.Runner() as runner:
        at_once = runner.run(_answered([whole]))
        in_pieces = runner.run(_answered(pieces))
    assert at_once[:-1] == in_pieces[:-1], (at_once, in_pieces)
    blank = whole.endswith((b"\r", b"\n"))  # behind an answer a blank line is nothing, but unasked if it comes alone
    assert at_once[-1] == in_pieces[-1] or (blank and at_once[-1]), (at_once, in_pieces)


async def _answered(pieces: list[bytes]) -> tuple[object, ...]:
    client = HttpClient(Origin("http", "127.0.0.1", 1, ""), connect_s=1, connections=2)
    await client._free.acquire()
    client.running += 1
    loop = asyncio.get_running_loop()
    line = ClientConnection(client, loop)
    wire = _Wire()
    line.connection_made(cast("asyncio.Transport", wire))
    line.busy = True
    client.opened.add(line)

    async def asking() -> tuple[object, ...]:
        try:
            answer: Answer = await line.exchange(b"POST", head_only=False, first_byte_s=60)
            return answer.status, answer.headers, await answer.read(2**20)
        except UpstreamError as error:
            return (type(error).__name__,)

    task = asyncio.create_task(asking())
    await asyncio.sleep(0)
    for piece in pieces:
        if not wire.closed:
            line.data_received(piece)
            await asyncio.sleep(0)
    kept = not wire.closed and line in client._idle
    line.connection_lost(None)
    told = await asyncio.wait_for(task, 5)
    assert client.running == 0, "an exchange was not given back, or twice"
    assert client._idle == []
    return (*told, kept)


def bodies(data: bytes) -> None:
    """Any body is decoded and bounded, or refused in words; nothing else."""
    for model in MODELS[:1]:
        try:
            asked = read_request(data)
            demand = demand_of(asked, len(data), model, Features(), [], asked.max_tokens or 1)
        except FareboxError:
            return
        assert demand.prompt_tokens >= 0
        msgspec.json.encode(demand)


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "meter": meter,
    "requests": requests,
    "answers": answers,
    "bodies": bodies,
}
