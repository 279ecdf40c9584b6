"""The routes of message batches: make, list, look, cancel, delete, results. Every look-up is bound to the account."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from farebox.accounts.keyring import Caller, KeyRing
from farebox.accounts.sealing import Seals
from farebox.books.prices import Prices
from farebox.clock import Clock
from farebox.errors import (
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    Refusal,
    UpstreamFailed,
)
from farebox.gateway.answers import JSON
from farebox.gateway.batches import vault
from farebox.gateway.batches.delivery import Told, without_result
from farebox.gateway.batches.entries import Reading
from farebox.gateway.batches.lines import Lines, write
from farebox.gateway.batches.making import Making, RefusedUpstream, too_many
from farebox.gateway.batches.native import Native
from farebox.gateway.batches.own import OwnRuns, result_line
from farebox.gateway.batches.records import Batch, Records
from farebox.gateway.batches.settings import BatchSettings
from farebox.gateway.bodies import Bodies
from farebox.gateway.counting import CountLimit
from farebox.gateway.levels import Levels
from farebox.gateway.wire import upstream_headers
from farebox.http.exchange import Exchange, Headers
from farebox.http.failures import UpstreamError
from farebox.ids import show_request_id

Handler = Callable[[Caller, Exchange, bytes], Awaitable[None]]

_JSON_LINES: Final = (b"content-type", b"application/x-jsonl")
_LONGEST_NUMBER: Final = 4
_PAGE: Final = 50
_RESULTS_STALL_S: Final = 90.0


class Desk:
    """Serves requests about batches."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        prices: Prices,
        levels: Levels,
        bodies: Bodies,
        questions: CountLimit,
        reading: Reading,
        making: Making,
        native: Native,
        own: OwnRuns,
        records: Records,
        seals: Seals,
        settings: BatchSettings,
        clock: Clock,
        public_url: str,
        base_path: str,
    ) -> None:
        """`public_url` as configured: empty where clients are told the address that they dialled themselves."""
        self._keys = keys
        self._prices = prices
        self._levels = levels
        self._bodies = bodies
        self._questions = questions
        self._reading = reading
        self._making = making
        self._native = native
        self._own = own
        self._records = records
        self._seals = seals
        self._settings = settings
        self._clock = clock
        self._public_url = public_url
        self._base_path = base_path

    async def create(self, exchange: Exchange, request_id: bytes) -> None:
        """Take a batch in: hold what it can cost, then let it begin."""
        await self._serve(self._create, exchange, request_id)

    async def list(self, exchange: Exchange, request_id: bytes) -> None:
        """List the account's batches, newest first, a page at a time."""
        await self._serve(self._list, exchange, request_id)

    async def look(self, exchange: Exchange, request_id: bytes) -> None:
        """Tell how a batch is."""
        await self._serve(self._look, exchange, request_id)

    async def cancel(self, exchange: Exchange, request_id: bytes) -> None:
        """Let nothing more of a batch be begun."""
        await self._serve(self._cancel, exchange, request_id)

    async def delete(self, exchange: Exchange, request_id: bytes) -> None:
        """Forget a batch that has ended."""
        await self._serve(self._delete, exchange, request_id)

    async def results(self, exchange: Exchange, request_id: bytes) -> None:
        """Give the results of a batch that has ended, as JSON lines."""
        await self._serve(self._results, exchange, request_id)

    async def _serve(self, handler: Handler, exchange: Exchange, request_id: bytes) -> None:
        caller = await self._keys.authenticate(exchange.headers, self._clock(), exchange.peer)
        try:
            if wait_s := self._questions.take(caller.key_id):
                words = f"requests about batches are limited to {self._questions.per_minute} a minute for a key"
                raise RateLimited(f"{words}; try again in {wait_s} s", retry_after_s=wait_s)
            if self._settings.run == "off":
                raise NotFound("batches are not offered here; send the requests as calls to …/messages")
            await handler(caller, exchange, request_id)
        except RefusedUpstream as refused:
            exchange.respond(refused.status, self._headers(caller, request_id), refused.body)
        except Refusal as refusal:
            refusal.headers = self._levels.headers(caller, self._clock())
            raise

    async def _create(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        if await self._records.count_open(caller.account_id) >= self._settings.open_batches:
            raise too_many(self._settings)
        room = self._bodies.take(caller.account_id, exchange)
        try:
            body = await exchange.read_body(self._settings.batch_bytes)
            catalogue = self._prices.now
            entries = await self._reading.read(body, exchange.headers, caller, catalogue)
            api_key = await self._keys.key_of(exchange.headers, caller)
            headers = upstream_headers(exchange.headers)
            batch = await self._making.make(body, headers, entries, caller, catalogue, api_key)
        finally:
            self._bodies.give_back(caller.account_id, room)
        self._answer(exchange, caller, request_id, batch.shown(self._base(exchange)))

    async def _list(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        query = parse_qs(exchange.query)
        after, before = (query[name][0] if name in query else None for name in ("after_id", "before_id"))
        if after is not None and before is not None:
            raise InvalidRequest("after_id and before_id: give one of them")
        for name, value in (("after_id", after), ("before_id", before)):
            if value is not None and await self._records.find(value, caller.account_id) is None:
                raise InvalidRequest(f"{name}: there is no batch {value[:100]!r} here")
        batches, more = await self._records.page(caller.account_id, _limit(query), after, before)
        for batch in batches:
            await self._recognise(batch, caller, exchange)
        page = [batch.shown(self._base(exchange)) for batch in batches]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        self._answer(exchange, caller, request_id, {"data": page, "has_more": more, **ends})

    async def _look(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        batch = await self._find(caller, exchange, "")
        await self._recognise(batch, caller, exchange)
        self._answer(exchange, caller, request_id, batch.shown(self._base(exchange)))

    async def _cancel(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        batch = await self._find(caller, exchange, "/cancel")
        if batch.state == "in_progress":
            if not batch.own:
                try:
                    await self._native.cancel(batch)
                except UpstreamError as error:
                    raise UpstreamFailed("the upstream did not take the cancellation; try again") from error
            await self._records.cancel(batch, self._clock())
        batch = await self._find(caller, exchange, "/cancel")
        await self._recognise(batch, caller, exchange)
        self._answer(exchange, caller, request_id, batch.shown(self._base(exchange)))

    async def _delete(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        batch = await self._find(caller, exchange, "")
        if batch.state != "ended":
            raise InvalidRequest(f"{batch.id} has not ended; cancel it first, then delete it once it has ended")
        if not batch.own:
            await self._native.delete(batch)
        await self._records.delete(batch)
        self._answer(exchange, caller, request_id, {"id": batch.id, "type": "message_batch_deleted"})

    async def _results(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        batch = await self._find(caller, exchange, "/results")
        if batch.state != "ended":
            raise NotFound(f"{batch.id} has no results yet: it is {batch.shown('')['processing_status']}")
        if batch.archived_us is not None:
            raise NotFound(f"the results of {batch.id} are gone: they are kept for 29 days")
        headers = [_JSON_LINES, *self._headers(caller, request_id)[1:]]
        if batch.own:
            await self._own_results(batch, caller, exchange, headers)
        else:
            await self._native_results(batch, exchange, headers)

    async def _own_results(self, batch: Batch, caller: Caller, exchange: Exchange, headers: Headers) -> None:
        key = await self._key(batch, caller, exchange)
        if key is None:
            raise PermissionDenied("these results can be read with the API key that made the batch, and with no other")
        exchange.start(200, headers)
        last, told = -1, 0
        try:
            while page := await self._records.results(batch, last, _PAGE):
                last, told = page[-1][0].place, told + len(page)
                for item, sealed in page:
                    await write(exchange, result_line(item, sealed, key))
        except ConnectionResetError:
            exchange.abort()
            return
        except BaseException:
            exchange.abort()
            raise
        if told == batch.items:
            exchange.finish()
        else:
            exchange.abort()  # they were let go, or deleted, meanwhile

    async def _native_results(self, batch: Batch, exchange: Exchange, headers: Headers) -> None:
        """Pass on the upstream's lines as they come: those of items that are settled so (promise 1)."""
        items = await self._records.by_name(batch)
        try:
            answer, _ = await self._native.results(batch)
        except UpstreamError as error:
            raise UpstreamFailed("the upstream does not give the results at the moment; try again") from error
        lines, told = Lines(answer, _RESULTS_STALL_S), Told(items)
        exchange.start(200, headers)
        try:
            while (line := await lines.next()) is not None:
                await write(exchange, told.line(line))
            for place, item in enumerate(told.missing()):
                if place % _PAGE == 0:
                    await asyncio.sleep(0)
                await write(exchange, without_result(item))
        except (UpstreamError, ConnectionResetError):
            answer.abandon()
            exchange.abort()
            return
        except BaseException:
            answer.abandon()
            exchange.abort()
            raise
        exchange.finish()

    async def _find(self, caller: Caller, exchange: Exchange, end: str) -> Batch:
        batch_id = exchange.path.removesuffix(end).rpartition("/")[2]
        batch = await self._records.find(batch_id, caller.account_id)
        if batch is None:
            raise NotFound(f"there is no batch {batch_id[:100]!r} in this account")
        return batch

    async def _recognise(self, batch: Batch, caller: Caller, exchange: Exchange) -> None:
        """Go on with a batch of Farebox's own that waits for its key, now that it is here."""
        if batch.own and batch.state != "ended" and not self._own.works_on(batch):
            key = await self._key(batch, caller, exchange)
            if key is not None:
                self._own.attach(batch, key)

    async def _key(self, batch: Batch, caller: Caller, exchange: Exchange) -> bytes | None:
        if batch.sealed_key is not None:
            return self._seals.open_sealed(batch.sealed_key, f"batch {batch.id}")
        if batch.wrapped_key is None:
            return None
        return vault.unwrap(batch.wrapped_key, await self._keys.key_of(exchange.headers, caller), batch.id)

    def _answer(self, exchange: Exchange, caller: Caller, request_id: bytes, value: Any) -> None:
        exchange.respond(200, self._headers(caller, request_id), msgspec.json.encode(value))

    def _headers(self, caller: Caller, request_id: bytes) -> Headers:
        return [
            JSON,
            (b"request-id", show_request_id(request_id).encode()),
            (b"cache-control", b"no-store"),
            *self._levels.headers(caller, self._clock()),
        ]

    def _base(self, exchange: Exchange) -> str:
        """Give the address of batches that this client can reach: SDKs fetch results from there, with its key."""
        origin = self._public_url
        if not origin:
            scheme = (exchange.header(b"x-forwarded-proto") or b"http").decode("latin-1").lower()
            host = (exchange.header(b"host") or b"").decode("latin-1")
            origin = f"{scheme if scheme in {'http', 'https'} else 'http'}://{host}"
        return f"{origin}{self._base_path}/v1/messages/batches"


def _limit(query: dict[str, list[str]]) -> int:
    text = query.get("limit", ["20"])[0]
    if not text.isdecimal() or len(text) > _LONGEST_NUMBER or not 1 <= int(text) <= 1000:
        raise InvalidRequest(f"limit must be 1…1000, got {text[:20]!r}")
    return int(text)
