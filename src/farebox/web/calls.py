"""The log of calls: filters in the address, pages by place, one call with the arithmetic of its price, and files."""

from collections.abc import AsyncIterator, Mapping
from typing import Final, Self
from urllib.parse import urlencode

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.keys import list_keys
from farebox.accounts.sessions import Session
from farebox.books.figures import Figures, Only
from farebox.books.log import LoggedCall, Place, Wanted, bill_of, find_call, page_of_log, whole_log
from farebox.books.retention import let_go_before
from farebox.clock import DAY_US, HOUR_US, US_PER_S, day_of, iso
from farebox.ids import read_request_id
from farebox.money import decimal_usd
from farebox.web.charts import Chart, stack
from farebox.web.dashboard import key_names
from farebox.web.docs.advice import advice
from farebox.web.exports import MOST_ROWS, Cell, export, format_of
from farebox.web.kit import Kit
from farebox.web.offer import Offer
from farebox.web.timings import spans_of

OUTCOMES: Final = {
    "finished": "The answer was complete.",
    "client_gone": "The client hung up before the end: what had come until then is charged.",
    "out_of_money": "The balance was used up in the middle: what was delivered is charged.",
    "refused_upstream": "The model's provider refused the request: free.",
    "upstream_broke": "The model's provider broke off or could not be reached: free.",
    "gateway_broke": "The gateway broke off: free.",
    "canceled": "Its batch was cancelled before its turn had come: free.",
    "expired": "Its batch had no time left for it: free.",
    "gateway_died": "The gateway ended before the call did; a later one closed it: free.",
}
KINDS: Final = {
    "exact": "Charged by the figures the provider reported.",
    "estimated": "The provider's last figures did not come: input as it reported, output counted from what was sent.",
    "waived": "Nothing is charged.",
    "failed": "Refused upstream: nothing is charged.",
    "recovered": "Ended in place of a process that had died: nothing is charged.",
    "late": "Settled after its hold had expired, from what was free in the balance then.",
}
_ADVICE: Final = {
    "client_gone": "If that was not meant: give the client a longer timeout, or let it stream. "
    "Stopping its session ends a call like this, too.",
    "out_of_money": "Add funds, or ask for fewer max_tokens, so that the answer fits into what is left.",
    "upstream_broke": "Send it again.",
    "gateway_broke": "Send it again; if it stays, write to the operator with this request id.",
    "gateway_died": "Send it again.",
}
_MAY_BE_HERE: Final = frozenset({"client_gone", "out_of_money", "upstream_broke"})
"""What a look at the account and at the way of its streams may explain."""
_STOPS: Final = {
    "max_tokens": "The answer was cut at max_tokens: ask for more, or send what came back to be continued.",
    "model_context_window_exceeded": "The context window was full: send less before, or compact the conversation.",
    "refusal": "The model declined; asking otherwise may help, asking again rarely does.",
}
_GOOD: Final = "finished"
_BAD: Final = "otherwise"
_SINCE: Final = {"1h": DAY_US // 24, "24h": DAY_US, "7d": 7 * DAY_US, "30d": 30 * DAY_US, "90d": 90 * DAY_US}
_PAGE: Final = 50
_COLUMNS: Final = (
    *("at", "request_id", "model", "asked_model", "key", "outcome", "kind", "status", "streamed", "stop_reason"),
    *("input_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens", "output_tokens"),
    *("web_searches", "charged_usd", "list_usd", "first_byte_ms", "duration_ms", "attempts", "session", "agent"),
)


class Filter(msgspec.Struct, frozen=True):
    """What of the log is wanted, as its address says. Whatever cannot be read is no condition."""

    model: str
    key: str
    status: str
    since: str
    session: str

    @classmethod
    def read(cls, query: QueryParams) -> Self:
        model, key, status, since, session = (
            query.get(name, "").strip() for name in ("model", "key", "status", "since", "session")
        )
        return cls(
            model if len(model) <= 200 and model.isprintable() else "",
            key if key.isascii() and key.isdecimal() and len(key) < 19 else "",
            status if status in OUTCOMES else "",
            since if since in _SINCE else "",
            session if len(session) <= 200 and session.isprintable() else "",
        )

    def wanted(self, now_us: int) -> Wanted:
        return Wanted(
            model=self.model or None,
            key_id=int(self.key) if self.key else None,
            outcome=self.status or None,
            since_us=now_us - _SINCE[self.since] if self.since else 0,
            session=self.session or None,
        )

    def address(self, **more: str) -> str:
        """Write the query of this filter, without what is no condition."""
        values = {**msgspec.structs.asdict(self), **more}
        return urlencode({name: value for name, value in values.items() if value})


class Picture(msgspec.Struct, frozen=True):
    """How many calls there were, a column a step."""

    chart: Chart
    labels: list[str]


class Calls:
    """The request log of whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store
        self._clock = kit.clock
        self._offer = kit.offer
        self._by_status = advice_by_status(kit.offer)

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/requests", page(self.requests)),
            Route("/dashboard/requests.csv", page(self.export)),
            Route("/dashboard/requests.json", page(self.export)),
            Route("/dashboard/requests/{request_id}", page(self.request)),
        ]

    async def requests(self, request: Request, me: Session) -> Response:
        sought = request.query_params.get("id", "").strip()
        if sought:
            call = await self._find(sought, me)
            if call is not None:
                return RedirectResponse(f"/dashboard/requests/{call.id}", 303)
        wanted = Filter.read(request.query_params)
        place = _place(request.query_params.get("before", ""))
        page = await page_of_log(self._store, me.account_id, wanted.wanted(self._clock()), place, _PAGE)
        names = key_names(await list_keys(self._store, me.account_id))
        return self._pages.render(
            request,
            "requests.html",
            status=404 if sought else 200,
            me=me,
            calls=page.calls,
            names=names,
            filter=wanted,
            models=sorted({*self._offer.catalogue.models, *([wanted.model] if wanted.model else [])}),
            outcomes=list(OUTCOMES),
            spans=list(_SINCE),
            picture=await self._picture(me, wanted),
            older=f"?{wanted.address(before=_show(page.older))}" if page.older else "",
            newest=place is None,
            sought=sought[:60],
            why_none=await self._why_none(sought) if sought else "",
        )

    async def request(self, request: Request, me: Session) -> Response:
        call = await self._find(request.path_params["request_id"], me)
        if call is None:
            return self._pages.render(
                request,
                "missing.html",
                status=404,
                me=me,
                title="No such request",
                words=f"This account has no call of that id. {await self._why_none(request.path_params['request_id'])}",
                back="/dashboard/requests",
            )
        names = key_names(await list_keys(self._store, me.account_id))
        return self._pages.render(
            request,
            "request.html",
            me=me,
            call=call,
            bill=await bill_of(self._store, call),
            key_name=names.get(call.key_id, f"key {call.key_id}"),
            outcome_words=OUTCOMES.get(call.outcome, ""),
            kind_words=KINDS.get(call.kind, ""),
            tokens_per_s=_speed(call),
            spans=spans_of(call),
            advice=advise(self._by_status, call.outcome, call.status, call.stop_reason),
            may_be_here=call.outcome in _MAY_BE_HERE,
        )

    async def export(self, request: Request, me: Session) -> Response:
        """Answer with the newest calls that the filter lets through, as a file."""
        now_us = self._clock()
        wanted = Filter.read(request.query_params).wanted(now_us)
        names = key_names(await list_keys(self._store, me.account_id))
        rows = _rows(whole_log(self._store, me.account_id, wanted, MOST_ROWS), names)
        return export(rows, _COLUMNS, f"requests-{day_of(now_us)}", format_of(request))

    async def _picture(self, me: Session, wanted: Filter) -> Picture | None:
        """Draw how many calls there were, by hour or day; not of one session or one hour: there is the table."""
        if wanted.session or wanted.since == "1h":
            return None
        now_us = self._clock()
        hourly = wanted.since == "24h"
        size_us = HOUR_US if hourly else DAY_US
        steps = _SINCE[wanted.since or "30d"] // size_us
        last = now_us // size_us
        first = last - steps + 1
        figures = await Figures.read(self._store, me.account_id, now_us)
        only = Only(int(wanted.key) if wanted.key else None, wanted.model or None, wanted.status or None)
        points = await (figures.by_hour if hourly else figures.by_day)(first, last, "outcome", only)
        series: dict[str, list[int]] = {}
        for point in points:
            name = _GOOD if point.group == _GOOD else _BAD
            series.setdefault(name, [0] * steps)[point.step - first] += point.requests
        labels = [iso(step * size_us)[: 13 if hourly else 10].replace("T", " ") for step in range(first, last + 1)]
        return Picture(stack(series, steps), labels)

    async def _why_none(self, text: str) -> str:
        """Say why there may be no call of an id: it was let go with its month, or never kept."""
        try:
            since = await let_go_before(self._store, read_request_id(text))
        except ValueError:
            since = None
        return _day_in_words(since) if since else "Calls that were refused before they began are not kept."

    async def _find(self, text: str, me: Session) -> LoggedCall | None:
        try:
            return await find_call(self._store, me.account_id, read_request_id(text))
        except ValueError:
            return None


def _day_in_words(day: str) -> str:
    return (
        f"Calls of that time are no longer kept, only those since {day}. What they came to is in the usage by the day "
        "and in the transactions."
    )


def advice_by_status(offer: Offer) -> dict[int, str]:
    """Give what to do about a refusal, by its HTTP status."""
    return {row.status: row.what_to_do.replace("`", "") for row in advice(offer)}


def advise(by_status: Mapping[int, str], outcome: str, status: int, stop_reason: str | None = None) -> str:
    """Say what to do about a call that went wrong, or ended before it was done."""
    if outcome == "refused_upstream":
        return by_status.get(status, "The message that came with it says what would be right.")
    return _ADVICE.get(outcome) or _STOPS.get(stop_reason or "", "")


def _place(text: str) -> Place | None:
    """Read a place in the log from an address; what is none is the newest end."""
    at, _, name = text.partition(".")
    if not (at.isascii() and at.isdecimal() and len(at) < 19):
        return None
    try:
        return Place(int(at), read_request_id(name))
    except ValueError:
        return None


def _show(place: Place) -> str:
    return f"{place.at_us}.{place.request_id.hex()}"


def _speed(call: LoggedCall) -> int | None:
    """Give output tokens a second, from the first byte on, for a stream that took long enough to tell."""
    if not call.streamed or call.first_byte_us is None or call.duration_us - call.first_byte_us < US_PER_S // 10:
        return None
    return call.output_tokens * US_PER_S // (call.duration_us - call.first_byte_us)


async def _rows(calls: AsyncIterator[LoggedCall], names: dict[int, str]) -> AsyncIterator[Mapping[str, Cell]]:
    async for call in calls:
        yield {
            **{column: getattr(call, column) for column in _COLUMNS if hasattr(call, column)},
            "at": iso(call.at),
            "request_id": call.id,
            "key": names.get(call.key_id, str(call.key_id)),
            "charged_usd": decimal_usd(call.charged_nanos),
            "list_usd": decimal_usd(call.list_nanos),
            "first_byte_ms": call.first_byte_us // 1000 if call.first_byte_us is not None else None,
            "duration_ms": call.duration_us // 1000,
        }
