"""An HTTP/1.1 client on asyncio and httptools for a few trusted origins: pooled, bounded, byte-faithful.

It sends one request per connection at a time and hands the answer's bytes on as they come. Every way an exchange can
fail is told apart by what the other side may have done with the request.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

import httptools
import msgspec

from farebox.http.exchange import Headers
from farebox.http.failures import AnswerTimeout, BadAnswer, ConnectFailed, Cut, StaleConnection, UpstreamError
from farebox.http.reading import Sink, read_whole

_BUFFER_BYTES: Final = 256 * 1024
_STALE_S: Final = 2.0
_HEADER_BYTES: Final = 64 * 1024
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class Origin(msgspec.Struct, frozen=True):
    """Where to connect: scheme, host, port, and the path that goes before each request's own."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> bytes:
        default = 443 if self.scheme == "https" else 80
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (host if self.port == default else f"{host}:{self.port}").encode("ascii")


def read_origin(url: str) -> Origin:
    """Read a base URL. Raises ValueError, whose words hold no password, when it is not plain http or https with a host.

    A name of other letters than ASCII's is written as DNS has it ("xn--..."): so it goes into the header `host`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        (parts.hostname or "").encode("idna")  # a name that no lookup takes: a label is empty, or too long
    except ValueError:  # its words may quote all before the host
        raise _no_origin(url) from None
    known = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc
    if not known or parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise _no_origin(url)
    assert parts.hostname is not None
    return Origin(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))


def _no_origin(url: str) -> ValueError:
    shown = url if "@" not in url else f"…@{url.rpartition('@')[2]}"
    return ValueError(f"a base URL is https://host[:port][/path] in ASCII, without a password, got {shown[:100]!r}")


class Answer:
    """A response whose head has arrived. Its body waits, bounded, until a sink is attached or it is read."""

    __slots__ = (
        "_connection", "_early", "_ended", "_error", "_paused", "_sink", "_size", "headers", "stall_s", "status",
    )  # fmt: skip

    def __init__(self, connection: "ClientConnection", status: int, headers: Headers) -> None:
        self._connection: ClientConnection | None = connection
        self.status = status
        self.headers = headers
        self.stall_s = connection.stall_s
        self._early: list[bytes] = []
        self._size = 0
        self._sink: Sink | None = None
        self._ended = False
        self._error: UpstreamError | None = None
        self._paused = False

    def header(self, name: bytes) -> bytes | None:
        """Give the first value of a header, by its lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def attach(self, sink: Sink) -> None:
        """Send the body to a sink, beginning with what has come already."""
        early, self._early = self._early, []
        self._sink = sink
        for piece in early:
            sink.on_data(piece)
        if self._ended:
            sink.on_end(self._error)
        else:
            self.resume()

    async def read(self, limit: int) -> bytes:
        """Read the whole body. Raises UpstreamError when it breaks, stalls or is larger than `limit`."""
        if self._ended and self._error is None and self._size <= limit:
            return b"".join(self._early)
        return await read_whole(self, limit)

    def pause(self) -> None:
        """Stop reading, so that the other side slows down."""
        if not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause()

    def resume(self) -> None:
        if self._paused and self._connection is not None:
            self._paused = False
            self._connection.resume()

    def abandon(self) -> None:
        """Cut the exchange: nothing more of it is wanted. Harmless when it has ended."""
        if self._connection is not None:
            self._connection.abort()

    def silent_s(self, now: float) -> float:
        """How long nothing has come, in seconds; 0 when the silence is of our making."""
        if self._paused or self._connection is None:
            return 0.0
        return now - self._connection.heard_at

    def _data(self, data: bytes) -> None:
        self._size += len(data)
        if self._sink is not None:
            self._sink.on_data(data)
            return
        self._early.append(data)
        if self._size > _BUFFER_BYTES:
            self.pause()

    def _end(self, error: UpstreamError | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._connection = None
        if self._sink is not None:
            self._sink.on_end(error)


class HttpClient:
    """A pool of connections to one origin."""

    def __init__(
        self,
        origin: Origin,
        *,
        connect_s: float,
        connections: int,
        idle_s: float = 30.0,
        stall_s: float = 90.0,
        tls: ssl.SSLContext | None = None,
        address: str = "",
    ) -> None:
        """`address` is where to connect instead of wherever the origin's name leads."""
        self.origin = origin
        self._address = address or origin.host
        self._connect_s = connect_s
        self._idle_s = idle_s
        self.stall_s = stall_s
        self._tls = (tls or ssl.create_default_context()) if origin.scheme == "https" else None
        self._idle: list[ClientConnection] = []
        self.opened: set[ClientConnection] = set()
        self._free = asyncio.Semaphore(connections)
        """One for each exchange that may run. A connection is opened only when none idles, so no more of them exist."""
        self.running = 0
        """Exchanges that have one, those that still connect included."""
        self.on_free: Callable[[], None] | None = None
        """Called when an exchange has ended."""

    async def request(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        *,
        first_byte_s: float,
    ) -> Answer:
        """Send a request and wait for the head of its answer.

        `target` is path and query below the origin's own path. Raises ConnectFailed (never sent), AnswerTimeout,
        Cut or BadAnswer. A kept connection that turns out dead is replaced by a fresh one, silently.
        """
        request_line = f"{method} {self.origin.path}{target} HTTP/1.1\r\nhost: ".encode("latin-1")
        head = [request_line, self.origin.authority, b"\r\n"]
        head += [b"%b: %b\r\n" % field for field in headers]
        head.append(b"content-length: %d\r\n\r\n" % len(body) if body or method == "POST" else b"\r\n")
        message = b"".join(head) + body
        while True:
            connection, fresh = await self._acquire()
            try:
                return await connection.exchange(message, head_only=method == "HEAD", first_byte_s=first_byte_s)
            except StaleConnection:
                if fresh:
                    raise Cut("the upstream closed the connection without an answer") from None

    async def close(self) -> None:
        """Drop all connections."""
        for connection in list(self.opened):
            connection.abort()
        await asyncio.sleep(0)

    async def _acquire(self) -> tuple["ClientConnection", bool]:
        """Give a connection, and whether it is fresh. It counts as busy until `release` or `forget`."""
        if self._free.locked():
            try:
                async with asyncio.timeout(self._connect_s):
                    await self._free.acquire()
            except TimeoutError:
                raise ConnectFailed(f"no free connection to {self.origin.host} within {self._connect_s:g} s") from None
        else:
            await self._free.acquire()  # at once
        self.running += 1
        oldest = asyncio.get_running_loop().time() - self._idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.heard_at > oldest:
                connection.busy = True
                return connection, False
            connection.abort()
        try:
            return await self._open(), True
        except BaseException:
            self._ended()
            raise

    async def _open(self) -> "ClientConnection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: ClientConnection(self, loop),
                    self._address,
                    self.origin.port,
                    ssl=self._tls,
                    server_hostname=self.origin.host if self._tls else None,
                )
        except (OSError, UnicodeError) as error:  # a refused certificate and a timeout are OSErrors too
            raise ConnectFailed(
                f"cannot connect to {self.origin.host}:{self.origin.port}: {error or 'timed out'}"
            ) from error
        if not connection.usable:
            raise ConnectFailed(f"{self.origin.host}:{self.origin.port} closes connections at once")
        connection.busy = True
        self.opened.add(connection)
        return connection

    def release(self, connection: "ClientConnection") -> None:
        """Keep a connection whose exchange has ended."""
        connection.busy = False
        self._idle.append(connection)
        self._ended()

    def forget(self, connection: "ClientConnection") -> None:
        """Drop a connection that is lost."""
        self.opened.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        if connection.busy:
            connection.busy = False
            self._ended()

    def _ended(self) -> None:
        """Give back what an exchange had."""
        self.running -= 1
        self._free.release()
        if self.on_free is not None:
            self.on_free()


