"""Proving once more who one is, before changes that matter. What was being sent is sent on afterwards."""

from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest
from farebox.web.kit import Kit
from farebox.web.visitors import inside, network_of, read_form

_OWN: Final = frozenset({"present_password", "go_to", "again", "username"})
_CARRIED_CHARS: Final = 16_384


class Confirm:
    """Asks people who are signed in for their password again. Their session goes on under another cookie."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._people = kit.people
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
        if request.method == "GET":
            return self._ask(request, me, inside(request.query_params.get("next", "")), "", {})
        form = await read_form(request)
        if "go_to" not in form:
            carried, again = form, inside(request.query_params.get("again", ""))
            return self._ask(request, me, inside(request.query_params.get("next", "")), again, carried)
        wanted, again = inside(form.get("go_to", "")), inside(form.get("again", ""))
        carried = {name: value for name, value in form.items() if name not in _OWN}
        try:
            await self._people.confirm(me.email, form.get("present_password", ""), network_of(request), self._clock())
        except InvalidRequest as error:
            return self._ask(request, me, wanted, again, carried, str(error))
        response = RedirectResponse(again, 307) if again else RedirectResponse(wanted or "/dashboard", 303)
        await self._visitors.renew(response, me)
        return response

    def _ask(
        self, request: Request, me: Session, wanted: str, again: str, carried: dict[str, str], error: str = ""
    ) -> Response:
        """Show the form. Neither a form with a password in it is kept, nor a large one: it is filled in anew."""
        if any("password" in name for name in carried) or len(urlencode(carried)) > _CARRIED_CHARS:
            carried, again = {}, ""
        return self._pages.render(
            request,
            "confirm.html",
            status=422 if error else 200,
            me=me,
            wanted=wanted,
            again=again,
            carried=carried if again else {},
            error=error,
        )
