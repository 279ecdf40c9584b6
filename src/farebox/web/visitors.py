"""Who looks at a page: the session behind the cookie, and the way to the sign-in for pages that need one."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from farebox.accounts.sessions import LONGEST_S, Session, Sessions
from farebox.clock import Clock

Page = Callable[[Request], Awaitable[Response]]
SignedInPage = Callable[[Request, Session], Awaitable[Response]]

_FIELDS_MOST: Final = 50
_KNOWN_S: Final = 365 * 24 * 3600


class Visitors:
    """Finds sessions, and begins and ends them in the browser. `secure`: customers come by https."""

    def __init__(self, sessions: Sessions, clock: Clock, *, secure: bool) -> None:
        self.sessions = sessions
        self._clock = clock
        self._secure = secure
        self._cookie = "__Host-session" if secure else "session"
        self._browser = "__Host-browser" if secure else "browser"

    async def who(self, request: Request) -> Session | None:
        """Give the session of a request, if somebody is signed in."""
        cookie = request.cookies.get(self._cookie)
        return await self.sessions.find(cookie, self._clock()) if cookie else None

    def signed_in(self, page: SignedInPage) -> Page:
        """Make a page that only people who are signed in see; the others sign in first."""

        async def guarded(request: Request) -> Response:
            session = await self.who(request)
            if session is None:
                return RedirectResponse(f"/login?next={quote(_way_back(request))}", 303)
            return await page(request, session)

        return guarded

    async def begin(self, request: Request, response: Response, account_id: int) -> None:
        """Sign a person in: a new session, whatever cookie there was before."""
        before = await self.who(request)
        if before is not None:
            await self.sessions.end(before)
        cookie = await self.sessions.begin(
            account_id, self._clock(), agent=agent_of(request), address=address_of(request)
        )
        response.set_cookie(
            self._cookie, cookie, max_age=LONGEST_S, path="/", secure=self._secure, httponly=True, samesite="lax"
        )

    def know(self, request: Request, response: Response) -> str:
        """Give the cookie by which a browser is known again at its next sign-in; a new one gets one."""
        known = request.cookies.get(self._browser, "")
        if not 20 < len(known) < 100:
            known = secrets.token_urlsafe(32)
        response.set_cookie(
            self._browser, known, max_age=_KNOWN_S, path="/", secure=self._secure, httponly=True, samesite="lax"
        )
        return known

    async def end(self, request: Request, response: Response) -> None:
        """Sign out."""
        session = await self.who(request)
        if session is not None:
            await self.sessions.end(session)
        response.delete_cookie(self._cookie, path="/", secure=self._secure, httponly=True, samesite="lax")


def address_of(request: Request) -> str:
    """Give the address a request came from."""
    return request.client.host if request.client is not None else ""


def agent_of(request: Request) -> str:
    """Give what a browser calls itself."""
    return "".join(char for char in request.headers.get("user-agent", "") if char.isprintable())


def network_of(request: Request) -> str:
    """Give the network a request came from: an IPv4 address, or the first half of an IPv6 one."""
    address = address_of(request)
    return ":".join(address.split(":")[:4]) if ":" in address else address


def _way_back(request: Request) -> str:
    """Give the address of a page as it was asked for; a form that was sent too late leads to the start."""
    if request.method not in {"GET", "HEAD"}:
        return "/dashboard"
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return (path + (b"?" + query if query else b"")).decode("latin-1")


async def read_form(request: Request) -> dict[str, str]:
    """Read a form's fields; of one that comes twice the last counts."""
    body = await request.body()
    try:
        return dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=_FIELDS_MOST))
    except ValueError:
        return {}
