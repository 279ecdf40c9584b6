"""Proving once more who one is, before changes that matter. What was being sent is sent on afterwards."""

from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest, RateLimited
from farebox.web.kit import Kit
from farebox.web.visitors import inside, network_of, read_form

_OWN: Final = frozenset({"present_password", "code", "answer", "go_to", "again", "username"})
_CARRIED_CHARS: Final = 16_384
_FIELDS: Final = 500


class Confirm:
    """Asks people who are signed in for what they sign in with. Their session goes on under another cookie."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._people = kit.people
        self._factor = kit.factor
        self._passkeys = kit.passkeys
        self._identities = kit.identities
        self._providers = kit.providers
        self._clock = kit.clock

    def routes(self) -> list[Route]:
        return [Route("/confirm", self.confirm, methods=["GET", "POST"])]

    async def confirm(self, request: Request) -> Response:
        """Ask; or take the answer. A form that a page has sent here (307) comes without one and is kept meanwhile.

        Only a form of this site is ever sent on (security.py): the address of this page alone cannot have one sent.
        """
        me = await self._visitors.who(request)
        if me is None:
            return RedirectResponse("/login", 303)
        form = await read_form(request, _FIELDS) if request.method == "POST" else {}
        if "go_to" not in form:
            again = inside(request.query_params.get("again", "")) if form else ""
            return await self._ask(request, me, inside(request.query_params.get("next", "")), again, form)
        wanted, again = inside(form.get("go_to", "")), inside(form.get("again", ""))
        try:
            factor_at_us = await self._prove(request, me, form)
        except InvalidRequest as error:
            carried = {name: value for name, value in form.items() if name not in _OWN}
            return await self._ask(request, me, wanted, again, carried, str(error))
        response = RedirectResponse(again, 307) if again else RedirectResponse(wanted or "/dashboard", 303)
        await self._visitors.renew(response, me, factor_at_us=factor_at_us)
        return response

    async def _prove(self, request: Request, me: Session, form: dict[str, str]) -> int | None:
        """Check what somebody proves themselves by. Answers when they gave a second factor. Raises InvalidRequest."""
        now_us = self._clock()
        if form.get("answer"):
            if await self._passkeys.check(form["answer"], self._visitors.browser_of(request), now_us) != me.account_id:
                raise InvalidRequest("this is a passkey of another account")
            return now_us
        network = network_of(request)
        await self._people.confirm(me.email, form.get("present_password", ""), network, now_us)
        if not (await self._factor.of(me.account_id)).is_needed:
            return None
        try:
            await self._factor.check(me.account_id, me.email, form.get("code", ""), network, now_us)
        except RateLimited as error:
            raise InvalidRequest(str(error)) from error
        return now_us

    async def _ask(
        self, request: Request, me: Session, wanted: str, again: str, carried: dict[str, str], error: str = ""
    ) -> Response:
        """Show the form. What was being sent is kept, unless it holds a secret, fields of this one, or too much."""
        carried = {name: value for name, value in carried.items() if name != "username"}
        unfit = [name for name in carried if "password" in name or name.startswith("secret_") or name in _OWN]
        if unfit or len(urlencode(carried)) > _CARRIED_CHARS:
            again = ""
        factors = await self._factor.of(me.account_id)
        linked = await self._identities.of(me.account_id) if self._providers else {}
        browser = self._visitors.browser_of(request)
        options = await self._passkeys.ask(browser, self._clock(), me.account_id) if factors.passkeys else ""
        response = self._pages.render(
            request,
            "confirm.html",
            status=422 if error else 200,
            me=me,
            factors=factors,
            options=options,
            providers=[self._providers[name] for name in linked if name in self._providers],
            wanted=wanted,
            again=again,
            carried=carried if again else {},
            error=error,
        )
        self._visitors.know(response, browser)
        return response
