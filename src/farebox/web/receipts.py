"""Receipts and statements: what was paid in, and what a month came to, on pages that print well."""

import hashlib
import re
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.books.receipts import find_receipt, list_receipts, month_of, months_with_entries
from farebox.clock import day_of
from farebox.errors import NotFound
from farebox.web.kit import Kit

_MONTH: Final = re.compile(r"20\d\d-(0[1-9]|1[0-2])", re.ASCII)
_LISTED: Final = 200


class Receipts:
    """The receipts of whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store
        self._clock = kit.clock
        self._topups = kit.till.topups

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/receipts", page(self.receipts)),
            Route("/dashboard/receipts/month/{month}", page(self.month)),
            Route("/dashboard/receipts/{transfer_id:path}", page(self.receipt)),
        ]

    async def receipts(self, request: Request, me: Session) -> Response:
        return self._pages.render(
            request,
            "receipts.html",
            me=me,
            receipts=await list_receipts(self._store, me.account_id, _LISTED),
            months=await months_with_entries(self._store, me.account_id, self._clock()),
            number=receipt_number,
        )

    async def receipt(self, request: Request, me: Session) -> Response:
        try:
            receipt = await find_receipt(self._store, me.account_id, request.path_params["transfer_id"])
        except NotFound:
            return self._missing(request, me, "This account has no such receipt.")
        payment = await self._topups.by_transfer(me.account_id, receipt.id)
        return self._pages.render(
            request,
            "receipt.html",
            me=me,
            receipt=receipt,
            number=receipt_number(receipt.id, receipt.at_us),
            payment=payment,
            coin=self._topups.asset_paid(payment) if payment is not None else None,
            rail=self._topups.rails.get(payment.rail) if payment is not None else None,
            details=await self._details(me),
        )

    async def month(self, request: Request, me: Session) -> Response:
        month = request.path_params["month"]
        if not _MONTH.fullmatch(month):
            return self._missing(request, me, "A month is written like 2026-11.")
        statement = await month_of(self._store, me.account_id, month)
        return self._pages.render(
            request, "month.html", me=me, month=statement, details=await self._details(me), now=self._clock()
        )

    async def _details(self, me: Session) -> str:
        rows = await self._store.fetch("SELECT details FROM account WHERE id = ?", (me.account_id,))
        return str(rows[0][0])

    def _missing(self, request: Request, me: Session, words: str) -> Response:
        return self._pages.render(
            request, "missing.html", status=404, me=me, title="No such receipt", words=words, back="/dashboard/receipts"
        )


def receipt_number(transfer_id: str, at_us: int) -> str:
    """Number a receipt: by its day and its entry, so that it is the same whenever and wherever it is printed."""
    digest = hashlib.sha256(transfer_id.encode()).hexdigest()[:8].upper()
    return f"{day_of(at_us).replace('-', '')}-{digest}"
