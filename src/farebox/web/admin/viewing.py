"""Looking at the site as a customer sees it: to help, never to change. Each look is in the audit log."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.operators import look_as, look_away
from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest
from farebox.web.admin.customer import account_of
from farebox.web.admin.guard import Admins, operator_of, read_reason
from farebox.web.kit import Kit
from farebox.web.visitors import read_form


class Viewing:
    """Begins a look and ends it."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._store = kit.store

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route("/admin/customers/{account_id}/view", page(self.begin), methods=["POST"]),
            Route("/admin/viewing/end", page(self.end, changes=False), methods=["POST"]),
        ]

    async def begin(self, request: Request, me: Session) -> Response:
        account = await account_of(self._store, request)
        try:
            reason = read_reason(await read_form(request))
        except InvalidRequest:
            return RedirectResponse(f"/admin/customers/{account.id}", 303)
        await look_as(self._store, operator_of(request, me), me.hash, account.id, reason)
        return RedirectResponse("/dashboard", 303)

    async def end(self, request: Request, me: Session) -> Response:
        if me.viewing is None:
            return RedirectResponse("/admin/customers", 303)
        await look_away(self._store, operator_of(request, me), me.hash, me.viewing)
        return RedirectResponse(f"/admin/customers/{me.viewing}", 303)
