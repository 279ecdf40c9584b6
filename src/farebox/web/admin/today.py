"""Today: what the business does now, what is owed, and whether the books agree."""

from typing import Final

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.books.business import Sales, standing
from farebox.clock import DAY_US, HOUR_US, day_of, iso
from farebox.web.admin.guard import Admins
from farebox.web.charts import Chart, stack
from farebox.web.kit import Kit

_RANGES: Final = {"24h": 24, "7d": 7, "30d": 30}
_LONGEST_DAYS: Final = 30


class Columns(Struct, frozen=True):
    """A chart and the moments its columns stand for."""

    range: str
    chart: Chart
    labels: list[str]


class Today:
    """The first page an operator sees."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._cost_percent = kit.house.cost_percent
        self._office = kit.till.office
        self._backstage = kit.backstage

    def routes(self) -> list[Route]:
        return [Route("/admin", self._admins.page(self.today))]

    async def today(self, request: Request, me: Session) -> Response:
        now_us = self._clock()
        wanted = request.query_params.get("range", "")
        today = now_us // DAY_US
        sales = await Sales.read(self._store, today - _LONGEST_DAYS + 1, now_us)
        periods = [
            ("24 hours", sales.since((now_us // HOUR_US - 23) * HOUR_US)),
            ("7 days", sales.since((today - 6) * DAY_US)),
            ("30 days", sales.since((today - 29) * DAY_US)),
        ]
        stuck = await self._store.fetch("SELECT count(*) FROM outbox WHERE sent_at IS NULL AND tries > 0")
        return self._pages.render(
            request,
            "admin/today.html",
            me=me,
            periods=periods,
            percent=self._cost_percent,
            standing=await standing(self._store),
            proved_at=now_us,
            drawn=_draw(sales, wanted if wanted in _RANGES else "30d", now_us),
            ranges=list(_RANGES),
            stuck_letters=stuck[0][0],
            upstreams=len(self._backstage.upstreams()),
            broken_upstreams=[one.name for one in self._backstage.broken_upstreams()],
            payments_waiting=len(await self._office.incidents()) + len(await self._office.strays()),
        )


def _draw(sales: Sales, range_: str, now_us: int) -> Columns:
    """Draw what was spent by model."""
    size_us = HOUR_US if range_ == "24h" else DAY_US
    last = now_us // size_us
    first = last - _RANGES[range_] + 1
    series = sales.by_model(first, last, size_us)
    labels = [
        iso(step * size_us)[11:16] if range_ == "24h" else day_of(step * size_us) for step in range(first, last + 1)
    ]
    return Columns(range_, stack(series, _RANGES[range_]), labels)
