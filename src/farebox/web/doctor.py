"""Check my set-up: what the server sees of an account, how clients are set, and how streams get through."""

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.accounts import find_account
from farebox.accounts.keys import list_keys
from farebox.accounts.sessions import Session
from farebox.web.asgi import Receive, Scope, Send
from farebox.web.calls import advice_by_status
from farebox.web.checkup import (
    Told,
    first_bytes,
    told_account,
    told_address,
    told_calls,
    told_keys,
    told_limits,
    told_models,
    worst_first,
)
from farebox.web.kit import Kit
from farebox.web.limits import read_uses
from farebox.web.visitors import read_form

PIECES: Final = 11
PIECE_S: Final = 0.1
"""The test stream takes a second: a proxy that collects it shows."""
_MOST: Final = 200
"""Test streams at once, of everybody."""
_ADDRESS_CHARS: Final = 500


class DoctorRoom:
    """For whoever is signed in, about their own account alone. Changes nothing, and costs nothing."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store
        self._clock = kit.clock
        self._offer = kit.offer
        self._service = kit.backstage.service
        self._by_status = advice_by_status(kit.offer)
        self._testing: set[bytes] = set()
        """The sessions that have a test stream now: each has one at a time."""

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/doctor", page(self.doctor), methods=["GET", "POST"]),
            Route("/dashboard/doctor/stream", page(self.stream)),
        ]

    async def doctor(self, request: Request, me: Session) -> Response:
        """Show what there is to say. A base URL to be looked at comes by a form: it may be a key by mistake."""
        address = ""
        if request.method == "POST":
            address = (await read_form(request)).get("address", "").strip()[:_ADDRESS_CHARS]
        is_key = self._offer.key_prefix in address
        found = await self._look(me)
        return self._pages.render(
            request,
            "doctor.html",
            me=me,
            found=found,
            in_the_way=sum(one.status == "fail" for one in found),
            noted=sum(one.status == "warn" for one in found),
            wait=await first_bytes(self._store, me.account_id),
            address="" if is_key else address,
            is_key=is_key,
            told=told_address(address, self._offer.base_url) if address and not is_key else None,
            key_prefix=self._offer.key_prefix,
            public_url=self._offer.public_url,
            pieces=PIECES,
        )

    async def stream(self, request: Request, me: Session) -> Response:
        if "text/event-stream" not in request.headers.get("accept", ""):
            return RedirectResponse("/dashboard/doctor", 303)  # somebody opened it as a page
        if me.hash in self._testing or len(self._testing) >= _MOST:
            words = "A test is under way already; try again in two seconds.\n"
            return PlainTextResponse(words, 429, {"retry-after": "2"})
        return _TestStream(self._testing, me.hash)

    async def _look(self, me: Session) -> list[Told]:
        now_us = self._clock()
        account = await find_account(self._store, str(me.account_id))
        keys = [key for key in await list_keys(self._store, me.account_id) if key.purpose == "client"]
        plan, _, uses = await read_uses(self._store, self._offer.plans, me.account_id, now_us)
        sold = [model.id for model in self._offer.models]
        found = [
            *told_account(account, me.status),
            *told_keys(keys, sold, now_us),
            told_limits(plan, uses),
            *told_models(sold, self._service),
            *await told_calls(self._store, me.account_id, self._by_status, now_us),
        ]
        return worst_first(found)


class _TestStream(Response):
    """A second's worth of pings; ends before that where its client goes."""

    media_type = "text/event-stream"

    def __init__(self, testing: set[bytes], session: bytes) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._testing = testing
        self._session = session

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        self._testing.add(self._session)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            for piece in range(PIECES):
                if piece:
                    await asyncio.sleep(PIECE_S)
                text = b'event: ping\ndata: {"type":"ping","piece":%d,"of":%d}\n\n' % (piece, PIECES - 1)
                await send({"type": "http.response.body", "body": text, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError:
            return  # the client has gone
        finally:
            self._testing.discard(self._session)
