"""Who looks at a page: the session behind the cookie, and the way to the sign-in for pages that need one."""

import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from farebox.accounts.challenges import LIVES_S as HALF_LIVES_S
from farebox.accounts.sessions import LONGEST_S, Session, Sessions
from farebox.clock import Clock

Page = Callable[[Request], Awaitable[Response]]
SignedInPage = Callable[[Request, Session], Awaitable[Response]]

_INSIDE: Final = re.compile(r"/[!-\[\]-~]*")  # printable ASCII without a backslash, which browsers take for a slash
_LOOKING: Final = frozenset({"GET", "HEAD"})
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
        self._half = "__Host-half" if secure else "half"

    async def who(self, request: Request) -> Session | None:
        """Give the session of a request, if somebody is signed in; the security log reads in its scope who."""
        cookie = request.cookies.get(self._cookie)
        by_itself = "x-live" in request.headers or request.url.path == "/dashboard/live"
        session = await self.sessions.find(cookie, self._clock(), idle=by_itself) if cookie else None
        if session is not None:
            request.scope["account_id"] = session.account_id
        return session

    def signed_in(self, page: SignedInPage) -> Page:
        """Make a page that only people who are signed in see; the others sign in first.

        An operator who looks at a customer's account sees that customer's pages, and changes nothing.
        """

        async def guarded(request: Request) -> Response:
            session = await self.who(request)
            if session is None:
                return RedirectResponse(f"/login?next={quote(_way_back(request))}", 303)
            viewed = await self.sessions.as_seen_by_operator(session) if session.viewing is not None else None
            if viewed is not None and request.method not in _LOOKING:
                raise HTTPException(403)
            return await page(request, viewed or session)

        return guarded

    def sure(self, page: SignedInPage, *, changes_only: bool = False) -> Page:
        """Make a page for people who have proved who they are within the last minutes; the others prove it first.

        An operator does not see it in a customer's stead. `changes_only`: to look at it needs no proof.
        """

        async def guarded(request: Request, me: Session) -> Response:
            if changes_only and request.method in _LOOKING:
                return await page(request, me)
            if me.operator:
                raise HTTPException(403)
            return await page(request, me) if me.is_sure(self._clock()) else to_confirm(request)

        return self.signed_in(guarded)

    def proving(self, page: SignedInPage) -> Page:
        """Make a page whose own form asks for the password: people with a second factor must be sure besides."""

        async def guarded(request: Request, me: Session) -> Response:
            sure = me.factor_at_us is None or me.is_sure(self._clock())
            return await page(request, me) if sure else to_confirm(request)

        return self.signed_in(guarded)

    async def begin(
        self, request: Request, response: Response, account_id: int, *, factor_at_us: int | None = None
    ) -> None:
        """Sign a person in: a new session, whatever cookie there was before."""
        before = await self.who(request)
        if before is not None:
            await self.sessions.end(before)
        request.scope["account_id"] = account_id
        cookie = await self.sessions.begin(
            account_id,
            self._clock(),
            agent=agent_of(request),
            address=address_of(request),
            factor_at_us=factor_at_us,
        )
        self._give(response, cookie)

    async def renew(self, response: Response, me: Session, *, factor_at_us: int | None = None) -> None:
        """Go on with a session whose person has just proved who they are, under another cookie."""
        cookie = await self.sessions.renew(me, self._clock(), factor_at_us=factor_at_us)
        if cookie is not None:
            self._give(response, cookie)

    def _give(self, response: Response, cookie: str) -> None:
        self._set(response, self._cookie, cookie, LONGEST_S)

    def _set(self, response: Response, name: str, value: str, lives_s: int) -> None:
        response.set_cookie(name, value, max_age=lives_s, path="/", secure=self._secure, httponly=True, samesite="lax")

    def browser_of(self, request: Request) -> str:
        """Give the cookie by which a browser is known again; to one that has none `know` gives this one."""
        known = request.cookies.get(self._browser, "")
        return known if 20 < len(known) < 100 else secrets.token_urlsafe(32)

    def know(self, response: Response, browser: str) -> None:
        """Have a browser known again, at its next sign-in, or when it comes back with what it was asked for."""
        self._set(response, self._browser, browser, _KNOWN_S)

    def half_of(self, request: Request) -> str:
        """Give the cookie of a sign-in whose second step is still to come."""
        return request.cookies.get(self._half, "")

    def keep_half(self, response: Response, cookie: str) -> None:
        """Have a browser come back for the second step of its sign-in."""
        self._set(response, self._half, cookie, HALF_LIVES_S)

    def forget_half(self, response: Response) -> None:
        """Take that cookie back."""
        response.delete_cookie(self._half, path="/", secure=self._secure, httponly=True, samesite="lax")

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
    return network_at(address_of(request))


def network_at(address: str) -> str:
    """Give the network of an address, however it is written; what is no address stays as it is."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))


def inside(path: str) -> str:
    """Accept a way back only within this site; nothing for any other."""
    return path if _INSIDE.fullmatch(path) and "//" not in path.partition("?")[0] else ""


def to_confirm(request: Request) -> Response:
    """Have somebody who is signed in prove it again. A form that they sent goes along (RFC 9110 15.4.8)."""
    if request.method in _LOOKING:
        return RedirectResponse(f"/confirm?next={quote(_way_back(request))}", 303)
    again = request.scope["raw_path"].decode("latin-1")
    return RedirectResponse(f"/confirm?next={quote(_page_of_form(request))}&again={quote(again)}", 307)


def _page_of_form(request: Request) -> str:
    """Give the page of this site that a form was sent from, as far as the browser tells."""
    try:
        page = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        return "/dashboard"
    return inside(page.path) or "/dashboard" if page.netloc == request.headers.get("host", "") else "/dashboard"


def _way_back(request: Request) -> str:
    """Give the address of a page as it was asked for; a form that was sent too late leads to the start."""
    if request.method not in _LOOKING:
        return "/dashboard"
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return (path + (b"?" + query if query else b"")).decode("latin-1")


async def read_form(request: Request, most: int = _FIELDS_MOST) -> dict[str, str]:
    """Read a form's fields, at most so many; of one that comes twice the last counts."""
    body = await request.body()
    try:
        return dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=most))
    except ValueError:
        return {}
