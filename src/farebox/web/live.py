"""The event stream of a browser: what the hub tells, as a response that ends when its client goes."""

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.web.asgi import Receive, Scope, Send
from farebox.web.hub import Hub, Listener
from farebox.web.kit import Kit

_PARTS: Final = {"balance": "desk.html", "announcements": "base.html"}


class LiveRoom:
    """The stream, for whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._visitors = kit.visitors
        self._pages = kit.pages
        self._hub = kit.hub

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/live", page(self.live)),
            Route("/dashboard/live/head", page(self.head)),
        ]

    async def live(self, request: Request, me: Session) -> Response:
        if "text/event-stream" not in request.headers.get("accept", ""):
            return RedirectResponse("/dashboard", 303)  # somebody opened it as a page
        listener = self._hub.listen(me)
        if listener is None:
            words = "Too many pages listen already; this one asks again in a while.\n"
            return PlainTextResponse(words, 503, {"retry-after": "30"})
        return _Stream(self._hub, listener)

    async def head(self, request: Request, me: Session) -> Response:
        """Answer with a part that every page has, whichever page asks."""
        template = _PARTS.get(request.headers.get("x-fragment", ""))
        return self._pages.render(request, template, me=me) if template else RedirectResponse("/dashboard", 303)


class _Stream(Response):
    """The response of a stream: ends as soon as its client has gone, not at the next thing there is to tell."""

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, listener: Listener) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._hub = hub
        self._listener = listener

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for text in self._listener.told():
                await send({"type": "http.response.body", "body": text, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError:
            return  # the client has gone
        finally:
            self._hub.leave(self._listener)
            watch.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._listener.end()
