"""Upstream bills: what each upstream bills a day and model beside what was metered, and bills that come as CSV."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.audit_log import REASON_CHARS, record
from farebox.accounts.sessions import Session
from farebox.bills.drift import days_of
from farebox.bills.reports import BillTrouble, read_csv
from farebox.errors import InvalidRequest
from farebox.web.admin.guard import Admins, operator_of
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_HERE: Final = "/admin/bills"
_DAYS: Final = 62


class BillRoom:
    """Shows bills, gets them again, and takes those that come as CSV."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._bills = kit.bills

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route(_HERE, page(self.all)),
            Route(f"{_HERE}/{{name}}/fetch", page(self.fetch), methods=["POST"]),
            Route(f"{_HERE}/{{name}}/import", page(self.take), methods=["POST"]),
        ]

    async def all(self, request: Request, me: Session) -> Response:
        return await self._show(request, me)

    async def fetch(self, request: Request, me: Session) -> Response:
        """Get a bill now."""
        name = self._name(request)
        try:
            await self._bills.fetch(name)
        except BillTrouble as trouble:
            return await self._show(request, me, str(trouble))
        return RedirectResponse(_HERE, 303)

    async def take(self, request: Request, me: Session) -> Response:
        """Take lines of CSV that were pasted."""
        name = self._name(request)
        form = await read_form(request)
        pasted = form.get("csv", "")
        try:
            bill = read_csv(pasted.encode())
            if not bill:
                raise InvalidRequest("there is no line in it")
            days = await self._bills.take(name, bill)
        except InvalidRequest as refused:
            return await self._show(request, me, str(refused), pasted)
        by = operator_of(request, me)
        reason = form.get("reason", "").strip()[:REASON_CHARS]
        facts = {"first_day": days[0].day, "days": len(days), "lines": len(bill)}
        await self._store.write([record(by.name, by.address, "bill.import", f"bill:{name}", {}, facts, reason)])
        return RedirectResponse(_HERE, 303)

    def _name(self, request: Request) -> str:
        name = str(request.path_params["name"])
        if name not in self._bills.settings:
            raise HTTPException(404)
        return name

    async def _show(self, request: Request, me: Session, error: str = "", pasted: str = "") -> Response:
        days = await days_of(self._store, limit=_DAYS)
        return self._pages.render(
            request,
            "admin/bills.html",
            status=422 if error else 200,
            me=me,
            error=error,
            pasted=pasted,
            bills=self._bills.settings.values(),
            troubles=self._bills.troubles,
            days=[(day, self._bills.drifts(day)) for day in days],
        )
