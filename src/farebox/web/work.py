"""Claude Code sessions: what each came to, by agent, and the button that stops a runaway one."""

from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.keys import list_keys
from farebox.accounts.sessions import Session
from farebox.books.log import Wanted, page_of_log
from farebox.books.work import MOST_SESSIONS, Work, find_work, list_work
from farebox.clock import DAY_US
from farebox.events.news import tell_of_session_stopped
from farebox.web.dashboard import key_names
from farebox.web.kit import Kit

_RANGES: Final = {"24h": 1, "7d": 7, "30d": 30, "90d": 90}
_CALLS: Final = 20
_NAME_CHARS: Final = 200


class WorkRoom:
    """The sessions of whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store
        self._clock = kit.clock
        self._backstage = kit.backstage

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/agents", page(self.list)),
            Route("/dashboard/agents/of/{session:path}", page(self.session)),
            Route("/dashboard/agents/stop/{session:path}", page(self.stop), methods=["GET", "POST"]),
            Route("/dashboard/agents/resume/{session:path}", page(self.resume), methods=["POST"]),
        ]

    async def list(self, request: Request, me: Session) -> Response:
        now_us = self._clock()
        asked = request.query_params.get("range", "")
        span = asked if asked in _RANGES else "30d"
        found = await list_work(self._store, me.account_id, now_us - (_RANGES[span] - 1) * DAY_US)
        return self._pages.render(
            request,
            "work.html",
            me=me,
            found=found,
            most=max((work.spend_nanos for work in found), default=0),
            span=span,
            spans=list(_RANGES),
            now=now_us,
            most_sessions=MOST_SESSIONS,
        )

    async def session(self, request: Request, me: Session) -> Response:
        work = await self._own(request, me)
        if work is None:
            return self._no_such_session(request, me)
        calls = await page_of_log(self._store, me.account_id, Wanted(session=work.session), None, _CALLS)
        return self._pages.render(
            request,
            "session.html",
            me=me,
            work=work,
            calls=calls.calls,
            more=calls.older is not None,
            names=key_names(await list_keys(self._store, me.account_id)),
            now=self._clock(),
        )

    async def stop(self, request: Request, me: Session) -> Response:
        work = await self._own(request, me)
        if work is None:
            return self._no_such_session(request, me)
        if request.method == "POST":
            await self._backstage.stop_session(me.account_id, work.session)
            await self._store.write([tell_of_session_stopped(me.account_id, work.session, self._clock())])
            return RedirectResponse(_path(work), 303)
        return self._pages.render(request, "stop.html", me=me, work=work, now=self._clock())

    async def resume(self, request: Request, me: Session) -> Response:
        work = await self._own(request, me)
        if work is None:
            return self._no_such_session(request, me)
        await self._backstage.resume_session(me.account_id, work.session)
        return RedirectResponse(_path(work), 303)

    async def _own(self, request: Request, me: Session) -> Work | None:
        name = request.path_params["session"]
        if len(name) > _NAME_CHARS or not name.isprintable():
            return None
        return await find_work(self._store, me.account_id, name)

    def _no_such_session(self, request: Request, me: Session) -> Response:
        words = "This account has no calls of a session of that name."
        return self._pages.render(
            request, "missing.html", status=404, me=me, title="No such session", words=words, back="/dashboard/agents"
        )


def _path(work: Work) -> str:
    return f"/dashboard/agents/of/{quote(work.session)}"
