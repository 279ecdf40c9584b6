"""An HTTP/1.1 server protocol on asyncio and httptools (llhttp): bytes in, exchanges out.

It knows framing, limits and clients that hang up or crawl; it never looks inside a body.
Parsing is llhttp's, in its strict mode; this file adds what a parser cannot know: time and size.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from email.utils import formatdate
from typing import Final

import httptools
import msgspec

from farebox.errors import InvalidRequest, RequestTimeout
from farebox.http.addresses import Network, client_address
from farebox.http.doors import BACKLOG, open_doors
from farebox.http.exchange import Exchange
from farebox.http.turnstile import Turnstile

_BUFFER_BYTES: Final = 256 * 1024
_LINGER_S: Final = 5.0


class ServerLimits(msgspec.Struct, frozen=True):
    """What one connection may ask for. Seconds are whole-second sweeps, so up to one second late."""

    header_bytes: int = 64 * 1024
    header_timeout_s: float = 10.0
    keep_alive_s: float = 75.0
    body_idle_s: float = 30.0
    body_total_s: float = 300.0
    write_stall_s: float = 30.0
    pipelined: int = 16
    connections: int = 10_000


Handler = Callable[[Exchange], Awaitable[None]]


class HttpServer:
    """A listening server: owns its connections, the tasks that serve exchanges, and the sweep that ends slow ones."""

    def __init__(
        self,
        handler: Handler,
        *,
        on_bad_request: Callable[[Exchange, Exception], None],
        limits: ServerLimits | None = None,
        proxies: Collection[Network] = (),
    ) -> None:
        self.handler = handler
        self.on_bad_request = on_bad_request
        self.limits = limits or ServerLimits()
        self.proxies = proxies
        """Who may say for whom they speak (x-forwarded-for)."""
        self.connections: set[ServerConnection] = set()
        self.turnstile = Turnstile(self._begin)
        self.tasks: set[asyncio.Task[None]] = set()
        self.closing = False
        self.leaving = False
        """Whether connections are to be given up with the next answer: others serve at these doors, or nobody will."""
        self.date = b""
        self.now = 0.0
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._grace: asyncio.Timeout | None = None
        self._hurries = False
        self._emptied = asyncio.Event()

    async def listen(self, host: str, port: int) -> int:
        """Open the doors; answers the port, which is chosen by the system when 0 was asked for. Raises OSError."""
        return await self.listen_at(open_doors(host, port))

    async def listen_at(self, doors: Sequence[socket.socket]) -> int:
        """Serve from sockets that listen already, and which other processes may share. Answers their port."""
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        for door in doors:
            server = await loop.create_server(lambda: ServerConnection(self, loop), sock=door, backlog=BACKLOG)
            self._servers.append(server)
        self._sweeper = loop.create_task(self._sweep())
        return int(doors[0].getsockname()[1])

    async def hand_over(self, grace_s: float) -> None:
        """Stop accepting, where another process does so; serve on, for at most `grace_s`, until no connection is left.

        Each is told with its next answer that it was the last. One that is idle stays open until its time is up, as
        ever: a request may be on its way, and would be lost.
        """
        self.leaving = True
        self.close_doors()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self.connections or self.tasks:
                    self._emptied.clear()
                    await self._emptied.wait()

    async def close(self, grace_s: float) -> bool:
        """Stop accepting, let running exchanges end for at most `grace_s`; answers whether all of them did.

        `hurry` ends the waiting.
        """
        self.closing = self.leaving = True
        self.close_doors()
        for connection in list(self.connections):
            connection.close_if_idle()
        self.turnstile.let_all_in()
        running = set(self.tasks)
        if running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0 if self._hurries else grace_s) as self._grace:
                    await asyncio.wait(running)
        self._grace = None
        return all(task.done() for task in running)

    def close_doors(self) -> None:
        """Accept no more. Comes before the sockets themselves are closed, which the loop still watches."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    def gone(self) -> None:
        """Note that a connection or a task has ended: `hand_over` may wait for the last one."""
        self._emptied.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self.leaving:
            self.gone()

    def hurry(self) -> None:
        """Let `close` wait no longer, also when it has not begun yet."""
        self._hurries = True
        if self._grace is not None and not self._grace.expired():
            self._grace.reschedule(0)

    async def shut(self) -> None:
        """Cut what is still open. After `close`, when the owners of running exchanges have ended them."""
        for connection in list(self.connections):
            connection.close_soon()
        await asyncio.sleep(0)
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper

    def serve(self, exchange: Exchange) -> None:
        """Serve an exchange, when it is its turn."""
        self.turnstile.enter(exchange)

    def _begin(self, exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(self._run(exchange))
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self.handler(exchange)
        except Exception as error:  # noqa: BLE001  the outermost loop of an exchange: answered, logged, counted
            self.on_bad_request(exchange, error)
        if not exchange.finished:
            if exchange.started or exchange.gone:
                exchange.abort()
            else:
                exchange.finish()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            self.now = loop.time()
            self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
            for connection in list(self.connections):
                connection.sweep(self.now)


class ServerConnection(asyncio.Protocol):
    """One client connection: feeds the parser, queues pipelined requests, serves them one at a time, in order."""

    __slots__ = (
        "_bare_bytes", "_body_started", "_current", "_deadline", "_discarding", "_in_head", "_loop", "_parser",
        "_peer", "_queue", "_read_paused", "_receiving", "_stalled_since", "_transport", "_url",
        "server", "write_paused",
    )  # fmt: skip

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._queue: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._receiving: Exchange | None = None
        self._url = b""
        self._in_head = False
        self._bare_bytes = 0
        self._deadline: float | None = None
        self._body_started = 0.0
        self._stalled_since: float | None = None
        self._read_paused = False
        self._discarding = False
        self.write_paused = False

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if peer else ""
        if self.server.closing or len(self.server.connections) >= self.server.limits.connections:
            transport.close()
            return
        self.server.connections.add(self)
        self._deadline = self._loop.time() + self.server.limits.header_timeout_s

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.server.connections.discard(self)
        self._transport = None
        if self.server.leaving:
            self.server.gone()
        lost = [exchange for exchange in (self._current, self._receiving, *self._queue) if exchange is not None]
        self._queue.clear()
        for exchange in lost:
            exchange._lost()  # noqa: SLF001

    def eof_received(self) -> bool:
        return False  # a client that closes its sending side has hung up, as for nginx

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, Exception) else error)
        except httptools.HttpParserError as error:
            self._refuse(InvalidRequest(f"the request is not valid HTTP/1.1: {error}"))
        else:
            if self._bare_bytes > self.server.limits.header_bytes:  # without a byte of body: head or trailers
                self._refuse(_headers_too_large(self.server.limits))

    def pause_writing(self) -> None:
        self.write_paused = True
        self._stalled_since = self._loop.time()

    def resume_writing(self) -> None:
        self.write_paused = False
        closing = self._transport is not None and self._transport.is_closing()
        self._stalled_since = self._loop.time() if closing else None
        if self._current is not None and self._current.on_resumed is not None:
            self._current.on_resumed()

    # the parser's side

    def on_message_begin(self) -> None:
        self._url = b""
        self._receiving = Exchange(self, self._peer)
        self._in_head = True
        self._deadline = self._loop.time() + self.server.limits.header_timeout_s

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head and self._receiving is not None:  # trailers are dropped (RFC 9110 6.5.1)
            self._receiving.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        exchange = self._receiving
        assert exchange is not None
        self._in_head = False
        exchange.method = self._parser.get_method().decode("ascii")
        exchange.path, exchange.query = _target(self._url.decode("latin-1"))
        if self.server.proxies:
            exchange.peer = client_address(self._peer, exchange.headers, self.server.proxies)
        self._check_head(exchange)
        exchange.keep_alive = self._parser.should_keep_alive()
        self._body_started = self._loop.time()
        self._deadline = self._body_started + self.server.limits.body_idle_s
        if self._current is None:
            self._current = exchange
            self.server.serve(exchange)
        else:
            self._queue.append(exchange)
            if len(self._queue) > self.server.limits.pipelined:
                raise InvalidRequest(f"at most {self.server.limits.pipelined} requests may wait on one connection")

    def on_body(self, body: bytes) -> None:
        self._bare_bytes = 0
        exchange = self._receiving
        if exchange is None or exchange.finished:
            return
        exchange._received(body)  # noqa: SLF001
        self._deadline = self._loop.time() + self.server.limits.body_idle_s
        unread = exchange is not self._current or exchange._body_waiter is None  # noqa: SLF001
        if unread and exchange._body_size > _BUFFER_BYTES and self._transport is not None:  # noqa: SLF001
            self._read_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        exchange = self._receiving
        self._receiving = None
        self._bare_bytes = 0
        self._deadline = None
        if exchange is not None:
            exchange.request_complete = True
            exchange._wake()  # noqa: SLF001

    def _check_head(self, exchange: Exchange) -> None:
        """Refuse what two servers might read as two different requests (RFC 9112 11.2), and what is too large."""
        version = self._parser.get_http_version()
        exchange.http_1_0 = version == "1.0"
        if version not in {"1.0", "1.1"} or exchange.method == "CONNECT":
            raise InvalidRequest("send plain HTTP/1.1 to the server itself; it is no proxy and speaks no other version")
        lengths: list[bytes] = []
        encodings: list[bytes] = []
        hosts = 0
        for name, value in exchange.headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                lengths.append(value)
            elif name == b"transfer-encoding":
                encodings.append(value)
        if lengths and encodings:
            raise InvalidRequest("send content-length or transfer-encoding, not both (RFC 9112 6.1)")
        if len(lengths) > 1 or len(encodings) > 1:
            raise InvalidRequest("send content-length and transfer-encoding once at most (RFC 9112 6.3)")
        if encodings and encodings[0].strip().lower() != b"chunked":
            raise InvalidRequest("the only transfer-encoding accepted is chunked")
        if (lengths or encodings) and self._parser.should_upgrade():  # the parser would leave the body out
            raise InvalidRequest("send a body without an upgrade header; this server speaks HTTP/1.1 alone")
        if encodings and exchange.http_1_0:
            raise InvalidRequest("HTTP/1.0 has no transfer-encoding; send content-length (RFC 9112 6.1)")
        if lengths:
            exchange.content_length = int(lengths[0])
        limits = self.server.limits
        if len(exchange.headers) > 200 or (
            self._bare_bytes > limits.header_bytes and _head_bytes(exchange, self._url) > limits.header_bytes
        ):
            raise _headers_too_large(limits)
        if hosts > 1 or (not hosts and not exchange.http_1_0):
            raise InvalidRequest("send one host header (RFC 9112 3.2)")

    # the exchange's side

    @property
    def more_waits(self) -> bool:
        """Whether requests have come behind the one that is being answered."""
        return bool(self._queue) or (self._receiving is not None and self._receiving is not self._current)

    def invite_body(self, exchange: Exchange) -> None:
        expect = exchange.header(b"expect")
        if (
            expect is not None
            and not exchange.http_1_0
            and expect.lower() == b"100-continue"
            and self._transport is not None
        ):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def resume_reading(self) -> None:
        if self._read_paused and self._transport is not None:
            self._read_paused = False
            self._transport.resume_reading()
            if self._receiving is not None:
                self._deadline = self._loop.time() + self.server.limits.body_idle_s

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def exchange_finished(self, exchange: Exchange) -> None:
        if self._transport is None or exchange is not self._current:
            return
        self._current = None
        self.resume_reading()  # its body may have come all at once, faster than it was asked for
        if not exchange.request_complete:
            self._linger()
        elif not exchange.keep_alive or self.server.closing:
            self.close_soon()
        elif self._queue:
            self._current = following = self._queue.popleft()
            if following._failure is not None:  # noqa: SLF001
                self.server.on_bad_request(following, following._failure)  # noqa: SLF001
            else:
                self.server.serve(following)
        elif self._receiving is None:
            self._deadline = self.server.now + self.server.limits.keep_alive_s

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def break_off(self, *, reset: bool) -> None:
        """Close in order, or with a reset: without time to linger the kernel sends RST in the place of FIN."""
        if self._transport is not None and reset:
            plug: socket.socket = self._transport.get_extra_info("socket")
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self.close_soon()

    def close_soon(self) -> None:
        """Close once what was written has been read; the sweep cuts a client that does not read it."""
        if self._transport is not None:
            self._transport.close()
            if self._stalled_since is None:
                self._stalled_since = self._loop.time()

    def close_if_idle(self) -> None:
        if self._current is None and not self._queue:
            self.close_soon()

    def sweep(self, now: float) -> None:
        """End what has waited too long: headers, a body, an idle connection, a client that does not read."""
        limits = self.server.limits
        if self._stalled_since is not None and now - self._stalled_since > limits.write_stall_s:
            self.abort()
        elif (self._deadline is not None and now > self._deadline) or (
            self._receiving is not None and not self._in_head and now - self._body_started > limits.body_total_s
        ):
            self._time_out()

    def _time_out(self) -> None:
        if self._discarding or (self._current is None and self._receiving is None):
            self.close_soon()
        elif self._read_paused:
            self._deadline = None  # we made it wait, not the client
        else:
            self._refuse(RequestTimeout("the request came too slowly; send it in one go"))

    def _refuse(self, error: Exception) -> None:
        """Answer a request that cannot be read, then close: after a framing error nothing later can be trusted.

        Those before it are answered first: they were whole, and their answers are waited for.
        """
        exchange = self._receiving or Exchange(self, self._peer)
        self._receiving = None
        self._deadline = None
        self._discarding = True
        exchange.keep_alive = False
        if self._current is None:
            self._current = exchange
            self.server.on_bad_request(exchange, error)
        else:
            exchange._failed(error)  # noqa: SLF001  where it is the current one, its handler waits for the body or will
            if exchange is not self._current and exchange not in self._queue:
                self._queue.append(exchange)

    def _ignore_upgrade(self) -> None:
        """Answer a request to switch protocols as the plain one it also is (RFC 9110 7.8), then close."""
        last = self._queue[-1] if self._queue else self._current
        self._discarding = True
        if last is not None:
            last.keep_alive = False

    def _linger(self) -> None:
        """Close so that the client can still read its refusal: discard what it goes on sending, for a while.

        Closing at once with unread input makes the kernel send a reset that overtakes the answer.
        """
        self._discarding = True
        self._receiving = None
        self.resume_reading()
        self._deadline = self._loop.time() + _LINGER_S
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()


def _target(url: str) -> tuple[str, str]:
    """Split a request target into path and query; of the absolute form the host is left out (RFC 9112 3.2.2)."""
    path, _, query = url.partition("?")
    scheme, separator, rest = path.partition("://")
    if separator and scheme.lower() in {"http", "https"}:
        path = "/" + rest.partition("/")[2]
    return path, query


def _head_bytes(exchange: Exchange, url: bytes) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in exchange.headers)


def _headers_too_large(limits: ServerLimits) -> InvalidRequest:
    error = InvalidRequest(f"the headers are larger than {limits.header_bytes} bytes or more than 200; send fewer")
    error.status = 431
    return error
