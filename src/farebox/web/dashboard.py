"""The dashboard: what a customer has, used and pays for."""

from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.accounts import find_account
from farebox.accounts.keys import Key, create_key, find_key, list_keys, revoke_key
from farebox.accounts.sessions import Session
from farebox.books.figures import by_day, last_used
from farebox.books.reports import calls, entries
from farebox.clock import DAY_US, Clock, day_of
from farebox.errors import InvalidRequest, NotFound
from farebox.store.protocol import Store
from farebox.web.charts import stack
from farebox.web.pages import Pages
from farebox.web.visitors import Visitors, read_form

_RANGES: Final = (7, 30, 90)
_METRICS: Final = ("spend", "tokens", "requests")
_SHOWN: Final = 50
_KEYS_MOST: Final = 100


class Dashboard:
    """Pages for people who are signed in, about their own account alone."""

    def __init__(self, pages: Pages, visitors: Visitors, store: Store, clock: Clock, key_prefix: str) -> None:
        self._pages = pages
        self._visitors = visitors
        self._store = store
        self._clock = clock
        self._key_prefix = key_prefix

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard", page(self.overview)),
            Route("/dashboard/requests", page(self.requests)),
            Route("/dashboard/keys", page(self.keys), methods=["GET", "POST"]),
            Route("/dashboard/keys/{key_id:int}/revoke", page(self.revoke), methods=["GET", "POST"]),
            Route("/dashboard/transactions", page(self.transactions)),
            Route("/dashboard/settings", page(self.settings)),
            Route("/dashboard/sessions/{name}/end", page(self.end_session), methods=["POST"]),
            Route("/dashboard/sessions/end", page(self.end_sessions), methods=["POST"]),
        ]

    async def overview(self, request: Request, me: Session) -> Response:
        days = _one_of(request.query_params.get("days"), _RANGES, 30)
        metric = request.query_params.get("metric", "")
        metric = metric if metric in _METRICS else "spend"
        account = await find_account(self._store, str(me.account_id))
        last_day = self._clock() // DAY_US
        first_day = last_day - days + 1
        points = await by_day(self._store, me.account_id, first_day * DAY_US, (last_day + 1) * DAY_US, "model")
        series: dict[str, list[int]] = {}
        for point in points:
            figure = {"spend": point.spend_nanos, "tokens": point.tokens, "requests": point.requests}[metric]
            series.setdefault(point.group, [0] * days)[point.day - first_day] += figure
        today = [point for point in points if point.day == last_day]
        spent = sum(point.spend_nanos for point in points if point.day > last_day - 7)
        return self._pages.render(
            request,
            "overview.html",
            me=me,
            account=account,
            chart=stack(series, days),
            labels=[day_of(day * DAY_US) for day in range(first_day, last_day + 1)],
            days=days,
            metric=metric,
            spent_today=sum(point.spend_nanos for point in today),
            requests_today=sum(point.requests for point in today),
            days_left=account.free_nanos * 7 // spent if spent else None,
            keys=await self._keys(me),
            used=await last_used(self._store, me.account_id),
            has_called=bool(points) or bool(await last_used(self._store, me.account_id)),
        )

    async def requests(self, request: Request, me: Session) -> Response:
        found = [call async for call in calls(self._store, account_id=me.account_id, limit=_SHOWN)]
        return self._pages.render(request, "requests.html", me=me, calls=found[::-1], shown=_SHOWN)

    async def keys(self, request: Request, me: Session) -> Response:
        error, made, name, status = "", None, "", 200
        if request.method == "POST":
            name = (await read_form(request)).get("name", "")
            try:
                if len(await self._keys(me)) >= _KEYS_MOST:
                    raise InvalidRequest(f"an account has at most {_KEYS_MOST} active keys; revoke one first")
                _, made = await create_key(self._store, me.account_id, name, self._key_prefix, self._clock())
            except InvalidRequest as refused:
                error, status = str(refused), 422
        keys = await list_keys(self._store, me.account_id)
        used = await last_used(self._store, me.account_id)
        now_us = self._clock()
        return self._pages.render(
            request, "keys.html", status=status, me=me, keys=keys[::-1], used=used, now=now_us, made=made, name=name,
            error=error,
        )  # fmt: skip

    async def revoke(self, request: Request, me: Session) -> Response:
        key = await self._own_key(request.path_params["key_id"], me)
        if key is None:
            return self._pages.render(request, "error.html", status=404, me=me, title="No such key", words="")
        if request.method == "POST":
            await revoke_key(self._store, key.id, self._clock())
            return RedirectResponse("/dashboard/keys", 303)
        return self._pages.render(request, "revoke.html", me=me, key=key)

    async def transactions(self, request: Request, me: Session) -> Response:
        found = await entries(self._store, account_id=me.account_id, limit=_SHOWN)
        return self._pages.render(request, "transactions.html", me=me, entries=found[::-1], shown=_SHOWN)

    async def settings(self, request: Request, me: Session) -> Response:
        sessions = await self._visitors.sessions.all_of(me.account_id, self._clock())
        return self._pages.render(request, "settings.html", me=me, sessions=sessions)

    async def end_session(self, request: Request, me: Session) -> Response:
        await self._visitors.sessions.end_named(me.account_id, request.path_params["name"])
        return RedirectResponse("/dashboard/settings", 303)

    async def end_sessions(self, request: Request, me: Session) -> Response:  # noqa: ARG002  a page's signature
        await self._visitors.sessions.end_others(me.account_id, me.hash)
        return RedirectResponse("/dashboard/settings", 303)

    async def _keys(self, me: Session) -> list[Key]:
        now_us = self._clock()
        return [key for key in await list_keys(self._store, me.account_id) if key.status(now_us) == "active"]

    async def _own_key(self, key_id: int, me: Session) -> Key | None:
        try:
            key = await find_key(self._store, str(key_id))
        except NotFound:
            return None
        return key if key.account_id == me.account_id else None


def _one_of(text: str | None, choices: tuple[int, ...], default: int) -> int:
    return int(text) if text is not None and text.isdecimal() and int(text) in choices else default
