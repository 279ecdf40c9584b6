"""Settings of passkeys: add one with a name, see when each was used last, remove one."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_START = "/dashboard/settings/passkeys"


class PasskeyRoom:
    """The passkeys of whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._passkeys = kit.passkeys
        self._clock = kit.clock

    def routes(self) -> list[Route]:
        page, sure = self._visitors.signed_in, self._visitors.sure
        return [
            Route(_START, page(self.show)),
            Route(f"{_START}/new", sure(self.add), methods=["GET", "POST"]),
            Route(f"{_START}/{{passkey}}/remove", sure(self.remove), methods=["POST"]),
        ]

    async def show(self, request: Request, me: Session) -> Response:
        return self._pages.render(
            request,
            "passkeys.html",
            me=me,
            passkeys=await self._passkeys.of(me.account_id),
            host=self._passkeys.host,
        )

    async def add(self, request: Request, me: Session) -> Response:
        """Have the browser make a passkey, and keep what it says."""
        if not self._passkeys.host:
            return RedirectResponse(_START, 303)
        error, name, browser = "", "", self._visitors.browser_of(request)
        if request.method == "POST":
            form = await read_form(request)
            name = form.get("name", "")
            try:
                await self._passkeys.add(me, name, form.get("answer", ""), browser, self._clock())
            except InvalidRequest as refused:
                error = str(refused)
            else:
                return RedirectResponse(_START, 303)
        response = self._pages.render(
            request,
            "passkey_new.html",
            status=422 if error else 200,
            me=me,
            options=await self._passkeys.offer(me, browser, self._clock()),
            name=name,
            error=error,
        )
        self._visitors.know(response, browser)
        return response

    async def remove(self, request: Request, me: Session) -> Response:
        if not await self._passkeys.remove(me, request.path_params["passkey"], self._clock()):
            raise HTTPException(404)
        return RedirectResponse(_START, 303)
