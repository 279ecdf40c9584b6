"""Transactions: every movement of a customer's balance, with the balance after it, on pages and as a file."""

from collections.abc import AsyncIterator, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.books.beancount import write_beancount
from farebox.books.corrections import is_reverse
from farebox.books.statement import Mark, StatementLine, page_of_statement, whole_statement
from farebox.clock import day_of, iso
from farebox.money import decimal_usd
from farebox.web.exports import MOST_ROWS, Cell, export, format_of
from farebox.web.kit import Kit

_PAGE: Final = 50
_COLUMNS: Final = ("at", "id", "kind", "memo", "amount_usd", "balance_usd")


class Transactions:
    """The statement of whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store
        self._clock = kit.clock

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/transactions", page(self.transactions)),
            Route("/dashboard/transactions.csv", page(self.export)),
            Route("/dashboard/transactions.json", page(self.export)),
            Route("/dashboard/transactions.beancount", page(self.beancount)),
        ]

    async def transactions(self, request: Request, me: Session) -> Response:
        before = Mark.read(request.query_params.get("before", ""))
        page = await page_of_statement(self._store, me.account_id, before, _PAGE)
        return self._pages.render(
            request, "transactions.html", me=me, lines=page.lines, kind_of=_kind_of, older=page.older, newest=not before
        )

    async def export(self, request: Request, me: Session) -> Response:
        rows = _rows(whole_statement(self._store, me.account_id, MOST_ROWS))
        return export(rows, _COLUMNS, f"transactions-{day_of(self._clock())}", format_of(request))

    async def beancount(self, request: Request, me: Session) -> Response:  # noqa: ARG002  a page's signature
        """Answer with the statement as a Beancount ledger (beancount.github.io/docs/beancount_language_syntax)."""
        lines = [line async for line in whole_statement(self._store, me.account_id, MOST_ROWS)]
        headers = {"content-disposition": f'attachment; filename="farebox-{day_of(self._clock())}.beancount"'}
        text = write_beancount(lines, self._pages.site_name)
        return StreamingResponse(text, media_type="text/plain; charset=utf-8", headers=headers)


def _kind_of(line: StatementLine) -> str:
    """Name a movement for people: one that takes a deposit back is of the deposit's code, and is none."""
    if line.mark.id.startswith("reversal:"):
        return "payment undone"
    return f"{line.code} undone" if is_reverse(line.mark.id) else line.code


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
