"""The dashboard's first page and its charts: what a customer has, what was spent, by what."""

from collections.abc import AsyncIterator, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.accounts import find_account
from farebox.accounts.keys import Key, list_keys
from farebox.accounts.sessions import Session
from farebox.books.figures import HOUR_US, Figures
from farebox.clock import DAY_US, Clock, day_of, iso
from farebox.money import decimal_usd
from farebox.store.protocol import Store
from farebox.web.exports import Cell, export, format_of
from farebox.web.pages import Pages
from farebox.web.usage import Asked, Usage, look_at_usage, show_group
from farebox.web.visitors import Visitors

_COLUMNS: Final = ("begins", "group", "requests", "tokens", "spend_usd", "list_usd")
_LONGEST_DAYS: Final = 365


class Dashboard:
    """Pages for people who are signed in, about their own account alone."""

    def __init__(self, pages: Pages, visitors: Visitors, store: Store, clock: Clock) -> None:
        self._pages = pages
        self._visitors = visitors
        self._store = store
        self._clock = clock

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard", page(self.overview)),
            Route("/dashboard/usage", page(self.usage)),
            Route("/dashboard/usage.csv", page(self.export)),
            Route("/dashboard/usage.json", page(self.export)),
        ]

    async def overview(self, request: Request, me: Session) -> Response:
        now_us = self._clock()
        account = await find_account(self._store, str(me.account_id))
        keys = await list_keys(self._store, me.account_id)
        figures = await Figures.read(self._store, me.account_id, now_us)
        usage = await look_at_usage(figures, Asked.read(request.query_params), key_names(keys), now_us)
        week = await look_at_usage(figures, Asked("spend", "model", "7d"), {}, now_us)
        spent = week.spent(7)
        days_left = account.free_nanos * 7 // spent if spent else None
        today = [point for point in week.points if point.step == week.last_step]
        return self._pages.render(
            request,
            "overview.html",
            me=me,
            account=account,
            usage=usage,
            spent_today=sum(point.spend_nanos for point in today),
            requests_today=sum(point.requests for point in today),
            days_left=days_left,
            longest_days=_LONGEST_DAYS,
            keys=[key for key in keys if key.status(now_us) == "active"],
            used=await figures.of_keys(),
        )

    async def usage(self, request: Request, me: Session) -> Response:
        keys = await list_keys(self._store, me.account_id)
        return self._pages.render(request, "usage.html", me=me, usage=await self._usage(request, me, keys))

    async def export(self, request: Request, me: Session) -> Response:
        """Answer with what the chart shows, and its other figures, as a file."""
        keys = await list_keys(self._store, me.account_id)
        usage = await self._usage(request, me, keys)
        name = f"usage-{day_of(self._clock())}"
        return export(_rows(usage, key_names(keys)), _COLUMNS, name, format_of(request))

    async def _usage(self, request: Request, me: Session, keys: list[Key]) -> Usage:
        now_us = self._clock()
        figures = await Figures.read(self._store, me.account_id, now_us)
        return await look_at_usage(figures, Asked.read(request.query_params), key_names(keys), now_us)


def key_names(keys: list[Key]) -> dict[int, str]:
    """Give the names of keys; one that is not alone with its name is told apart by the end of its hint."""
    names = [key.name for key in keys]
    return {key.id: key.name if names.count(key.name) == 1 else f"{key.name} …{key.hint[-4:]}" for key in keys}


async def _rows(usage: Usage, names: dict[int, str]) -> AsyncIterator[Mapping[str, Cell]]:
    size_us = HOUR_US if usage.asked.hourly else DAY_US
    for point in usage.points:
        yield {
            "begins": iso(point.step * size_us),
            "group": show_group(usage.asked.group, point.group, names),
            "requests": point.requests,
            "tokens": point.tokens,
            "spend_usd": decimal_usd(point.spend_nanos),
            "list_usd": decimal_usd(point.list_nanos),
        }
