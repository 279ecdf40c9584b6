"""What guards every page: response headers, the refusal of requests that another site has sent, and the security log.

A strict Content-Security-Policy with Trusted Types: nothing inline, nothing from elsewhere. Forms from other sites are
told by Fetch Metadata, with the Origin header for browsers that do not send it (OWASP, "Cross-Site Request Forgery
Prevention", 2026).
"""

import re
from collections.abc import Callable
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from farebox.web.asgi import App, Message, Receive, Scope, Send

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types farebox"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_AUTHENTICATION: Final = re.compile(
    r"/(?:login|logout|signup|verify|reset|forgot|email|confirm)\b|/dashboard/(?:password|email|close|sessions|settings/)"
)
"""Where people prove who they are, or change by what they do."""


class Guard:
    """ASGI middleware around all pages. `origin` is the public URL: scheme and host.

    `signed` are the paths where no browser sends anything: who sends there proves by a signature who it is. `log` takes
    down every proof of who somebody is that was tried, every form from another site, and strangers at admin's door:
    which account if one is known, never an address, a password or a cookie.
    """

    def __init__(
        self, app: App, origin: str, *, log: Callable[..., None], signed: frozenset[str] = frozenset()
    ) -> None:
        self._app = app
        self._origin = origin
        self._log = log
        self._signed = signed
        self._secure = origin.startswith("https://")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if "\0" in scope["path"]:  # no name of ours has one, and PostgreSQL takes none
            scope = {**scope, "path": scope["path"].replace("\0", "\ufffd")}

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._tell(scope, message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self._secure:
                    headers.setdefault("strict-transport-security", "max-age=31536000")
                headers.setdefault("cache-control", "no-store")
                headers.add_vary_header("x-fragment")
            await send(message)

        is_form = scope["method"] not in _SAFE and scope["path"] not in self._signed
        if is_form and not self._is_ours(Headers(scope=scope), scope["scheme"]):
            self._log("form_from_elsewhere", path=_named(scope))
            words = "This form was sent from another site, so nothing was done. Open the page here and send it again.\n"
            await PlainTextResponse(words, 403)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _tell(self, scope: Scope, status: int) -> None:
        """Take down what somebody who looks into a break-in asks for (OWASP ASVS 5.0, V16.3)."""
        path, account_id = scope["path"], scope.get("account_id")
        if scope["method"] not in _SAFE and _AUTHENTICATION.match(path):
            self._log("authentication", path=_named(scope), status=status, account_id=account_id)
        elif path.startswith("/admin") and status in {403, 404} and account_id is not None:
            self._log("admin_refused", path=_named(scope), status=status, account_id=account_id)

    def _is_ours(self, headers: Headers, scheme: str) -> bool:
        """Tell whether a form was sent from a page of this site, or by nobody's page at all."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in {"same-origin", "none"}
        origin = headers.get("origin", "")
        return bool(origin) and origin in {self._origin, f"{scheme}://{headers.get('host', '')}"}


def _named(scope: Scope) -> str:
    """Name a path for the log: as the route has it, where there is one, and never long."""
    path: Any = getattr(scope.get("route"), "path", scope["path"])
    return str(path)[:100]
