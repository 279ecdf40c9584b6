"""One HTTP request and its response, as the one who serves it sees them."""

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, Protocol

from farebox.errors import RequestTooLarge

Headers = list[tuple[bytes, bytes]]
"""Header fields in the order they came, names in lower case."""

STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus} | {
    529: b"HTTP/1.1 529 Overloaded\r\n"
}
_BODYLESS: Final = frozenset({204, 304})


class Host(Protocol):
    """The server an exchange belongs to."""

    closing: bool
    """Whether nothing more is answered than what is being answered."""
    leaving: bool
    """Whether no connection is to be kept for another request."""
    date: bytes
    """The date header's line, renewed every second."""


class Line(Protocol):
    """The connection an exchange came on, as far as it concerns the exchange."""

    write_paused: bool

    @property
    def server(self) -> Host: ...

    @property
    def more_waits(self) -> bool: ...

    def invite_body(self, exchange: "Exchange") -> None: ...

    def resume_reading(self) -> None: ...

    def send(self, data: bytes) -> None: ...

    def exchange_finished(self, exchange: "Exchange") -> None: ...

    def abort(self) -> None: ...

    def break_off(self, *, reset: bool) -> None: ...


class Exchange:
    """One request and its response.

    The request's head is there from the start. `read_body` gives the body; `respond`, or `start`, `write` and
    `finish`, give the answer. When the client goes, `gone` turns true, `on_gone` is called once, and writes
    do nothing: whoever owns the exchange decides what a hang-up means.
    """

    __slots__ = (
        "_body", "_body_size", "_body_waiter", "_chunked", "_connection", "_failure", "_head", "content_length",
        "finished", "gone", "headers", "http_1_0", "keep_alive", "method", "on_gone", "on_resumed", "path", "peer",
        "query", "request_complete", "started", "status",
    )  # fmt: skip

    def __init__(self, connection: Line, peer: str) -> None:
        self._connection = connection
        self.peer = peer
        self.method = ""
        self.path = ""
        self.query = ""
        self.headers: Headers = []
        self.content_length: int | None = None
        self.keep_alive = True
        self.http_1_0 = False
        self.request_complete = False
        self.started = False
        self.finished = False
        self.gone = False
        self.status = 0
        self.on_gone: Callable[[], None] | None = None
        self.on_resumed: Callable[[], None] | None = None
        self._body: list[bytes] = []
        self._body_size = 0
        self._body_waiter: asyncio.Future[None] | None = None
        self._chunked = False
        self._failure: Exception | None = None
        self._head: bytes | None = None

    def header(self, name: bytes) -> bytes | None:
        """Give the first value of a header, by its lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def read_body(self, limit: int) -> bytes:
        """Give the whole body, at most `limit` bytes of it.

        Raises RequestTooLarge as soon as it is known to be larger, RequestTimeout when it comes too slowly,
        InvalidRequest when its framing breaks, ConnectionResetError when the client goes before its end.
        """
        if self.content_length is not None and self.content_length > limit:
            raise RequestTooLarge(_too_large(limit))
        if not self.request_complete and not self.gone:
            self._connection.invite_body(self)
        while not self.request_complete:
            if self._body_size > limit:
                raise RequestTooLarge(_too_large(limit))
            if self._failure is not None:
                raise self._failure
            if self.gone:
                raise ConnectionResetError("the client went away before the end of its request")
            self._body_waiter = asyncio.get_running_loop().create_future()
            self._connection.resume_reading()
            await self._body_waiter
        if self._body_size > limit:
            raise RequestTooLarge(_too_large(limit))
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        return body

    def respond(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes = b"") -> None:
        """Send a whole response."""
        self.start(status, headers, length=len(body))
        if body:
            self.write(body)
        self.finish()

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, length: int | None = None) -> None:
        """Begin a response; without a length it is chunked. The head leaves with the first write or `flush`."""
        if self.started:
            raise RuntimeError("the response has already begun")
        self.started = True
        self.status = status
        parts = [STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode(), self._connection.server.date]
        parts += [b"%b: %b\r\n" % field for field in headers]
        if not self.request_complete:
            self.keep_alive = False
        if length is not None:
            if status not in _BODYLESS:
                parts.append(b"content-length: %d\r\n" % length)
        elif self.http_1_0:
            self.keep_alive = False
        else:
            self._chunked = True
            parts.append(b"transfer-encoding: chunked\r\n")
        server = self._connection.server
        if server.leaving and (server.closing or not self._connection.more_waits):
            self.keep_alive = False
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)

    def write(self, data: bytes) -> None:
        """Send bytes of the body. Does nothing for an empty piece or when the client has gone."""
        if not data or self.gone:
            return
        if self.method == "HEAD":
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head is not None:
            data = self._head + data
            self._head = None
        self._connection.send(data)

    def flush(self) -> None:
        """Send the head now, though there is no body yet."""
        if self._head is not None and not self.gone:
            self._connection.send(self._head)
            self._head = None

    def finish(self) -> None:
        """End the response. The connection goes on to the next request, or closes."""
        if self.finished:
            return
        self.finished = True
        if not self.gone:
            tail = b"0\r\n\r\n" if self._chunked and self.method != "HEAD" else b""
            if self._head is not None:
                tail = self._head + tail
                self._head = None
            if tail:
                self._connection.send(tail)
        self._connection.exchange_finished(self)

    def abort(self) -> None:
        """Cut the connection in the middle of a response: the one honest end of a body that cannot be completed."""
        self.finished = True
        self._connection.abort()

    def break_off(self, *, reset: bool) -> None:
        """End the connection before the response is complete, in order or with a reset (RST): for simulators."""
        self.finished = True
        self._connection.break_off(reset=reset)

    @property
    def line(self) -> Line:
        """The connection it came on, for an exchange that stands before this one."""
        return self._connection

    @property
    def backed_up(self) -> bool:
        """Whether the client reads more slowly than we write; `on_resumed` is called when that ends."""
        return self._connection.write_paused

    def _received(self, data: bytes) -> None:
        self._body.append(data)
        self._body_size += len(data)
        self._wake()

    def _failed(self, error: Exception) -> None:
        self._failure = error
        self.keep_alive = False
        self._wake()

    def _wake(self) -> None:
        if self._body_waiter is not None and not self._body_waiter.done():
            self._body_waiter.set_result(None)

    def _lost(self) -> None:
        if self.gone or self.finished:
            return
        self.gone = True
        self._wake()
        if self.on_gone is not None:
            self.on_gone()


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit} bytes ({limit / 2**20:.0f} MiB); send less"
