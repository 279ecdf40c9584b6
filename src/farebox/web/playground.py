"""The playground: calls from a page, with the session in the place of a key. What is said passes through, and stays
in the browser.

A call is let through here, and then served by the gateway like any other, byte for byte, with its hold and its charge.
"""

from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.books.log import LoggedCall, find_call
from farebox.ids import read_request_id
from farebox.web.asgi import PassedOn
from farebox.web.kit import Kit
from farebox.web.pages import write_cost


class Playground:
    """The page, the calls that come from it, and what they came to."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store
        self._offer = kit.offer
        self._backstage = kit.backstage

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/playground", page(self.page)),
            Route("/dashboard/playground/messages", page(self.call), methods=["POST"]),
            Route("/dashboard/playground/quote", page(self.quote), methods=["POST"]),
            Route("/dashboard/playground/calls/{request_id}", page(self.came_to)),
        ]

    async def page(self, request: Request, me: Session) -> Response:
        return self._pages.render(
            request,
            "playground.html",
            me=me,
            models=self._offer.models,
            chosen=self._offer.sample.id,
            default_max_tokens=min(1024, self._offer.sample.max_output_tokens),
            may_call=me.status == "active" and not me.operator,
        )

    async def call(self, request: Request, me: Session) -> Response:
        """Let a call through to the gateway."""
        return PassedOn(partial(self._backstage.call, account_id=_caller(me), body=await request.body()))

    async def quote(self, request: Request, me: Session) -> Response:
        """Let the question through what a call would come to."""
        return PassedOn(partial(self._backstage.quote, account_id=_caller(me), body=await request.body()))

    async def came_to(self, request: Request, me: Session) -> Response:
        """Tell what a call has come to; nothing until it is settled, or where it is another's."""
        try:
            call = await find_call(self._store, me.account_id, read_request_id(request.path_params["request_id"]))
        except ValueError:
            call = None
        if call is None:
            return Response(status_code=204)
        return JSONResponse(_told(call))


def _caller(me: Session) -> int:
    """Give the account that calls. An operator who looks at it does not call in its name."""
    if me.operator:
        raise HTTPException(403)
    return me.account_id


def _told(call: LoggedCall) -> dict[str, str | int]:
    written = call.cache_write_5m_tokens + call.cache_write_1h_tokens
    return {
        "cost": write_cost(call.charged_nanos),
        "kind": call.kind,
        "outcome": call.outcome,
        "input_tokens": call.input_tokens + written + call.cache_read_tokens,
        "output_tokens": call.output_tokens,
    }
