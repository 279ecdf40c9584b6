"""The page of an account's message batches: how each is, what it came to, and a button that cancels it."""

from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.books.batches import cancel_batch, page_of_batches
from farebox.web.kit import Kit

_START: Final = "/dashboard/batches"
_PAGE: Final = 50
_ID_CHARS: Final = 100


class BatchRoom:
    """The batches of whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store
        self._clock = kit.clock

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route(_START, page(self.all)),
            Route(f"{_START}/{{batch_id}}/cancel", page(self.cancel), methods=["POST"]),
        ]

    async def all(self, request: Request, me: Session) -> Response:
        before = request.query_params.get("before", "")[:_ID_CHARS].replace("\0", "")
        batches = await page_of_batches(self._store, me.account_id, before, _PAGE + 1)
        older = batches[_PAGE - 1].id if len(batches) > _PAGE else ""
        return self._pages.render(
            request, "batches.html", me=me, batches=batches[:_PAGE], older=older, newest=not before
        )

    async def cancel(self, request: Request, me: Session) -> Response:
        batch_id = request.path_params["batch_id"][:_ID_CHARS].replace("\0", "")
        await cancel_batch(self._store, me.account_id, batch_id, self._clock())
        return RedirectResponse(_START, 303)
