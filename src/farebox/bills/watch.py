"""Comparing: once a day each bill is got and set beside the books, and a difference that is too large is told."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from farebox.bills.drift import Day, days_of, forget_old, keep, metered
from farebox.bills.reports import WEB_SEARCH, Bill, Bills, BillSettings, BillTrouble
from farebox.books.prices import Prices
from farebox.books.retention import first_kept
from farebox.clock import DAY_US, Clock, day_of
from farebox.errors import InvalidRequest, NotFound
from farebox.store.protocol import Store

_DAYS: Final = 4
"""Reports are put right for a while after a day has ended: each of the last days is got again."""
_READY_US: Final = 6 * 3_600 * 1_000_000
"""A day's report is complete some hours after its end."""
_AGAIN_US: Final = 20 * 3_600 * 1_000_000
_RETRY_US: Final = 3_600 * 1_000_000
_KEPT_DAYS: Final = 400
NOTICED_US: Final = 60 * 1_000_000
"""How often what was compared is looked through."""
_NANOS_PER_USD: Final = 1_000_000_000

Tell = Callable[..., Any]


class BillWatch:
    """Keeps bills and books side by side. One process does it for all."""

    def __init__(
        self, settings: Sequence[BillSettings], bills: Bills, store: Store, prices: Prices, clock: Clock, alert: Tell
    ) -> None:
        self.settings = {one.name: one for one in settings}
        self._bills = bills
        self._store = store
        self._prices = prices
        self._clock = clock
        self._alert = alert
        self.troubles: dict[str, str] = {}
        """Why a bill could not be had the last time, by its name."""
        self._tried_us: dict[str, int] = {}
        self._noticing = asyncio.Lock()
        self._began_us = clock()
        self._seen_us = 0
        self._drifting: set[tuple[str, str]] = set()
        """Bills and days that were told, or drifted before this process or the one that did this before looked."""

    async def notice(self, now_us: int) -> None:
        """Tell of days that have begun to drift, whoever compared them: this job, a page or a command."""
        async with self._noticing:
            await self._notice(now_us)

    async def _notice(self, now_us: int) -> None:
        rows = await self._store.fetch("SELECT coalesce(max(fetched_at), 0) FROM bill_day")
        if rows[0][0] == self._seen_us:
            return
        news_us = max(self._began_us, now_us - NOTICED_US) if not self._seen_us else 0
        drifting = set()
        for name in self.settings:
            for day in await days_of(self._store, name, _KEPT_DAYS):
                if not self.drifts(day):
                    continue
                drifting.add((name, day.day))
                if (name, day.day) not in self._drifting and day.fetched_at_us >= news_us:
                    self._tell(day)
        self._seen_us, self._drifting = int(rows[0][0]), drifting

    async def look(self, now_us: int) -> None:
        """Get what is due. Called by a job."""
        await self.notice(now_us)
        for one in self.settings.values():
            if one.admin_key and await self._is_due(one.name, now_us):
                try:
                    await self.fetch(one.name)
                except BillTrouble as trouble:
                    self._alert("bill_not_fetched", bill=one.name, error=str(trouble))
        await self.notice(now_us)
        await forget_old(self._store, day_of(now_us - _KEPT_DAYS * DAY_US))

    async def fetch(self, name: str) -> list[Day]:
        """Get the last days of a bill, and compare them. Raises BillTrouble, and NotFound for one that is none."""
        one = self._find(name)
        if not one.admin_key:
            raise BillTrouble(f"the bill {name!r} has no admin_key: import it as CSV")
        now_us = self._clock()
        self._tried_us[name] = now_us
        last_us = now_us - _READY_US - DAY_US
        days = [day_of(last_us - age * DAY_US) for age in range(_DAYS - 1, -1, -1)]
        try:
            bill = await self._bills.fetch(one, days[0], len(days))
        except BillTrouble as trouble:
            self.troubles[name] = str(trouble)
            raise
        self.troubles.pop(name, None)
        found = _by_day(bill)
        return [await self._compare(one, day, found.get(day, {})) for day in days]

    async def take(self, name: str, bill: Bill) -> list[Day]:
        """Compare a bill that came as CSV, for each day that stands in it.

        Raises NotFound, and InvalidRequest, with nothing taken, for a day to come or one whose calls were let go.
        """
        one = self._find(name)
        days = _by_day(bill)
        if days and max(days) > day_of(self._clock()):
            raise InvalidRequest(f"{max(days)} is yet to come: what is metered of it is not known")
        kept_us = await first_kept(self._store)
        if days and kept_us and min(days) < day_of(kept_us):
            raise InvalidRequest(
                f"the calls of {min(days)} are no longer kept, so that there is nothing to compare with: "
                f"leave out what is before {day_of(kept_us)}"
            )
        return [await self._compare(one, day, days[day]) for day in sorted(days)]

    def drifts(self, day: Day) -> bool:
        """Tell whether a day's bill and books are further apart than the operator allows."""
        one = self.settings.get(day.bill)
        return one is not None and day.drifts(one.percent, round(one.least_usd * _NANOS_PER_USD))

    def _find(self, name: str) -> BillSettings:
        if name not in self.settings:
            known = ", ".join(sorted(self.settings)) or "there is none: add [[bills]] to the configuration"
            raise NotFound(f"there is no bill {name[:60]!r}; known: {known}")
        return self.settings[name]

    async def _is_due(self, name: str, now_us: int) -> bool:
        if now_us - self._tried_us.get(name, 0) < _RETRY_US:
            return False
        known = await days_of(self._store, name, 1)
        newest = day_of(now_us - _READY_US - DAY_US)
        return not known or known[0].day < newest or now_us - known[0].fetched_at_us > _AGAIN_US

    async def _compare(self, one: BillSettings, day: str, billed: Mapping[str, int]) -> Day:
        catalogue = self._prices.now
        ours = await metered(self._store, catalogue, one.upstreams, day, by_piece=WEB_SEARCH)
        theirs: dict[str, int] = {}
        for name, nanos in billed.items():
            model = catalogue.find(name) or catalogue.find(_undated(name))
            told = name if name in ours or model is None else model.id
            theirs[told] = theirs.get(told, 0) + nanos
        return await keep(self._store, one.name, day, ours, theirs, self._clock())

    def _tell(self, day: Day) -> None:
        self._alert(
            "bill_drifts",
            bill=day.bill,
            day=day.day,
            billed_nanos=day.billed_nanos,
            metered_nanos=day.metered_nanos,
            percent=round(day.share, 2),
        )


def _by_day(bill: Bill) -> dict[str, dict[str, int]]:
    days: dict[str, dict[str, int]] = {}
    for (day, name), nanos in bill.items():
        days.setdefault(day, {})[name] = nanos
    return days


def _undated(name: str) -> str:
    """Take the date off a model's name ("claude-x-1-20260101")."""
    stem, _, date = name.rpartition("-")
    return stem if len(date) == len("20260101") and date.isdigit() else name
