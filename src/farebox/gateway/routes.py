"""The data plane's front door: one table from paths to handlers, and one place where refusals become answers.

People paste one base URL into the place of another, and some clients add /v1 themselves, so every route is served under
the base path with /v1, with /v1 doubled or left out, and bare. Whatever else is asked for is a 404 in the API's own
envelope.
"""

import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final

from farebox.clock import Clock
from farebox.errors import (
    FareboxError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Refusal,
    StoreUnavailable,
    Unavailable,
)
from farebox.gateway.answers import error_body, error_headers
from farebox.gateway.metrics import Metrics
from farebox.gateway.unoffered import why_not
from farebox.http.exchange import Exchange, Headers
from farebox.ids import new_request_id, show_request_id

Handler = Callable[[Exchange, bytes], Awaitable[None]]
Methods = dict[str, Handler]
Manner = Callable[[Refusal, str], tuple[int, Headers, bytes]]
"""How a refusal is put to who asked, by the id of the call: status, headers and body."""
Log = Callable[..., Any]

_FILES: Final = ("/openapi.json", "/llms", "/.well-known/", "/statusline.sh", "/setup", "/doctor")
"""What programs fetch from the site, with the key that they send along with everything."""


class Routes:
    """Sends each exchange to its handler."""

    def __init__(
        self, *, base_path: str, clock: Clock, metrics: Metrics, log_error: Log, is_ready: Callable[[], bool]
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._log_error = log_error
        self._is_ready = is_ready
        self._pages: Handler | None = None
        self._exact: dict[str, Methods] = {}
        self._under: dict[tuple[str, str], Methods] = {}
        self._manners: dict[str, Manner] = {}
        self._probes = {"/", "/api/hello", base_path, f"{base_path}/", f"{base_path}/api/hello"}
        bare = (base_path,) if base_path else ()
        self._prefixes = (f"{base_path}/v1", f"{base_path}/v1/v1", "/v1", "/v1/v1", *bare)

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Serve `path` below every form of the base URL; a `*` in it is anything, and the first to fit serves.

        Another method of the same path is added by calling this again.
        """
        begin, star, end = path.partition("*")
        for prefix in self._prefixes:
            if star:
                self._under.setdefault((prefix + begin, end), {})[method] = handler
            else:
                self._exact.setdefault(prefix + path, {})[method] = handler

    def refuse_as(self, path: str, manner: Manner) -> None:
        """Put what is refused at `path`, in every form of it, in the words of another API."""
        for prefix in self._prefixes:
            self._manners[prefix + path] = manner

    def add_pages(self, handler: Handler) -> None:
        """Serve whatever is no call by a handler of its own, the site. The probes that browsers never send stay."""
        self._pages = handler
        self._probes.discard("/")

    async def handle(self, exchange: Exchange) -> None:
        """Serve one exchange to its end."""
        request_id = new_request_id(self._clock())
        try:
            if self._pages is not None and self._is_page(exchange):
                await self._pages(exchange, request_id)
                self._metrics.responses[exchange.status] += 1
                return
            methods = self._find(exchange.path)
            handler = methods.get("GET" if exchange.method == "HEAD" else exchange.method)
            if handler is None:
                allowed = ", ".join(methods)
                raise MethodNotAllowed(f"{exchange.path} takes {allowed}, not {exchange.method}", allowed)
            _refuse_coding(exchange)
            await handler(exchange, request_id)
        except Refusal as refusal:
            self._refuse(exchange, refusal, request_id)
        except StoreUnavailable as error:
            self._log_error("store_unavailable", request_id=show_request_id(request_id), error=str(error))
            self._refuse(
                exchange,
                Unavailable("the books cannot be read at the moment; try again shortly", retry_after_s=2),
                request_id,
            )
        except ConnectionResetError:
            return  # the client went away before its request had come; there is nobody to answer
        except Exception as error:  # noqa: BLE001  the outermost loop of a call
            self._log_error(
                "call_failed",
                request_id=show_request_id(request_id),
                error=_name(error),
                exc_info=_safe(error),
            )
            self._refuse(
                exchange,
                InternalError("the gateway failed; nothing was charged; its operator has been told"),
                request_id,
            )
        self._metrics.responses[exchange.status] += 1

    def bad_request(self, exchange: Exchange, error: Exception) -> None:
        """Answer a request that never became one."""
        if exchange.started:
            exchange.abort()
            return
        refusal = (
            error if isinstance(error, Refusal) else InternalError("the gateway failed; its operator has been told")
        )
        if not isinstance(error, Refusal):
            self._log_error("exchange_failed", error=_name(error), exc_info=_safe(error))
        self._refuse(exchange, refusal, new_request_id(self._clock()))
        self._metrics.responses[exchange.status] += 1

    def _is_page(self, exchange: Exchange) -> bool:
        """Tell pages from calls: whoever shows a key, or asks for a path of the API, is answered in its envelope."""
        path = exchange.path
        if path in self._probes or path in {"/healthz", "/readyz"} or path.startswith(("/api/", "/v1/")):
            return False
        if path.startswith(self._prefixes[0]) or (path == "/" and exchange.method == "HEAD"):
            return False
        return path.startswith(_FILES) or all(
            name not in {b"x-api-key", b"authorization"} for name, _ in exchange.headers
        )

    def _find(self, path: str) -> Methods:
        found = self._exact.get(path)
        if found is not None:
            return found
        for (begin, end), methods in self._under.items():
            if path.startswith(begin) and path.endswith(end) and len(path) > len(begin) + len(end):
                return methods
        if path in self._probes or path in {"/", "/healthz"}:
            return {"GET": self._hello}
        if path == "/readyz":
            return {"GET": self._ready}
        below = path.removeprefix(
            max((one for one in self._prefixes if path.startswith(f"{one}/")), key=len, default="")
        )
        if words := why_not(below):
            raise NotFound(f"{words}; calls go to {self._prefixes[0]}/messages")
        raise NotFound(f"there is nothing at {path[:200]}; calls go to {self._prefixes[0]}/messages")

    async def _hello(self, exchange: Exchange, request_id: bytes) -> None:
        """Answer the probes of Claude Code and load balancers: the server is there."""
        exchange.respond(
            200,
            [(b"content-type", b"text/plain"), (b"request-id", show_request_id(request_id).encode())],
            b"ok\n",
        )

    async def _ready(self, exchange: Exchange, request_id: bytes) -> None:
        """Tell a load balancer whether to send calls here."""
        ready = self._is_ready()
        exchange.respond(
            200 if ready else 503,
            [(b"content-type", b"text/plain"), (b"request-id", show_request_id(request_id).encode())],
            b"ready\n" if ready else b"not ready\n",
        )

    def _refuse(self, exchange: Exchange, refusal: Refusal, request_id: bytes) -> None:
        if exchange.started or exchange.gone:
            return
        shown = show_request_id(request_id)
        status, headers, body = self._manners.get(exchange.path, _in_the_envelope)(refusal, shown)
        exchange.respond(status, [*headers, (b"request-id", shown.encode()), *refusal.headers], body)


def _in_the_envelope(refusal: Refusal, shown_id: str) -> tuple[int, Headers, bytes]:
    return refusal.status, error_headers(refusal), error_body(refusal, shown_id)


def _refuse_coding(exchange: Exchange) -> None:
    """Refuse a compressed body by the API's own code for it: what it costs cannot be seen from outside."""
    coding = exchange.header(b"content-encoding")
    if coding is not None and coding.strip().lower() not in {b"", b"identity"}:
        raise InvalidRequest(
            "content-encoding: compressed bodies are not taken here; send the body as it is",
            error_code="request_body_encoding_unsupported",
        )


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, FareboxError) else type(error).__name__


def _safe(error: Exception) -> str:
    """Give the places an error came through, and nothing else: no values, so no prompt and no key (promise 9)."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-8:]))
