"""The dashboard's first page and its charts: what a customer has, what was spent, by what."""

from collections.abc import AsyncIterator, Mapping
from typing import Final, Self

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.accounts import find_account
from farebox.accounts.keys import Key, list_keys
from farebox.accounts.sessions import Session
from farebox.books.figures import Figures, Point, Use
from farebox.clock import DAY_US, HOUR_US, day_of, iso
from farebox.money import NANOS_PER_USD, decimal_usd
from farebox.web.exports import Cell, export, format_of
from farebox.web.kit import Kit
from farebox.web.usage import Asked, Usage, look_at_usage, show_group

_COLUMNS: Final = ("begins", "group", "requests", "tokens", "spend_usd", "list_usd")
_LONGEST_DAYS: Final = 365
_LOW_DAYS: Final = 3
_LOW_NANOS: Final = NANOS_PER_USD
"""A balance that lasts for fewer days, or is less than this, is worth a warning."""
_MOST_HINTS: Final = 3


class Today(msgspec.Struct, frozen=True):
    """What came together since midnight, and the mean of the six days before."""

    spent_nanos: int
    requests: int
    unfinished: int
    mean_nanos: int

    @classmethod
    def read(cls, points: list[Point], week_nanos: int) -> Self:
        spent = sum(point.spend_nanos for point in points)
        return cls(
            spent,
            sum(point.requests for point in points),
            sum(point.requests for point in points if point.group != "finished"),
            (week_nanos - spent) // 6,
        )

    @property
    def change(self) -> int | None:
        """Give how far today is from the mean, in percent, if there is one."""
        return round(100 * (self.spent_nanos - self.mean_nanos) / self.mean_nanos) if self.mean_nanos else None


class Dashboard:
    """Pages for people who are signed in, about their own account alone."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store
        self._clock = kit.clock

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
        used = await figures.of_keys()
        today = now_us // DAY_US
        week = await figures.by_day(today - 6, today, "outcome")
        spent = sum(point.spend_nanos for point in week)
        days_left = account.free_nanos * 7 // spent if spent else None
        clients = [key for key in keys if key.purpose == "client" and key.is_open(now_us)]
        return self._pages.render(
            request,
            "overview.html",
            me=me,
            account=account,
            usage=usage,
            today=Today.read([point for point in week if point.step == today], spent),
            days_left=days_left,
            longest_days=_LONGEST_DAYS,
            is_low=bool(used) and _is_low(account.free_nanos, days_left),
            keys=clients,
            hints=_hints(clients, used, now_us)[:_MOST_HINTS],
            used=used,
            now=now_us,
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


def _is_low(free_nanos: int, days_left: int | None) -> bool:
    return free_nanos < _LOW_NANOS or (days_left is not None and days_left < _LOW_DAYS)


def _hints(keys: list[Key], used: dict[int, Use], now_us: int) -> list[tuple[Key, list[str]]]:
    """Name the keys that could be safer, the dearest first."""
    found = [(key, key.hints(now_us, used[key.id].last_at_us if key.id in used else None)) for key in keys]
    by_spend = sorted(found, key=lambda one: -used[one[0].id].spend_nanos if one[0].id in used else 0)
    return [(key, hints) for key, hints in by_spend if hints]


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
