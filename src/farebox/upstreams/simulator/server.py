"""The simulator's endpoints: who is asked for what, in the order the real API checks it."""

import asyncio
import hashlib
from collections import OrderedDict, deque
from typing import Any, Final

import msgspec

from farebox.clock import US_PER_S, Clock, iso, steady_clock
from farebox.errors import (
    AuthenticationFailed,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Refusal,
    RequestTooLarge,
)
from farebox.http.exchange import Exchange, Headers
from farebox.http.server import HttpServer, ServerLimits
from farebox.upstreams.simulator.answer import events, message, plan
from farebox.upstreams.simulator.ask import VERSIONS, Ask, count_tokens, read_ask
from farebox.upstreams.simulator.batches import BATCH_BYTES, Batch, Batches
from farebox.upstreams.simulator.cache import PromptCache
from farebox.upstreams.simulator.catalogue import MODELS, catalogue
from farebox.upstreams.simulator.files import FILE_BYTES, Files
from farebox.upstreams.simulator.knobs import HEADER, Knobs, magic_in, on_try, read_knobs
from farebox.upstreams.simulator.prose import hex_of
from farebox.upstreams.simulator.stream import HTML, Delivery, Outcome, Pace

BODY_BYTES: Final = 32 * 1024 * 1024
DEMO_TOKENS_PER_S: Final = 60.0
_FIRST_TOKENS: Final = 9  # the first token takes as long as nine: 150 ms at the demo pace
_REQUEST_LIMIT: Final = 4_000
_KEPT_BYTES: Final = 128 * 1024 * 1024
_TRIED: Final = 10_000
_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_ERROR_WORDS: Final = {
    "overloaded_error": "Overloaded",
    "rate_limit_error": "This request would exceed your organization's rate limit.",
    "api_error": "Internal server error",
    "billing_error": "Your credit balance is too low to access the Anthropic API.",
    "authentication_error": "invalid x-api-key",
    "permission_error": "Your API key does not have permission to use the specified resource.",
}
_ROUTES: Final = {"/v1/messages": "POST", "/v1/messages/count_tokens": "POST", "/v1/models": "GET"}
_BATCHES: Final = "/v1/messages/batches"
_FILES: Final = "/v1/files"
_PROBES: Final = frozenset({"/", "/api/hello"})


class Request(msgspec.Struct):
    """What the simulator was asked and how it went, for tests to look at. Kept in memory only."""

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes = b""
    request_id: str = ""
    message_id: str = ""
    status: int = 0
    usage: dict[str, Any] | None = None
    outcome: Outcome = "open"
    events: int = 0
    tokens: int = 0

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


