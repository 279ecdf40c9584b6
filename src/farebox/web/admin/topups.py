"""Payments as the operator sees them: what came, how the watchers are, what needs a decision."""

from collections.abc import AsyncIterator, Mapping
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.clock import US_PER_S, day_of, iso
from farebox.errors import InvalidRequest, NotFound
from farebox.payments.addresses import DepositAddress
from farebox.payments.incidents import closed_incidents, open_incidents
from farebox.payments.office import STATES
from farebox.web.admin.guard import Admins, operator_of, read_reason
from farebox.web.exports import Cell, export, format_of
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_HERE: Final = "/admin/topups"
_PAGE: Final = 50
_ID_CHARS: Final = 300
_COLUMNS: Final = ("family", "key", "path", "address", "rail", "asset", "account", "used_at", "swept_at")


class TopupsRoom:
    """All top-ups, strays, incidents, watchers and rates."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._topups = kit.till.topups
        self._office = kit.till.office

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route(_HERE, page(self.all)),
            Route(f"{_HERE}/addresses.csv", page(self.addresses)),
            Route(f"{_HERE}/addresses.json", page(self.addresses)),
            Route(f"{_HERE}/assign", page(self.assign), methods=["POST"]),
            Route(f"{_HERE}/incident", page(self.close), methods=["POST"]),
            Route(f"{_HERE}/compare", page(self.compare), methods=["POST"]),
        ]

    async def all(self, request: Request, me: Session, error: str = "") -> Response:
        now = self._clock()
        state = request.query_params.get("state", "")
        before = request.query_params.get("before", "")
        until = int(before) if before.isascii() and before.isdecimal() and len(before) < 18 else None
        found = await self._office.topups(state if state in STATES else "", until, _PAGE + 1)
        topups = await self._topups.tell_all(found[:_PAGE], now)
        return self._pages.render(
            request,
            "admin/topups.html",
            status=422 if error else 200,
            me=me,
            now=now,
            error=error,
            topups=topups,
            older=topups[-1].topup.created_at_us if len(found) > _PAGE else None,
            newest=until is None,
            state=state if state in STATES else "",
            states=STATES,
            counts=await self._office.counts(),
            offers=await self._topups.offers(now),
            watchers=await self._office.watchers(),
            sources=await self._office.sources(now),
            strays=[(one, self._topups.asset_paid(one)) for one in await self._office.strays()],
            incidents=await open_incidents(self._store),
            closed=await closed_incidents(self._store),
            gaps=await self._office.gaps(),
            outcomes=await self._office.outcomes(),
            minutes=lambda at_us: (now - at_us) // US_PER_S // 60,
        )

    async def addresses(self, request: Request, me: Session) -> Response:  # noqa: ARG002  a page's signature
        rows = _rows(await self._office.to_sweep())
        return export(rows, _COLUMNS, f"addresses-{day_of(self._clock())}", format_of(request))

    async def assign(self, request: Request, me: Session) -> Response:
        form = await read_form(request)
        who = form.get("account", "").strip()[:_ID_CHARS]
        try:
            by, reason = operator_of(request, me), read_reason(form)
            await self._office.assign(by, form.get("payment", "")[:_ID_CHARS], who, reason, self._clock())
        except (InvalidRequest, NotFound) as refused:
            return await self.all(request, me, str(refused))
        return RedirectResponse(_HERE, 303)

    async def close(self, request: Request, me: Session) -> Response:
        form = await read_form(request)
        wanted = form.get("incident", "")
        if not (wanted.isascii() and wanted.isdecimal() and len(wanted) < 19):
            raise HTTPException(404)
        try:
            by, reason = operator_of(request, me), read_reason(form)
            await self._office.close_incident(by, int(wanted), reason, self._clock())
        except NotFound as error:
            raise HTTPException(404) from error
        except InvalidRequest as refused:
            return await self.all(request, me, str(refused))
        return RedirectResponse(_HERE, 303)

    async def compare(self, request: Request, me: Session) -> Response:
        outcomes = await self._office.compare(operator_of(request, me), self._clock())
        if errors := [f"{one.rail} {one.asset}: {one.error}" for one in outcomes if one.error]:
            return await self.all(request, me, "; ".join(errors))
        return RedirectResponse(_HERE, 303)


async def _rows(addresses: list[DepositAddress]) -> AsyncIterator[Mapping[str, Cell]]:
    for one in addresses:
        yield {
            "family": one.family,
            "key": one.key_id,
            "path": one.path,
            "address": one.address,
            "rail": one.rail,
            "asset": one.asset,
            "account": one.account_id,
            "used_at": iso(one.used_at_us) if one.used_at_us else None,
            "swept_at": iso(one.swept_at_us) if one.swept_at_us else None,
        }