class ClientConnection(asyncio.Protocol):
    """One connection upstream and the exchange it is busy with, if any."""

    __slots__ = (
        "_answer", "_bare", "_client", "_headers", "_loop", "_parser", "_read_to_end", "_size", "_transport", "_waiter",
        "busy", "heard_at",
    )  # fmt: skip

    def __init__(self, client: HttpClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._answer: Answer | None = None
        self._headers: Headers = []
        self._size = 0
        self._bare = False
        self._read_to_end = False
        self.busy = False
        """Whether an exchange has it."""
        self.heard_at = loop.time()

    @property
    def stall_s(self) -> float:
        return self._client.stall_s

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, message: bytes, *, head_only: bool, first_byte_s: float) -> Answer:
        """Send one request, wait for the head of its answer."""
        if self._transport is None:
            raise StaleConnection("the connection is closed")
        self._headers, self._size, self._bare, self._read_to_end = [], 0, head_only, False
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        self.heard_at = self._loop.time()
        self._transport.write(message)
        timer = self._loop.call_later(first_byte_s, self._time_out, waiter, first_byte_s)
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._waiter is waiter:
                self.abort()
            raise
        finally:
            timer.cancel()
            if self._waiter is waiter:  # a short answer may be over, and the connection busy for the next one
                self._waiter = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()
            self.heard_at = self._loop.time()

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        if self._waiter is None and self._answer is None:
            self.abort()  # bytes nobody asked for: the next answer could not be told from them
            return
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(BadAnswer("the upstream switches protocols"))
        except httptools.HttpParserError as error:
            self._fail(BadAnswer(f"the upstream's answer is not valid HTTP/1.1: {error}"))
        else:
            if self._size > _HEADER_BYTES:  # without a byte of body: head or trailers
                self._fail(BadAnswer("the upstream's headers are too large"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._client.forget(self)
        if self._answer is not None:
            complete = self._read_to_end and exc is None
            self._finish(None if complete else Cut(f"the upstream cut the answer{f': {exc}' if exc else ''}"))
        elif self._waiter is not None and not self._waiter.done():
            # closed at once: it had been closed before; later, the request may have been acted upon
            untouched = self._size == 0 and self._loop.time() - self.heard_at < _STALE_S
            lost = StaleConnection("closed") if untouched else Cut("the upstream cut the head of its answer")
            self._waiter.set_exception(lost)

    # the parser's side

    def on_message_begin(self) -> None:
        if self._waiter is None or self._waiter.done():  # it would be taken for the answer to the next request
            raise BadAnswer("the upstream sent an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is None:  # else it is a trailer, and those are dropped (RFC 9110 6.5.1)
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 100:  # its body would be passed over, and the request be taken for untouched and sent again
            raise BadAnswer(f"the upstream answers with the status {status}")
        if status < 200:
            self._headers = []
            return
        framed = not _FRAMING.isdisjoint(dict(self._headers))
        self._read_to_end = not framed and status not in {204, 304} and not self._bare
        self._answer = Answer(self, status, self._headers)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._answer)
        if self._bare:
            self._finish(None)
            self.abort()  # llhttp would wait for the body that a HEAD answer only announces

    def on_body(self, data: bytes) -> None:
        if self._answer is not None:
            self._size = 0
            self._answer._data(data)  # noqa: SLF001

    def on_message_complete(self) -> None:
        if self._answer is None:
            return
        keep = self._parser.should_keep_alive() and self.usable
        self._finish(None)
        if keep:
            self._client.release(self)
        else:
            self.abort()

    def _finish(self, error: UpstreamError | None) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.resume()
            answer._end(error)  # noqa: SLF001

    def _fail(self, error: UpstreamError) -> None:
        if self._answer is not None:
            self._finish(error)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.abort()

    def _time_out(self, waiter: "asyncio.Future[Answer]", first_byte_s: float) -> None:
        if not waiter.done():
            waiter.set_exception(AnswerTimeout(f"no answer within {first_byte_s:g} s"))
            self.abort()
