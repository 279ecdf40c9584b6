"""Settings: password, address, sign-ins, and the end of an account. What matters asks for the present password."""

from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.accounts import find_account
from farebox.accounts.passwords import SHORTEST, SHORTEST_BESIDE_A_FACTOR
from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest
from farebox.web.kit import Kit
from farebox.web.visitors import network_of, read_form

_DETAILS_CHARS: Final = 500


class Settings:
    """What people set for themselves. `forget_keys` is called when keys cease to work."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._people = kit.people
        self._factor = kit.factor
        self._passkeys = kit.passkeys
        self._store = kit.store
        self._clock = kit.clock
        self._forget_keys = kit.backstage.forget_keys

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/settings", page(self.settings)),
            Route("/dashboard/settings/sign-in", page(self.sign_in)),
            Route("/dashboard/details", page(self.details), methods=["POST"]),
            Route("/dashboard/verification", page(self.verification), methods=["POST"]),
            Route("/dashboard/password", self._visitors.proving(self.password), methods=["POST"]),
            Route("/dashboard/email", self._visitors.proving(self.email), methods=["POST"]),
            Route("/dashboard/close", self._visitors.proving(self.close), methods=["GET", "POST"]),
            Route("/dashboard/sessions/end", page(self.end_sessions), methods=["POST"]),
            Route("/dashboard/sessions/{name}/end", page(self.end_session), methods=["POST"]),
        ]

    async def settings(self, request: Request, me: Session) -> Response:
        return await self._show(request, me)

    async def sign_in(self, request: Request, me: Session) -> Response:
        return await self._show_sign_in(request, me)

    async def details(self, request: Request, me: Session) -> Response:
        """Keep what receipts shall say of their buyer."""
        wanted = (await read_form(request)).get("details", "").replace("\r\n", "\n").strip()
        if len(wanted) > _DETAILS_CHARS or not all(char.isprintable() or char == "\n" for char in wanted):
            error = f"name and address on receipts have at most {_DETAILS_CHARS} characters, got {len(wanted)}"
            return await self._show(request, me, failed="details", error=error, details=wanted[:_DETAILS_CHARS])
        await self._store.write([("UPDATE account SET details = ? WHERE id = ?", (wanted, me.account_id))])
        return await self._show(request, me, told="details")

    async def verification(self, request: Request, me: Session) -> Response:
        await self._people.send_verification(me.email, self._clock())
        return await self._show(request, me, told="verification")

    async def password(self, request: Request, me: Session) -> Response:
        form = await read_form(request)
        try:
            await self._people.change_password(
                me.email,
                form.get("password", ""),
                form.get("new_password", ""),
                me.hash,
                network_of(request),
                self._clock(),
            )
        except InvalidRequest as error:
            return await self._show_sign_in(request, me, error=str(error))
        return await self._show_sign_in(request, me, told="password")

    async def email(self, request: Request, me: Session) -> Response:
        form = await read_form(request)
        wanted = form.get("email", "")
        try:
            await self._people.ask_for_email(
                me.email, form.get("password", ""), wanted, network_of(request), self._clock()
            )
        except InvalidRequest as error:
            return await self._show(request, me, failed="email", error=str(error), wanted=wanted)
        return await self._show(request, me, told="email", wanted=wanted.strip())

    async def close(self, request: Request, me: Session) -> Response:
        account = await find_account(self._store, str(me.account_id))
        error = ""
        if request.method == "POST":
            password = (await read_form(request)).get("password", "")
            try:
                await self._people.close(me.email, password, network_of(request), self._clock())
            except InvalidRequest as refused:
                error = str(refused)
            else:
                self._forget_keys()
                response = self._pages.render(request, "closed.html")
                await self._visitors.end(request, response)
                return response
        return self._pages.render(
            request, "close.html", status=422 if error else 200, me=me, account=account, error=error
        )

    async def end_session(self, request: Request, me: Session) -> Response:
        await self._visitors.sessions.end_named(me.account_id, request.path_params["name"])
        return RedirectResponse("/dashboard/settings/sign-in", 303)

    async def end_sessions(self, request: Request, me: Session) -> Response:  # noqa: ARG002  a page's signature
        await self._visitors.sessions.end_others(me.account_id, me.hash)
        return RedirectResponse("/dashboard/settings/sign-in", 303)

    async def _show(
        self,
        request: Request,
        me: Session,
        *,
        told: str = "",
        failed: str = "",
        error: str = "",
        wanted: str = "",
        details: str = "",
    ) -> Response:
        """Show the profile, with what a form has done, or why it has not."""
        if failed != "details":
            rows = await self._store.fetch("SELECT details FROM account WHERE id = ?", (me.account_id,))
            details = rows[0][0]
        return self._pages.render(
            request,
            "settings.html",
            status=422 if error else 200,
            me=me,
            details=details,
            told=told,
            failed=failed,
            error=error,
            wanted=wanted,
        )

    async def _show_sign_in(self, request: Request, me: Session, *, told: str = "", error: str = "") -> Response:
        """Show what one signs in with, and where one is signed in."""
        factors = await self._factor.of(me.account_id)
        return self._pages.render(
            request,
            "settings_sign_in.html",
            status=422 if error else 200,
            me=me,
            factors=factors,
            passkeys=len(await self._passkeys.of(me.account_id)),
            shortest=SHORTEST if factors.app_since_us is None else SHORTEST_BESIDE_A_FACTOR,
            sessions=await self._visitors.sessions.all_of(me.account_id, self._clock()),
            told=told,
            error=error,
        )
