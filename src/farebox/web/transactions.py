"""Transactions: every movement of a customer's balance, with the balance after it, on pages and as a file."""

from collections.abc import AsyncIterator, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.books.statement import Mark, StatementLine, page_of_statement, whole_statement
from farebox.clock import Clock, day_of, iso
from farebox.money import decimal_usd
from farebox.store.protocol import Store
from farebox.web.exports import MOST_ROWS, Cell, export, format_of
from farebox.web.pages import Pages
from farebox.web.visitors import Visitors

_PAGE: Final = 50
_COLUMNS: Final = ("at", "id", "kind", "memo", "amount_usd", "balance_usd")


class Transactions:
    """The statement of whoever is signed in."""

    def __init__(self, pages: Pages, visitors: Visitors, store: Store, clock: Clock) -> None:
        self._pages = pages
        self._visitors = visitors
        self._store = store
        self._clock = clock

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/transactions", page(self.transactions)),
            Route("/dashboard/transactions.csv", page(self.export)),
            Route("/dashboard/transactions.json", page(self.export)),
        ]

    async def transactions(self, request: Request, me: Session) -> Response:
        before = Mark.read(request.query_params.get("before", ""))
        page = await page_of_statement(self._store, me.account_id, before, _PAGE)
        return self._pages.render(
            request, "transactions.html", me=me, lines=page.lines, older=page.older, newest=before is None
        )

    async def export(self, request: Request, me: Session) -> Response:
        rows = _rows(whole_statement(self._store, me.account_id, MOST_ROWS))
        return export(rows, _COLUMNS, f"transactions-{day_of(self._clock())}", format_of(request))


async def _rows(lines: AsyncIterator[StatementLine]) -> AsyncIterator[Mapping[str, Cell]]:
    async for line in lines:
        yield {
            "at": iso(line.mark.at_us),
            "id": line.mark.id,
            "kind": line.code,
            "memo": line.memo,
            "amount_usd": decimal_usd(line.amount_nanos),
            "balance_usd": decimal_usd(line.balance_nanos),
        }
