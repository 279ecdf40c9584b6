"""The free endpoints: what is sold (GET …/models), and the upstream's token count (POST …/count_tokens)."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from farebox.accounts.keyring import Caller, KeyRing
from farebox.billing.pricing import Model, Rates
from farebox.books.prices import Prices
from farebox.clock import Clock
from farebox.errors import InvalidRequest, NotFound, RateLimited, Refusal
from farebox.gateway.answers import JSON
from farebox.gateway.ask import read_request
from farebox.gateway.bodies import Bodies
from farebox.gateway.counting import CountLimit
from farebox.gateway.demand import conversation_of, demand_of, estimate_of
from farebox.gateway.files.desk import Files
from farebox.gateway.levels import Levels
from farebox.gateway.settings import CallLimits, Features
from farebox.gateway.whole import operators_own
from farebox.gateway.wire import client_headers, upstream_headers
from farebox.http.exchange import Exchange, Headers
from farebox.http.failures import UpstreamError
from farebox.ids import show_request_id
from farebox.money import decimal_usd
from farebox.upstreams.kinds.kind import COUNT_TOKENS, Ask
from farebox.upstreams.pool import Pool
from farebox.upstreams.tries import Tries

Handler = Callable[[Caller, Exchange, bytes], Awaitable[None]]

_ANSWER_BYTES: Final = 2**20
_LONGEST_NUMBER: Final = 4
_ESTIMATED: Final = (b"farebox-token-count", b"estimated")
_LIFECYCLE: Final = "active"
"""Of every model that is sold."""
_LIFECYCLES: Final = frozenset({_LIFECYCLE, "deprecated", "retired"})
_MOST_MODELS: Final = 1000
"""What a client gets that knows of no pages."""
_OWNER: Final = "system"


class Listing:
    """Serves what costs nothing; every answer carries the account's limits."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        pool: Pool,
        prices: Prices,
        levels: Levels,
        counts: CountLimit,
        bodies: Bodies,
        features: Features,
        limits: CallLimits,
        clock: Clock,
        files: Files | None = None,
    ) -> None:
        self._keys = keys
        self._pool = pool
        self._prices = prices
        self._levels = levels
        self._limits = limits
        self._clock = clock
        self._counts = counts
        self._bodies = bodies
        self._features = features
        self._files = files

    async def models(self, exchange: Exchange, request_id: bytes) -> None:
        """List the models that are sold, a page at a time, in the shape of the API plus prices."""
        await self._serve(self._models, exchange, request_id)

    async def model(self, exchange: Exchange, request_id: bytes) -> None:
        """Describe one model, by id or alias."""
        await self._serve(self._model, exchange, request_id)

    async def count_tokens(self, exchange: Exchange, request_id: bytes) -> None:
        """Pass a token count to the upstream: never charged, never refused for balance, on a limit of its own.

        Where none of the model's upstreams counts, the answer is an estimate, and a header says so.
        """
        await self._serve(self._count_tokens, exchange, request_id)

    async def _serve(self, handler: Handler, exchange: Exchange, request_id: bytes) -> None:
        caller = await self._keys.authenticate(exchange.headers, self._clock(), exchange.peer)
        try:
            await handler(caller, exchange, request_id)
        except Refusal as refusal:
            refusal.headers = self._levels.headers(caller, self._clock())
            raise

    async def _models(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        query = parse_qs(exchange.query)
        is_plain = exchange.header(b"anthropic-version") is None
        limit = _MOST_MODELS if is_plain and "limit" not in query else _limit(query)
        models = [model for model in self._prices.now.models.values() if caller.may_use(model.id)]
        if not _wants_active(query):
            models = []
        ids = [model.id for model in models]
        begin, end = 0, len(models)
        if "after_id" in query:
            begin = _place(ids, query["after_id"][0], "after_id") + 1
            end = min(end, begin + limit)
        elif "before_id" in query:
            end = _place(ids, query["before_id"][0], "before_id")
            begin = max(0, end - limit)
        else:
            end = min(end, limit)
        more = begin > 0 if "before_id" in query else end < len(models)
        page = [_describe(model, plain=is_plain) for model in models[begin:end]]
        body = {
            **({"object": "list"} if is_plain else {}),
            "data": page,
            "has_more": more,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
        }
        exchange.respond(200, self._headers(caller, request_id), msgspec.json.encode(body))

    async def _model(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        name = exchange.path.rpartition("/models/")[2]
        model = self._prices.now.find(name)
        if model is None:
            raise NotFound(f"model: {name[:100]} is not sold here")
        self._keys.check_model(caller, model.id)
        described = _describe(model, plain=exchange.header(b"anthropic-version") is None)
        exchange.respond(200, self._headers(caller, request_id), msgspec.json.encode(described))

    async def _count_tokens(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        if wait_s := self._counts.take(caller.account_id):
            raise RateLimited(
                f"count_tokens is limited to {self._counts.per_minute} a minute; try again in {wait_s} s",
                retry_after_s=wait_s,
            )
        room = self._bodies.take(caller.account_id, exchange)
        try:
            await self._count(caller, exchange, request_id)
        finally:
            self._bodies.give_back(caller.account_id, room)

    async def _count(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        body = await exchange.read_body(self._limits.body_bytes)
        asked = read_request(body)
        model = self._prices.now.find(asked.model)
        if model is None:
            raise InvalidRequest(f"model: {asked.model[:100]!r} is not sold here")
        self._keys.check_model(caller, model.id)
        demand_of(asked, len(body), model, self._features, exchange.headers, 0, counting=True)  # for what it refuses
        place = "" if self._files is None else await self._files.place(asked, caller.account_id, model.id)
        if not place and self._pool.lacks(COUNT_TOKENS, model.id):
            counted = {"input_tokens": estimate_of(asked, model, self._features)}
            headers = [*self._headers(caller, request_id), _ESTIMATED]
            exchange.respond(200, headers, msgspec.json.encode(counted))
            return
        ask = Ask(
            path=COUNT_TOKENS,
            headers=upstream_headers(exchange.headers),
            body=body,
            query=exchange.query,
            model=model.id,
            said=asked.model,
            known_as=model.id if asked.model in model.nicknames else asked.model,
        )
        tries = Tries(only=place)
        conversation = conversation_of(asked, exchange.headers, caller.account_id)
        while True:
            answer = await self._pool.send(tries, ask, conversation=conversation)
            try:
                data = await answer.read(_ANSWER_BYTES)
                if answer.status >= 400 and (matter := operators_own(data)):
                    self._pool.note_refused(tries, matter)
                    await self._pool.prepare_retry(tries)
                    continue
                self._pool.note_success(tries)
                break
            except UpstreamError as error:
                self._pool.note_failure(tries, error)
                await self._pool.prepare_retry(tries)
        headers = client_headers(answer.headers) + self._headers(caller, request_id)[1:]
        exchange.respond(answer.status, headers, data)

    def _headers(self, caller: Caller, request_id: bytes) -> Headers:
        return [
            JSON,
            (b"request-id", show_request_id(request_id).encode()),
            *self._levels.headers(caller, self._clock()),
        ]


def _limit(query: dict[str, list[str]]) -> int:
    text = query.get("limit", ["20"])[0]
    if not text.isdecimal() or len(text) > _LONGEST_NUMBER or not 1 <= int(text) <= 1000:
        raise InvalidRequest(f"limit must be 1…1000, got {text[:20]!r}")
    return int(text)


def _wants_active(query: dict[str, list[str]]) -> bool:
    """Tell whether models are asked for that can be used: all there are here."""
    asked = query.get("lifecycle[]", []) + query.get("lifecycle", [])
    for value in asked:
        if value not in _LIFECYCLES:
            raise InvalidRequest(f"lifecycle: must be active, deprecated or retired, got {value[:20]!r}")
    return not asked or _LIFECYCLE in asked


def _place(ids: list[str], model_id: str, name: str) -> int:
    if model_id not in ids:
        raise InvalidRequest(f"{name}: there is no model {model_id[:100]!r} here")
    return ids.index(model_id)


def _describe(model: Model, *, plain: bool) -> dict[str, Any]:
    """Describe a model; to who names no version of the Messages API, with what other APIs say of one, too."""
    others = {"object": "model", "created": _second_of(model), "owned_by": _OWNER} if plain else {}
    return {
        **others,
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": model.created_at,
        "lifecycle": _LIFECYCLE,
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": model.context_tokens,
        "max_tokens": model.max_output_tokens,
        "pricing": {
            "unit": "USD per million tokens",
            "sell": _prices(model.rates.sell),
            "list": _prices(model.rates.list),
        },
    }


def _second_of(model: Model) -> int:
    return int(datetime.fromisoformat(model.created_at).timestamp())


def _prices(rates: Rates) -> dict[str, str]:
    return {name: decimal_usd(getattr(rates, name)) for name in rates.__struct_fields__}
