"""Upstreams: how they do, draining and enabling them, and a test that costs nobody anything."""

from typing import Final

from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.audit_log import REASON_CHARS, record
from farebox.accounts.sessions import Session
from farebox.clock import HOUR_US
from farebox.upstreams.checks import goes_in_the_clear
from farebox.upstreams.switches import switch
from farebox.upstreams.trial import Trial
from farebox.web.admin.guard import Admins, operator_of
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_HERE: Final = "/admin/upstreams"
_BUTTON: Final = ["GET", "POST"]
"""A browser that is started again opens the address of a button: that leads to the page which the button is on."""
_LAST_HOUR: Final = (
    "SELECT upstream, count(*), sum(CASE WHEN outcome = 'upstream_broke' THEN 1 ELSE 0 END), "
    "sum(CASE WHEN attempts > 1 THEN 1 ELSE 0 END), sum(first_byte_us), count(first_byte_us) FROM usage "
    "WHERE at >= ? AND upstream IS NOT NULL GROUP BY upstream"
)


class Hour(Struct, frozen=True):
    """What the books say of an upstream's last hour, by all processes."""

    calls: int = 0
    broken: int = 0
    retried: int = 0
    first_byte_us: int | None = None


class Upstreams:
    """Shows upstreams, switches and tests them."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._offer = kit.offer
        self._backstage = kit.backstage

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route(_HERE, page(self.all)),
            Route(f"{_HERE}/{{name}}/drain", page(self.drain), methods=_BUTTON),
            Route(f"{_HERE}/{{name}}/enable", page(self.enable), methods=_BUTTON),
            Route(f"{_HERE}/{{name}}/test", page(self.test, changes=False), methods=_BUTTON),
        ]

    async def all(self, request: Request, me: Session) -> Response:
        return await self._show(request, me)

    async def drain(self, request: Request, me: Session) -> Response:
        """Send no new call to an upstream, in any process; those under way end."""
        return await self._switch(request, me, "drain")

    async def enable(self, request: Request, me: Session) -> Response:
        return await self._switch(request, me, "enable")

    async def test(self, request: Request, me: Session) -> Response:
        if request.method != "POST":
            return RedirectResponse(_HERE, 303)
        name = request.path_params["name"]
        cheapest = min(self._offer.models, key=lambda model: model.rates.list.input)
        trial = await self._backstage.try_upstream(name, cheapest.id)
        if trial is None:
            raise HTTPException(404)
        return await self._show(request, me, name, trial)

    async def _switch(self, request: Request, me: Session, what: str) -> Response:
        if request.method != "POST":
            return RedirectResponse(_HERE, 303)
        name = request.path_params["name"]
        state = next((one for one in self._backstage.upstreams() if one.name == name), None)
        if state is None:
            raise HTTPException(404)
        wanted = what == "drain"
        if state.drained != wanted:
            reason = (await read_form(request)).get("reason", "").strip()[:REASON_CHARS]
            by = operator_of(request, me)
            facts = ({"drained": not wanted}, {"drained": wanted})
            line = record(by.name, by.address, f"upstream.{what}", f"upstream:{name}", *facts, reason)
            await self._store.write([switch(name, self._clock(), drained=wanted), line])
            await self._backstage.follow_upstreams()
        return RedirectResponse(_HERE, 303)

    async def _show(self, request: Request, me: Session, tried: str = "", trial: Trial | None = None) -> Response:
        rows = await self._store.fetch(_LAST_HOUR, (self._clock() - HOUR_US,))
        hours = {
            name: Hour(calls, broken, retried, total // heard if heard else None)
            for name, calls, broken, retried, total, heard in rows
        }
        return self._pages.render(
            request,
            "admin/upstreams.html",
            me=me,
            upstreams=[(one, hours.get(one.name, Hour())) for one in self._backstage.upstreams()],
            broken=self._backstage.broken_upstreams(),
            clear={one.name for one in self._backstage.upstreams() if goes_in_the_clear(one.origin)},
            tried=tried,
            trial=trial,
        )