class Simulator:
    """A server that speaks the Messages API; see docs/simulator.md.

    `speed` is in output tokens a second: None is the demo's pace, 0 as fast as possible. `api_key` is the
    only key accepted, when given. `models` are ids accepted beside the known ones. `knobs` apply to every
    request and may be changed while it runs. With a `seed`, message ids repeat from run to run; without,
    they never do. The last `keep` requests are in `requests`, oldest first; what a handler raised, always a
    bug, is in `crashes`.
    """

    def __init__(
        self,
        *,
        speed: float | None = None,
        api_key: str | None = None,
        models: tuple[str, ...] = (),
        knobs: str = "",
        clock: Clock | None = None,
        seed: int | None = None,
        keep: int = 1_000,
    ) -> None:
        read_knobs(knobs)
        self.speed = speed
        self.api_key = api_key
        self.knobs = knobs
        self.requests: deque[Request] = deque(maxlen=keep)
        self.crashes: deque[Exception] = deque(maxlen=100)
        self.port = 0
        self._clock = clock or steady_clock()
        self._models = catalogue(models)
        self._cache = PromptCache()
        self._start = (self._clock() if seed is None else seed).to_bytes(8, "big")
        self.batches = Batches(self._clock, self._models, self._cache, self._start)
        self.files = Files(self._clock, self._start)
        self._count = 0
        self._kept_bytes = 0
        self._tries: OrderedDict[bytes, int] = OrderedDict()
        limits = ServerLimits(write_stall_s=600.0, connections=100_000)
        self._server = HttpServer(self._serve, on_bad_request=self._failed, limits=limits)

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Open the doors; answers the port."""
        self.port = await self._server.listen(host, port)
        return self.port

    async def close(self) -> None:
        """Stop at once, cutting what is open."""
        await self._server.close(0)
        running = list(self._server.tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._server.shut()

    async def _serve(self, exchange: Exchange) -> None:
        request = self._begin(exchange)
        try:
            await self._route(exchange, request)
        except Refusal as refusal:
            self._refuse(exchange, request, refusal)
        except ConnectionResetError:
            request.outcome = "gone"
        request.status = exchange.status

    async def _route(self, exchange: Exchange, request: Request) -> None:
        if request.path in _PROBES and request.method in {"GET", "HEAD"}:
            self._answer(exchange, request, 200, b"")
            return
        if request.path == _BATCHES or request.path.startswith(f"{_BATCHES}/"):
            await self._batch(exchange, request)
            return
        if request.path == _FILES or request.path.startswith(f"{_FILES}/"):
            await self._file(exchange, request)
            return
        allowed = "GET" if request.path.startswith("/v1/models/") else _ROUTES.get(request.path)
        if allowed is None:
            raise NotFound("Not Found")
        if request.method != allowed:
            raise MethodNotAllowed("Method Not Allowed", allowed)
        self._authenticate(request)
        version = _version(request)
        spoken = (request.header(HEADER) or b"").decode("latin-1")
        if allowed == "GET":
            knobs = self._on_this_try(request, read_knobs(self.knobs, spoken))
            if not await self._fails(exchange, request, knobs):
                self._answer(exchange, request, 200, self._models_page(request))
            return
        request.body = await exchange.read_body(BODY_BYTES)
        self._keep_in_bounds(len(request.body))
        counting = request.path.endswith("/count_tokens")
        ask = read_ask(request.body, version, self._models, counting=counting)
        self.files.check(ask.fields.get("messages"))
        knobs = self._on_this_try(request, read_knobs(self.knobs, spoken, magic_in(ask.last_text)))
        if await self._fails(exchange, request, knobs):
            return
        if counting:
            body = msgspec.json.encode({"input_tokens": count_tokens(ask.fields)})
            self._answer(exchange, request, 200, body)
        else:
            await self._message(exchange, request, ask, knobs)

    async def _batch(self, exchange: Exchange, request: Request) -> None:
        """Serve everything about batches."""
        self._authenticate(request)
        version = _version(request)
        spoken = (request.header(HEADER) or b"").decode("latin-1")
        if request.path == _BATCHES and request.method == "POST":
            request.body = await exchange.read_body(BATCH_BYTES)
            self._keep_in_bounds(len(request.body))
        if await self._fails(exchange, request, self._on_this_try(request, read_knobs(self.knobs, spoken))):
            return
        base = f"http://{(request.header(b'host') or b'').decode('latin-1')}"
        if request.path == _BATCHES:
            if request.method == "POST":
                made = await self.batches.create(request.body, version)
                self._answer(exchange, request, 200, msgspec.json.encode(made.shown(self._clock(), base)))
                return
            shown = [batch.shown(self._clock(), base) for batch in self.batches.newest_first()]
            self._answer(exchange, request, 200, msgspec.json.encode(_page(request.query, shown)))
            return
        batch_id, _, what = request.path.removeprefix(f"{_BATCHES}/").partition("/")
        batch = self.batches.find(batch_id)
        body = self._of_batch(request.method, what, batch, base)
        content_type = b"application/x-jsonl" if what == "results" else b"application/json"
        exchange.respond(200, self._headers(request, content_type), body)
        request.outcome = "gone" if exchange.gone else "finished"

    async def _file(self, exchange: Exchange, request: Request) -> None:
        """Serve everything about files."""
        self._authenticate(request)
        _version(request)
        spoken = (request.header(HEADER) or b"").decode("latin-1")
        if request.path == _FILES and request.method == "POST":
            request.body = await exchange.read_body(FILE_BYTES)
            self._keep_in_bounds(len(request.body))
        if await self._fails(exchange, request, self._on_this_try(request, read_knobs(self.knobs, spoken))):
            return
        file_id, _, what = request.path.removeprefix(_FILES).removeprefix("/").partition("/")
        match request.method, file_id, what:
            case "POST", "", "":
                content_type = (request.header(b"content-type") or b"").decode("latin-1")
                told = self.files.create(content_type, request.body).shown()
            case "GET", "", "":
                told = _page(request.query, self.files.newest_first())
                told["next_page"] = None
            case "GET", _, "":
                told = self.files.find(file_id).shown()
            case "GET", _, "content":
                self.files.find(file_id)
                raise InvalidRequest("This file is not downloadable.")
            case "DELETE", _, "":
                self.files.delete(file_id)
                told = {"id": file_id, "type": "file_deleted"}
            case _:
                raise NotFound("Not Found")
        self._answer(exchange, request, 200, msgspec.json.encode(told))

    def _of_batch(self, method: str, what: str, batch: Batch, base: str) -> bytes:
        match method, what:
            case "GET" | "HEAD", "":
                pass
            case "GET" | "HEAD", "results":
                return self.batches.results(batch)
            case "POST", "cancel":
                self.batches.cancel(batch)
            case "DELETE", "":
                self.batches.delete(batch)
                return msgspec.json.encode({"id": batch.id, "type": "message_batch_deleted"})
            case _:
                raise NotFound("Not Found")
        return msgspec.json.encode(batch.shown(self._clock(), base))

    async def _message(self, exchange: Exchange, request: Request, ask: Ask, knobs: Knobs) -> None:
        prompt = self._cache.classify(ask, self._clock())
        if prompt.total > ask.model.context:
            raise InvalidRequest(f"prompt is too long: {prompt.total} tokens > {ask.model.context} maximum")
        request.message_id = "msg_sim_" + request.request_id.removeprefix("req_sim_") + ask.digest().hex()[:8]
        answer = plan(ask, knobs, prompt, request.message_id)
        request.usage = answer.usage_final
        delivery = Delivery(exchange, knobs, self._pace(knobs))
        try:
            if knobs.html:
                await delivery.whole(200, self._headers(request, b"text/html; charset=utf-8"), HTML, 0)
            elif ask.stream:
                headers = self._headers(request, b"text/event-stream; charset=utf-8")
                headers.append((b"cache-control", b"no-cache"))
                await delivery.stream(headers, events(answer, knobs))
            else:
                body = msgspec.json.encode(message(answer))
                await delivery.whole(200, self._headers(request, b"application/json"), body, answer.tokens)
        finally:
            request.outcome = delivery.outcome
            request.events = delivery.events
            request.tokens = delivery.tokens

    async def _fails(self, exchange: Exchange, request: Request, knobs: Knobs) -> bool:
        """Wait and fail as the knobs say before there is an answer; tells whether the exchange is over."""
        if knobs.delay:
            await Delivery(exchange, knobs, Pace(0.0, 0.0)).pause(knobs.delay / 1000)
        if exchange.gone:
            request.outcome = "gone"
            return True
        if knobs.close_before:
            request.outcome = "cut"
            exchange.break_off(reset=False)
            return True
        if knobs.error is not None and knobs.error_after is None:
            raise _injected(knobs.error, knobs)
        return False

    def _on_this_try(self, request: Request, knobs: Knobs) -> Knobs:
        if knobs.fail_first is None:
            return knobs
        key = hashlib.sha256(request.target.encode() + b"\0" + request.body).digest()
        tried = self._tries.pop(key, 0) + 1
        self._tries[key] = tried
        if len(self._tries) > _TRIED:
            self._tries.popitem(last=False)
        return on_try(knobs, tried)

    def _pace(self, knobs: Knobs) -> Pace:
        speed = DEMO_TOKENS_PER_S if self.speed is None else self.speed
        first_s = _FIRST_TOKENS / speed if speed else 0.0
        return Pace(first_s if knobs.ttft is None else knobs.ttft / 1000, speed if knobs.rate is None else knobs.rate)

    def _authenticate(self, request: Request) -> None:
        if self.api_key is None:
            return
        bearer = (request.header(b"authorization") or b"").removeprefix(b"Bearer ")
        given = request.header(b"x-api-key") or bearer
        if given.decode("latin-1") != self.api_key:
            raise AuthenticationFailed("invalid x-api-key")

    def _models_page(self, request: Request) -> bytes:
        name = request.path.removeprefix("/v1/models").removeprefix("/")
        if name:
            model = self._models.get(name)
            if model is None:
                raise NotFound(f"model: {name}")
            return msgspec.json.encode(model.info())
        return msgspec.json.encode(_page(request.query, [model.info() for model in MODELS]))

    # what every answer carries

    def _begin(self, exchange: Exchange) -> Request:
        self._count += 1
        number = self._count.to_bytes(6, "big")
        request = Request(exchange.method, exchange.path, exchange.query, exchange.headers)
        request.request_id = f"req_sim_{number.hex()}{hex_of(self._start, number, size=12)}"
        self.requests.append(request)
        return request

    def _keep_in_bounds(self, size: int) -> None:
        """Forget the oldest bodies rather than grow without end."""
        self._kept_bytes += size
        if self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes = sum(len(request.body) for request in self.requests)
            while self._kept_bytes > _KEPT_BYTES and len(self.requests) > 1:
                self._kept_bytes -= len(self.requests.popleft().body)

    def _headers(self, request: Request, content_type: bytes) -> Headers:
        """Give the headers of an answer, with those a gateway has to keep from its customers."""
        now_us = self._clock()
        reset = iso(now_us + US_PER_S)[:19].encode() + b"Z"
        left = b"%d" % (_REQUEST_LIMIT - 1 - self._count % 100)
        ray = request.request_id[-16:].encode()
        return [
            (b"content-type", content_type),
            (b"request-id", request.request_id.encode()),
            (b"anthropic-organization-id", b"00000000-0000-4000-8000-00000000051a"),
            (b"anthropic-ratelimit-requests-limit", b"%d" % _REQUEST_LIMIT),
            (b"anthropic-ratelimit-requests-remaining", left),
            (b"anthropic-ratelimit-requests-reset", reset),
            (b"anthropic-ratelimit-tokens-limit", b"2400000"),
            (b"anthropic-ratelimit-tokens-remaining", b"2399000"),
            (b"anthropic-ratelimit-tokens-reset", reset),
            (b"strict-transport-security", b"max-age=31536000; includeSubDomains; preload"),
            (b"server", b"cloudflare"),
            (b"via", b"1.1 google"),
            (b"cf-cache-status", b"DYNAMIC"),
            (b"cf-ray", ray + b"-FRA"),
            (
                b"set-cookie",
                b"_cfuvid=" + ray + b"; path=/; domain=.anthropic.com; HttpOnly; Secure; SameSite=None",
            ),
            (b"x-envoy-upstream-service-time", b"12"),
            (b"x-robots-tag", b"none"),
        ]

    def _answer(
        self, exchange: Exchange, request: Request, status: int, body: bytes, *more: tuple[bytes, bytes]
    ) -> None:
        exchange.respond(status, [*self._headers(request, b"application/json"), *more], body)
        request.outcome = "gone" if exchange.gone else "finished"

    def _refuse(self, exchange: Exchange, request: Request, refusal: Refusal) -> None:
        words = "Request exceeds the maximum size" if isinstance(refusal, RequestTooLarge) else refusal.message
        error = {"type": refusal.wire_type, "message": words}
        body = {"type": "error", "error": error, "request_id": request.request_id}
        more = [(b"x-should-retry", b"true" if refusal.retry else b"false")]
        if refusal.retry_after_s is not None:
            more.append((b"retry-after", b"%d" % refusal.retry_after_s))
        if isinstance(refusal, MethodNotAllowed):
            more.append((b"allow", refusal.allow.encode()))
        self._answer(exchange, request, refusal.status, msgspec.json.encode(body), *more)

    def _failed(self, exchange: Exchange, error: Exception) -> None:
        """Answer what is not HTTP, and what should not have happened."""
        refusal = error if isinstance(error, Refusal) else Refusal("Internal server error")
        if refusal is not error:
            refusal.wire_type = "api_error"
            self.crashes.append(error)
        if not exchange.started:
            self._refuse(exchange, self._begin(exchange), refusal)


def _version(request: Request) -> str:
    values = [value.decode("latin-1") for key, value in request.headers if key == b"anthropic-version"]
    if not values:
        raise InvalidRequest("anthropic-version: header is required")
    version = ", ".join(values)
    if version not in VERSIONS:
        raise InvalidRequest(f'anthropic-version: "{version}" is not a valid version')
    return version


def _injected(error: str, knobs: Knobs) -> Refusal:
    status, _, kind = error.partition(":")
    kind = kind or _ERROR_TYPES.get(int(status), "api_error" if int(status) >= 500 else "invalid_request_error")
    refusal = Refusal(_ERROR_WORDS.get(kind, f"Simulated {kind}"), retry_after_s=knobs.retry_after)
    refusal.status = int(status)
    refusal.wire_type = kind
    refusal.retry = refusal.status in {408, 409, 429} or refusal.status >= 500
    if knobs.should_retry is not None:
        refusal.retry = knobs.should_retry
    return refusal


def _page(query: str, models: list[dict[str, Any]]) -> dict[str, Any]:
    """Cut a page out of the list, by `limit`, `after_id` and `before_id`."""
    given = dict(item.partition("=")[::2] for item in query.split("&"))
    limit = given.get("limit", "20")
    if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
        raise InvalidRequest("limit: Input should be greater than or equal to 1 and less than or equal to 1000")
    ids = [model["id"] for model in models]
    if "after_id" in given and "before_id" in given:
        raise InvalidRequest("only one of `after_id` and `before_id` may be given")
    for name in ("after_id", "before_id"):
        if name in given and given[name] not in ids:
            raise InvalidRequest(f"{name}: no such model: {given[name]}")
    if "before_id" in given:
        before = models[: ids.index(given["before_id"])]
        page, has_more = before[-int(limit) :], len(before) > int(limit)
    else:
        rest = models[ids.index(given["after_id"]) + 1 :] if "after_id" in given else models
        page, has_more = rest[: int(limit)], len(rest) > int(limit)
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"data": page, "has_more": has_more, "first_id": first, "last_id": last}
