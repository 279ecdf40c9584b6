"""The other end of the client: a server of plain sockets that does with each connection what a test says."""

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from farebox.http.client import Answer, HttpClient, Origin
from farebox.http.failures import UpstreamError

Peer = Callable[["Line"], Awaitable[None]]


class Line:
    """One connection at the server's end."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """Wait for one whole request."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next((int(row[15:]) for row in head.split(b"\r\n") if row.startswith(b"content-length:")), 0)
        return head + await self._reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Wait until the client has hung up."""
        await self._reader.read()

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Close with a reset in the place of an orderly end."""
        plug = self._writer.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class Server:
    """What was served: a line for each connection."""

    def __init__(self, peer: Peer) -> None:
        self.lines: list[Line] = []
        self.port = 0
        self._peer = peer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(len(self.lines), reader, writer)
        self.lines.append(line)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._peer(line)
        writer.close()


@asynccontextmanager
async def serving(
    peer: Peer, *, connections: int = 100, connect_s: float = 5, stall_s: float = 5
) -> AsyncIterator[tuple[Server, HttpClient]]:
    """Serve, with a client at hand."""
    server = Server(peer)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    origin = Origin("http", "127.0.0.1", server.port, "")
    client = HttpClient(origin, connect_s=connect_s, connections=connections, stall_s=stall_s)
    try:
        yield server, client
    finally:
        await client.close()
        listening.close()


def saying(*pieces: bytes, requests: int = 1) -> Peer:
    """Answer so many requests with these pieces, then close."""

    async def peer(line: Line) -> None:
        for _ in range(requests):
            await line.request()
            for piece in pieces:
                await line.say(piece)

    return peer


async def until(check: Callable[[], object]) -> None:
    """Wait until something has become true."""
    async with asyncio.timeout(5):
        while not check():  # noqa: ASYNC110  it may be the other side's doing
            await asyncio.sleep(0)


async def ask(client: HttpClient, body: bytes = b"hi", *, method: str = "POST", first_byte_s: float = 5) -> Answer:
    return await client.request(method, "/", [], body, first_byte_s=first_byte_s)


async def outcome(client: HttpClient) -> bytes | UpstreamError:
    """Ask, and give the whole answer or how it failed."""
    try:
        return await (await ask(client)).read(2**26)
    except UpstreamError as error:
        return error


def whole(body: bytes, *headers: bytes) -> bytes:
    """Write an answer of known length."""
    head = b"".join(b"%b\r\n" % header for header in headers)
    return b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


def chunked(*pieces: bytes) -> bytes:
    """Write an answer in chunks."""
    parts = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Cut bytes at these places."""
    places = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]
