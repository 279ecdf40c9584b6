"""Serves an ASGI application, the pages, through the gateway's own HTTP server (asgi.readthedocs.io, HTTP 2.4)."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import unquote

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from farebox.http.exchange import Exchange

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Handler = Callable[[Exchange, bytes], Awaitable[None]]

FORM_BYTES: Final = 1 << 20
"""The largest form a page takes."""
_PASSED_ON: Final = "passed_on"


class PassedOn(Response):
    """In the place of a response: somebody else answers the exchange, once the application has let it through."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self._handler = handler

    async def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        scope["state"][_PASSED_ON] = self._handler


class AsgiDoor:
    """Hands exchanges to an application. `scheme` is the one customers use, whatever a proxy before us speaks."""

    def __init__(self, app: App, *, scheme: str) -> None:
        self._app = app
        self._scheme = scheme

    async def serve(self, exchange: Exchange, request_id: bytes) -> None:
        """Serve one exchange to its end. Raises what the application raises, and Exchange.read_body's errors."""
        body = await exchange.read_body(FORM_BYTES)
        conversation = _Conversation(exchange, body)
        scope = self._scope(exchange, request_id)
        try:
            await self._app(scope, conversation.receive, conversation.send)
        except (ClientDisconnect, _ClientGone):
            return  # nobody is there to hear the rest
        finally:
            exchange.on_gone = exchange.on_resumed = None
        handler: Handler | None = scope["state"].get(_PASSED_ON)
        if handler is not None:
            await handler(exchange, request_id)

    def _scope(self, exchange: Exchange, request_id: bytes) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.0" if exchange.http_1_0 else "1.1",
            "method": exchange.method,
            "scheme": self._scheme,
            "path": unquote(exchange.path),
            "raw_path": exchange.path.encode("latin-1", "replace"),
            "query_string": exchange.query.encode("latin-1", "replace"),
            "root_path": "",
            "headers": exchange.headers,
            "client": (exchange.peer, 0),
            "server": None,
            "state": {"request_id": request_id},
        }


class _ClientGone(OSError):
    """Nobody is there to hear the rest (ASGI: send raises an OSError then)."""


class _Conversation:
    """What the application hears and says about one exchange."""

    def __init__(self, exchange: Exchange, body: bytes) -> None:
        self._exchange = exchange
        self._body: bytes | None = body
        self._moved = asyncio.Event()
        exchange.on_gone = self._moved.set
        exchange.on_resumed = self._moved.set

    async def receive(self) -> Message:
        """Give the request's body once, then wait until the client has gone."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        while not (self._exchange.gone or self._exchange.finished):
            await self._wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass a piece of the response on, no faster than the client reads."""
        exchange = self._exchange
        if message["type"] == "http.response.start":
            headers = [(bytes(name), bytes(value)) for name, value in message["headers"]]
            length = next((int(value) for name, value in headers if name == b"content-length"), None)
            fields = [field for field in headers if field[0] != b"content-length"]
            exchange.start(message["status"], fields, length=length)
            return
        if exchange.gone:
            raise _ClientGone
        exchange.write(message.get("body", b""))
        if not message.get("more_body", False):
            exchange.finish()
            self._moved.set()
            return
        exchange.flush()
        while exchange.backed_up and not exchange.gone:
            await self._wait()

    async def _wait(self) -> None:
        self._moved.clear()
        await self._moved.wait()
