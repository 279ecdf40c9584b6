"""The list of customers: looked for, filtered, a page at a time, and as a file."""

from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.books.directory import Customer, Wanted, all_customers, customers
from farebox.clock import day_of, iso
from farebox.ids import key_hint
from farebox.money import decimal_usd
from farebox.web.admin.guard import Admins
from farebox.web.exports import MOST_ROWS, Cell, export, format_of
from farebox.web.kit import Kit

STATUSES: Final = ("active", "suspended", "closed")
_PAGE: Final = 50
_WORDS_CHARS: Final = 254
_COLUMNS: Final = (
    *("id", "email", "status", "plan", "role", "balance_usd", "held_usd", "spent_30d_usd"),
    *("last_call", "opened"),
)


class Customers:
    """All customers."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._plans = [plan.name for plan in kit.offer.plans]
        self._prefix = kit.offer.key_prefix

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route("/admin/customers", page(self.list_)),
            Route("/admin/customers.csv", page(self.export)),
            Route("/admin/customers.json", page(self.export)),
        ]

    async def list_(self, request: Request, me: Session) -> Response:
        wanted = self._wanted(request.query_params)
        before = request.query_params.get("before", "")
        before_id = int(before) if before.isascii() and before.isdecimal() and len(before) < 19 else None
        found = await customers(self._store, wanted, self._clock(), before_id, _PAGE + 1)
        shown = found[:_PAGE]
        asked = {"q": self._shown(wanted.words), "status": wanted.status, "plan": wanted.plan}
        query = urlencode({name: value for name, value in asked.items() if value})
        return self._pages.render(
            request,
            "admin/customers.html",
            me=me,
            found=shown,
            asked=asked,
            query=query,
            older=shown[-1].id if len(found) > _PAGE else None,
            newest=before_id is None,
            statuses=STATUSES,
            plans=self._plans,
        )

    async def export(self, request: Request, me: Session) -> Response:  # noqa: ARG002  a page's signature
        now_us = self._clock()
        rows = _rows(all_customers(self._store, self._wanted(request.query_params), now_us, MOST_ROWS))
        return export(rows, _COLUMNS, f"customers-{day_of(now_us)}", format_of(request))

    def _wanted(self, query: QueryParams) -> Wanted:
        """Read what is looked for; whatever cannot be meant is no condition."""
        words, status, plan = (query.get(name, "") for name in ("q", "status", "plan"))
        words = "".join(char for char in words[:_WORDS_CHARS] if char.isprintable())
        return Wanted(words, status if status in STATUSES else "", plan if plan in self._plans else "")

    def _shown(self, words: str) -> str:
        """Write what was looked for back into the form, but no whole key."""
        return key_hint(words, self._prefix) if words.startswith(self._prefix) and len(words) > 20 else words


async def _rows(found: AsyncIterator[Customer]) -> AsyncIterator[Mapping[str, Cell]]:
    async for one in found:
        yield {
            "id": one.id,
            "email": one.email,
            "status": one.status,
            "plan": one.plan,
            "role": one.role,
            "balance_usd": decimal_usd(one.balance_nanos),
            "held_usd": decimal_usd(one.held_nanos),
            "spent_30d_usd": decimal_usd(one.spent_nanos),
            "last_call": iso(one.last_call_us) if one.last_call_us else "",
            "opened": iso(one.created_at_us),
        }
