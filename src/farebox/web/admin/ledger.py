"""The ledger as a whole: entries, what they prove, and the reverse of one. Nothing here changes an entry."""

from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.accounts import find_account
from farebox.accounts.operators import customer
from farebox.accounts.sessions import Session
from farebox.billing.ledger import customer_id
from farebox.books.business import standing
from farebox.books.corrections import is_reverse, reverse_id
from farebox.books.journal import (
    USAGE,
    JournalLine,
    Place,
    Sought,
    accounts_of_house,
    find_entry,
    known_codes,
    page_of_journal,
    whole_journal,
)
from farebox.books.retention import first_kept, let_go_before
from farebox.clock import day_of, iso
from farebox.errors import InvalidRequest, NotFound
from farebox.ids import read_request_id
from farebox.money import decimal_usd
from farebox.web.admin.guard import Admins, operator_of, read_reason
from farebox.web.exports import MOST_ROWS, Cell, export, format_of
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_PAGE: Final = 50
_FIELD_CHARS: Final = 254
_COLUMNS: Final = ("at", "id", "kind", "from", "to", "amount_usd", "calls", "actor", "memo")


class LedgerRoom:
    """All entries, and one of them."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._by_hand = kit.by_hand
        self._clock = kit.clock

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route("/admin/ledger", page(self.journal)),
            Route("/admin/ledger.csv", page(self.export)),
            Route("/admin/ledger.json", page(self.export)),
            Route("/admin/ledger/entry", page(self.entry), methods=["GET", "POST"]),
        ]

    async def journal(self, request: Request, me: Session) -> Response:
        asked = _asked(request.query_params)
        if asked["ref"] and await find_entry(self._store, asked["ref"]):
            return RedirectResponse(f"/admin/ledger/entry?{urlencode({'id': asked['ref']})}", 303)
        sought = await self._sought(asked)
        before = Place.read(request.query_params.get("before", ""))
        page = await page_of_journal(self._store, sought, before, _PAGE)
        return self._pages.render(
            request,
            "admin/ledger.html",
            me=me,
            lines=page.lines,
            older=page.older,
            newest=before is None,
            asked=asked,
            query=urlencode({name: value for name, value in asked.items() if value}),
            codes=await known_codes(self._store),
            standing=await standing(self._store),
            kept_us=await first_kept(self._store),
            house=await accounts_of_house(self._store),
        )

    async def export(self, request: Request, me: Session) -> Response:  # noqa: ARG002  a page's signature
        sought = await self._sought(_asked(request.query_params))
        rows = _rows(whole_journal(self._store, sought, MOST_ROWS))
        return export(rows, _COLUMNS, f"ledger-{day_of(self._clock())}", format_of(request))

    async def entry(self, request: Request, me: Session) -> Response:
        """Show an entry, and make its reverse where that is asked for, once."""
        form = await read_form(request) if request.method == "POST" else dict(request.query_params)
        wanted = form.get("id", "")[: 2 * _FIELD_CHARS]
        found = await find_entry(self._store, wanted) if wanted.isprintable() else None
        if found is None:
            return await self._none(request, me, wanted)
        error = ""
        if request.method == "POST":
            try:
                made = await self._by_hand.reverse(operator_of(request, me), found, read_reason(form))
            except InvalidRequest as refused:
                error = str(refused)
            else:
                return RedirectResponse(f"/admin/ledger/entry?{urlencode({'id': made})}", 303)
        return self._pages.render(
            request,
            "admin/entry.html",
            status=422 if error else 200,
            me=me,
            entry=found,
            is_charge=found.code == USAGE,
            is_reverse=is_reverse(found.id),
            reverse=await find_entry(self._store, reverse_id(found.id)),
            owner=customer_id(found.debit_account) or customer_id(found.credit_account),
            error=error,
        )

    async def _none(self, request: Request, me: Session, wanted: str) -> Response:
        """Say that a call was let go with its month. Raises HTTPException for what never was an entry."""
        try:
            since = await let_go_before(self._store, read_request_id(wanted))
        except ValueError:
            since = None
        if since is None:
            raise HTTPException(404)
        words = f"Calls of that time are no longer kept, only those since {since}: sums stand for the others."
        return self._pages.render(
            request, "admin/missing.html", status=404, me=me, title="No such entry", words=words, back="/admin/ledger"
        )

    async def _sought(self, asked: dict[str, str]) -> Sought:
        """Make of what was typed what is looked for. An account that is none finds nothing."""
        account = asked["account"].strip().lower()
        if account and not account.startswith("house:"):
            try:
                account = customer((await find_account(self._store, account.removeprefix("customer:"))).id)
            except NotFound:
                account = "house:nobody"
        return Sought(asked["code"], account, asked["ref"])


def _asked(query: QueryParams) -> dict[str, str]:
    """Read the filters; nothing that cannot be printed is looked for."""
    return {
        name: "".join(char for char in query.get(name, "")[:_FIELD_CHARS] if char.isprintable())
        for name in ("code", "account", "ref")
    }


async def _rows(lines: AsyncIterator[JournalLine]) -> AsyncIterator[Mapping[str, Cell]]:
    async for line in lines:
        yield {
            "at": iso(line.at_us),
            "id": line.id,
            "kind": line.code,
            "from": line.debit_account,
            "to": line.credit_account,
            "amount_usd": decimal_usd(line.amount_nanos),
            "calls": line.calls or None,
            "actor": line.actor,
            "memo": line.memo,
        }
