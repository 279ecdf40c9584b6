"""What guards every page: response headers, and the refusal of requests that another site has sent.

A strict Content-Security-Policy with Trusted Types: nothing inline, nothing from elsewhere. Forms from other sites are
told by Fetch Metadata, with the Origin header for browsers that do not send it (OWASP, "Cross-Site Request Forgery
Prevention", 2026).
"""

from typing import Final

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


class Guard:
    """ASGI middleware around all pages. `origin` is the public URL: scheme and host.

    `signed` are the paths where no browser sends anything: who sends there proves by a signature who it is.
    """

    def __init__(self, app: App, origin: str, *, signed: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._origin = origin
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
            words = "This form was sent from another site, so nothing was done. Open the page here and send it again.\n"
            await PlainTextResponse(words, 403)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _is_ours(self, headers: Headers, scheme: str) -> bool:
        """Tell whether a form was sent from a page of this site, or by nobody's page at all."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in {"same-origin", "none"}
        origin = headers.get("origin", "")
        return bool(origin) and origin in {self._origin, f"{scheme}://{headers.get('host', '')}"}
