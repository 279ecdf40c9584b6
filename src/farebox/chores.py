"""The work that goes on beside the calls: what is looked after, and how often."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from farebox.accounts.mail import Postman
from farebox.bills.watch import NOTICED_US
from farebox.books.retention import drop_months
from farebox.clock import DAY_US
from farebox.gateway.batches.upkeep import Upkeep
from farebox.gateway.messages import Messages
from farebox.gateway.settling import Settler
from farebox.gateway.streaming import Streams
from farebox.jobs import Jobs
from farebox.parts import Parts
from farebox.store.growth import make_room

_TEND_S: Final = 5.0
"""How often top-ups are looked after that no watcher has moved."""
_RATES_S: Final = 5.0
"""How often it is seen which sources of rates are to be asked again: those that answer twice a minute."""
_RECONCILE_S: Final = 600.0
"""How often it is seen whether chain and books are to be compared again, which is once a day."""
_BILLS_S: Final = 600.0
"""How often it is seen whether a bill is to be got again, which is once a day."""
_LOOK_OUT_S: Final = 15.0
_ROOM_S: Final = 3_600.0
"""How often it is seen that the next months have their place, long before they begin."""
_DROP_S: Final = 3_600.0
"""How often it is seen whether a month of calls may go."""


def begin_chores(
    parts: Parts,
    jobs: Jobs,
    settler: Settler,
    messages: Messages,
    streams: Streams,
    batches: Upkeep,
    flush_lines: Callable[[], None],
) -> None:
    """Begin all jobs: those about calls in flight, about the books, and those that one process does for all."""
    jobs.every(min(1.0, parts.config.batches.poll_s), "batches", batches.tick)
    _keep_calls(parts, jobs, messages, streams, flush_lines)
    _keep_books(parts, jobs, settler)
    _serve_all(parts, jobs)


def _keep_calls(
    parts: Parts, jobs: Jobs, messages: Messages, streams: Streams, flush_lines: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()

    async def tick() -> None:
        now = loop.time()
        streams.tick(now)
        messages.tick(now)
        parts.pool.tick(now)
        _tell_of_upstreams(parts, now)
        flush_lines()

    async def follow_changes() -> None:
        if await parts.store.changed_elsewhere():
            parts.keys.forget()
            parts.stopped.is_stale = parts.prices.is_stale = True
            parts.roster.is_stale = parts.switches.is_stale = True

    async def read_anew() -> None:
        for followed in (parts.prices, parts.roster, parts.switches):
            if followed.is_stale:
                await followed.follow()
        if parts.stopped.is_stale:
            await parts.stopped.refresh()
            messages.end_stopped()

    jobs.every(1.0, "tick", tick)
    jobs.every(0.25, "follow_changes", follow_changes)
    jobs.every(1.0, "tend_upstreams", parts.roster.tend)
    jobs.every(0.25, "read_anew", read_anew)  # apart: reading may wait for a connection that has died


def _tell_of_upstreams(parts: Parts, now: float) -> None:
    """Say which upstreams have come to rest, and which are well again."""
    for one in parts.pool.upstreams:
        turned = one.turned()
        if turned == "rests":
            failed = one.last_failure
            why = (failed.error or failed.status) if failed is not None else None
            for_s = max(0, round(one.rests_until - now))
            parts.log.warning("upstream_rests", upstream=one.name, failed_by=why, for_s=for_s)
        elif turned == "well":
            parts.log.warning("upstream_well_again", upstream=one.name)


def _keep_books(parts: Parts, jobs: Jobs, settler: Settler) -> None:
    books = parts.books

    async def close_past_days() -> None:
        for day in await books.close_days():
            parts.log.info("day_closed", day=day)

    async def keep_room() -> None:
        if books.runs.leads and books.available:
            await make_room(parts.store)

    async def let_calls_go() -> None:
        months = parts.config.database.keep_months
        if months and books.runs.leads and books.available:
            dropped = await drop_months(parts.store, months, books.clock())
            if dropped:
                parts.log.info("calls_dropped", count=dropped, keep_months=months)

    async def end_strays() -> None:
        await books.runs.end_strays()

    jobs.every(5.0, "retry_settlements", settler.retry)
    jobs.every(30.0, "end_strays", end_strays)
    jobs.every(60.0, "close_days", close_past_days)
    jobs.every(_ROOM_S, "make_room", keep_room)
    jobs.every(_DROP_S, "drop_calls", let_calls_go)
    jobs.every(min(1.0, books.runs.beat_s), "beat", books.beat)


def _serve_all(parts: Parts, jobs: Jobs) -> None:
    """Begin what tells people of things; most of it one process does for all, and only while there is a database."""
    books, clock = parts.books, parts.clock
    postman = Postman(parts.store, parts.config.mail, parts.log.error)

    def lead(pause_s: float, name: str, work: Callable[[int], Awaitable[object]]) -> None:
        async def job() -> None:
            if books.runs.leads and books.available:
                await work(clock())

        jobs.every(pause_s, name, job)

    async def tell_news() -> None:
        if books.available:
            await parts.hub.look(one.id for one in parts.announcements.shown(clock()))

    async def read_announcements() -> None:
        if books.available:
            await parts.announcements.refresh(clock())

    lead(5.0, "send_mail", postman.send)

    async def reconcile(now_us: int) -> None:
        if await parts.till.reconciler.is_due(now_us, DAY_US):
            for outcome in await parts.till.reconciler.compare(now_us):
                about = {"rail": outcome.rail, "asset": outcome.asset, "addresses": outcome.looked_at}
                if outcome.error:
                    parts.log.warning("payments_not_compared", **about, error=outcome.error)
                elif outcome.differences:
                    parts.log.error("payments_differ", **about, differences=len(outcome.differences))
                else:
                    parts.log.info("payments_compared", **about)

    lead(_TEND_S, "tend_topups", parts.till.topups.tend)
    if parts.bills.settings:
        lead(NOTICED_US / 1_000_000, "notice_bills", parts.bills.notice)
    if any(bill.admin_key for bill in parts.bills.settings.values()):
        lead(_BILLS_S, "fetch_bills", parts.bills.look)
    if any(not rail.simulated for rail in parts.till.topups.rails.values()):
        lead(_RATES_S, "refresh_rates", parts.till.rates.refresh)
    if parts.till.rounds:
        lead(_RECONCILE_S, "reconcile", reconcile)
    for rounds in parts.till.rounds:
        lead(rounds.watcher.pause_s, f"watch_{rounds.watcher.name}", rounds.go)
    lead(_LOOK_OUT_S, "look_out", parts.herald.lookout.look)
    lead(1.0, "send_events", parts.herald.courier.send)
    jobs.every(1.0, "tell_news", tell_news)
    jobs.every(5.0, "read_announcements", read_announcements)
