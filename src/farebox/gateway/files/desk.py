"""The Files API: every customer sees, names and deletes own files only, though all are in one place upstream.

What is in a file goes up as it comes and is kept nowhere here; a row says whose it is and where.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from farebox.accounts.keyring import Caller, KeyRing
from farebox.clock import Clock
from farebox.errors import (
    FareboxError,
    InvalidRequest,
    NotFound,
    RateLimited,
    Refusal,
    StoreConflict,
    StoreUnavailable,
    UpstreamFailed,
)
from farebox.gateway.answers import JSON
from farebox.gateway.ask import Asked
from farebox.gateway.batches.lines import Pieces, write
from farebox.gateway.bodies import Bodies
from farebox.gateway.counting import CountLimit
from farebox.gateway.files.named import files_in
from farebox.gateway.files.records import File, Records, read_metadata
from farebox.gateway.levels import Levels
from farebox.gateway.routes import Routes
from farebox.gateway.settings import CallLimits
from farebox.gateway.whole import operators_own
from farebox.gateway.wire import DEFAULT_VERSION, client_headers, upstream_headers
from farebox.http.exchange import Exchange, Headers
from farebox.http.failures import UpstreamError
from farebox.ids import show_request_id
from farebox.store.protocol import Store
from farebox.upstreams.kinds.kind import FILES, Ask
from farebox.upstreams.pool import Pool
from farebox.upstreams.tries import Tries
from farebox.upstreams.upstream import Upstream

Handler = Callable[[Caller, Exchange, bytes], Awaitable[None]]
Log = Callable[..., Any]

_ANSWER_BYTES: Final = 2**20
_STALL_S: Final = 90.0
_FRAME_BYTES: Final = 2**16
"""What a form adds around a file."""
_AT_ONCE: Final = 4
"""So many of the largest files are taken in at a time."""
_LONGEST_NUMBER: Final = 4
_MOST_IDS: Final = 100
_SWEPT: Final = 100
_PAGE: Final = "page_"
_HEADERS: Final[Headers] = [(b"accept-encoding", b"identity"), (b"anthropic-version", DEFAULT_VERSION)]
_BETA: Final = (b"anthropic-beta", b"files-api-2025-04-14")


class Files:
    """Serves requests about files, and says where the files are that other requests name."""

    def __init__(
        self,
        store: Store,
        pool: Pool,
        keys: KeyRing,
        levels: Levels,
        limits: CallLimits,
        questions: CountLimit,
        clock: Clock,
        leads: Callable[[], bool],
        log: Log,
    ) -> None:
        """`leads` tells whether this process is the one that cleans up."""
        self._records = Records(store)
        self._pool = pool
        self._keys = keys
        self._levels = levels
        self._limits = limits
        self._clock = clock
        self._leads = leads
        self._log = log
        self._questions = questions
        largest = limits.file_bytes + _FRAME_BYTES
        self._bodies = Bodies(_AT_ONCE * largest, largest)

    def add_to(self, routes: Routes) -> None:
        """Serve below …/files."""
        routes.add("POST", "/files", self.upload)
        routes.add("GET", "/files", self.list)
        routes.add("GET", "/files/*/content", self.content)
        routes.add("GET", "/files/*", self.look)
        routes.add("DELETE", "/files/*", self.delete)

    async def upload(self, exchange: Exchange, request_id: bytes) -> None:
        """Pass a file on, and note whose it is."""
        await self._serve(self._upload, exchange, request_id)

    async def list(self, exchange: Exchange, request_id: bytes) -> None:
        """List the account's files, newest first, a page at a time."""
        await self._serve(self._list, exchange, request_id)

    async def look(self, exchange: Exchange, request_id: bytes) -> None:
        """Tell about a file."""
        await self._serve(self._look, exchange, request_id)

    async def content(self, exchange: Exchange, request_id: bytes) -> None:
        """Give what is in a file, if the upstream does: it does not of those that were uploaded."""
        await self._serve(self._content, exchange, request_id)

    async def delete(self, exchange: Exchange, request_id: bytes) -> None:
        """Delete a file."""
        await self._serve(self._delete, exchange, request_id)

    async def place(self, asked: Asked, account_id: int, model: str) -> str:
        """Name the upstream that a request must go to for its files; empty where it names none.

        Raises NotFound for a file that is not the account's, InvalidRequest for files that are not together.
        """
        ids = files_in(asked)
        if not ids:
            return ""
        files = {file.id: file for file in await self._records.some(ids, account_id)}
        for file_id in sorted(ids):
            if file_id not in files:
                raise NotFound(f"file_id: there is no file {file_id[:100]!r} in this account; upload it first")
        places = {file.upstream for file in files.values()}
        if len(places) > 1:
            raise InvalidRequest("file_id: these files are not in one place; upload them again, one after the other")
        (name,) = places
        for upstream in self._pool.upstreams:
            if upstream.name == name and (not upstream.models or model in upstream.models):
                return name
        raise InvalidRequest(
            f"file_id: {model} cannot be asked where the file is; upload it again, or take another model"
        )

    async def tick(self) -> None:
        """Delete, upstream too, what is of no use any more."""
        if not self._leads():
            return
        for file in await self._records.over(self._clock(), _SWEPT):
            try:
                status, _ = await self._ask("DELETE", f"{FILES}/{file.id}", file.upstream, [*_HEADERS, _BETA])
            except (Refusal, UpstreamError) as error:
                self._log("file_not_deleted_upstream", file=file.id, upstream=file.upstream, error=str(error))
                continue
            if status in {200, 404}:
                await self._records.forget(file)

    async def _serve(self, handler: Handler, exchange: Exchange, request_id: bytes) -> None:
        caller = await self._keys.authenticate(exchange.headers, self._clock(), exchange.peer)
        try:
            if wait_s := self._questions.take(caller.key_id):
                words = f"requests about files are limited to {self._questions.per_minute} a minute for a key"
                raise RateLimited(f"{words}; try again in {wait_s} s", retry_after_s=wait_s)
            await handler(caller, exchange, request_id)
        except UpstreamError as error:
            refusal = UpstreamFailed("the upstream broke off while it was asked about files; try again")
            refusal.headers = self._levels.headers(caller, self._clock())
            raise refusal from error
        except Refusal as refusal:
            refusal.headers = self._levels.headers(caller, self._clock())
            raise

    async def _upload(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        content_type = (exchange.header(b"content-type") or b"").lower()
        if not content_type.startswith(b"multipart/form-data") or b"boundary=" not in content_type:
            raise InvalidRequest(
                "content-type: a file is sent as multipart/form-data with a boundary, in the field file"
            )
        upstream = await self._choose(caller.account_id)
        room = self._bodies.take(caller.account_id, exchange)
        try:
            body = await exchange.read_body(self._limits.file_bytes + _FRAME_BYTES)
            await self._check_room(caller.account_id, len(body))
            headers = upstream_headers(exchange.headers)
            tries = Tries(only=upstream.name)
            tries.abandoned = True  # what became of a try whose answer is lost nobody could tell
            ask = Ask(path=FILES, headers=headers, body=body, query=exchange.query)
            answer = await self._pool.send(tries, ask, conversation=b"")
            told = await answer.read(_ANSWER_BYTES)
        finally:
            self._bodies.give_back(caller.account_id, room)
        if answer.status >= 400 and (matter := operators_own(told)):
            self._pool.note_refused(tries, matter)
            raise UpstreamFailed("the upstream takes no files at the moment; the operator has to see to it")
        self._pool.note_success(tries)
        if answer.status == 200:
            try:
                file = read_metadata(told, caller.account_id, upstream.name, self._clock())
            except msgspec.DecodeError:
                raise UpstreamFailed("the upstream's answer is about no file; try again") from None
            await self._keep(file)
        exchange.respond(answer.status, self._headers(caller, request_id), told)

    async def _keep(self, file: File) -> None:
        """Note whose a file is; a file that is nobody's is deleted again."""
        try:
            await self._records.add(file)
        except StoreConflict:
            raise UpstreamFailed("the upstream gave the file an id that is taken; try again") from None
        except (StoreUnavailable, asyncio.CancelledError):
            await asyncio.shield(self._undo(file))
            raise

    async def _undo(self, file: File) -> None:
        try:
            await self._ask("DELETE", f"{FILES}/{file.id}", file.upstream, [*_HEADERS, _BETA])
        except (FareboxError, UpstreamError) as error:
            self._log("file_not_deleted_upstream", file=file.id, upstream=file.upstream, error=str(error))

    async def _check_room(self, account_id: int, size: int) -> None:
        count, taken = await self._records.taken(account_id)
        if count >= self._limits.files:
            raise InvalidRequest(f"an account may have {self._limits.files} files; delete some first")
        if taken + size > self._limits.files_bytes + _FRAME_BYTES:
            most = self._limits.files_bytes // 2**20
            raise InvalidRequest(f"an account's files may have {most} MiB together; delete some first")

    async def _choose(self, account_id: int) -> Upstream:
        """Choose where a file goes: to the account's others, so that one request can name them all, or by weight."""
        able = [one for one in self._pool.upstreams if one.has_files and not one.drained]
        if not able:
            raise NotFound("no upstream of this gateway takes files at the moment; send the content itself")
        newest, _ = await self._records.page(account_id, 1, None, None)
        for upstream in able:
            if newest and upstream.name == newest[0].upstream:
                return upstream
        now = asyncio.get_running_loop().time()
        ready = [one for one in able if one.is_healthy(now)] or able
        return max(ready, key=lambda one: (-one.priority, one.weight))

    async def _list(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        query = parse_qs(exchange.query)
        ids = query.get("ids[]", []) + query.get("ids", [])
        more = False
        if "scope_id" in query:
            files: list[File] = []  # those of sessions, which there are not here
        elif ids:
            if len(ids) > _MOST_IDS:
                raise InvalidRequest(f"ids: at most {_MOST_IDS}, got {len(ids)}")
            files = await self._records.some(set(ids), caller.account_id)
        else:
            after, before = _cursors(query)
            files, more = await self._records.page(caller.account_id, _limit(query), after, before)
        body = {
            "data": [file.shown() for file in files],
            "has_more": more,
            "first_id": files[0].id if files else None,
            "last_id": files[-1].id if files else None,
            "next_page": f"{_PAGE}{files[-1].id}" if files and more and "before_id" not in query else None,
        }
        exchange.respond(200, self._headers(caller, request_id), msgspec.json.encode(body))

    async def _look(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        file = await self._find(caller, exchange, "")
        status, body = await self._ask("GET", f"{FILES}/{file.id}", file.upstream, upstream_headers(exchange.headers))
        if status == 404:
            await self._records.forget(file)
            raise NotFound(f"there is no file {file.id!r} in this account")
        exchange.respond(status, self._headers(caller, request_id), body)

    async def _content(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        file = await self._find(caller, exchange, "/content")
        tries = Tries(only=file.upstream)
        headers = upstream_headers(exchange.headers)
        ask = Ask(method="GET", path=f"{FILES}/{file.id}/content", headers=headers)
        answer = await self._pool.send(tries, ask, conversation=b"")
        answered = client_headers(answer.headers) + self._headers(caller, request_id)[1:]
        if answer.status != 200:
            body = await answer.read(_ANSWER_BYTES)
            self._pool.note_success(tries)
            exchange.respond(answer.status, answered, body)
            return
        pieces = Pieces(answer, _STALL_S)
        exchange.start(200, answered)
        try:
            while (piece := await pieces.next()) is not None:
                await write(exchange, piece)
        except BaseException as error:
            answer.abandon()
            exchange.abort()
            if isinstance(error, UpstreamError):
                self._pool.note_failure(tries, error)
            elif not isinstance(error, ConnectionResetError):
                raise
        else:
            self._pool.note_success(tries)
            exchange.finish()

    async def _delete(self, caller: Caller, exchange: Exchange, request_id: bytes) -> None:
        file = await self._find(caller, exchange, "")
        headers = upstream_headers(exchange.headers)
        status, body = await self._ask("DELETE", f"{FILES}/{file.id}", file.upstream, headers)
        if status == 404:
            status, body = 200, msgspec.json.encode({"id": file.id, "type": "file_deleted"})
        if status == 200:
            await self._records.forget(file)
        exchange.respond(status, self._headers(caller, request_id), body)

    async def _find(self, caller: Caller, exchange: Exchange, end: str) -> File:
        file_id = exchange.path.removesuffix(end).rpartition("/files/")[2]
        return await self._records.find(file_id, caller.account_id)

    async def _ask(self, method: str, path: str, upstream: str, headers: Headers) -> tuple[int, bytes]:
        """Ask about a file where it is. Raises Refusal or UpstreamError when there is no answer to pass on."""
        tries = Tries(only=upstream)
        answer = await self._pool.send(tries, Ask(method=method, path=path, headers=headers), conversation=b"")
        body = await answer.read(_ANSWER_BYTES)
        self._pool.note_success(tries)
        return answer.status, body

    def _headers(self, caller: Caller, request_id: bytes) -> Headers:
        return [
            JSON,
            (b"request-id", show_request_id(request_id).encode()),
            (b"cache-control", b"no-store"),
            *self._levels.headers(caller, self._clock()),
        ]


def _cursors(query: dict[str, list[str]]) -> tuple[str | None, str | None]:
    """Read where a page begins: after or before a file, in the older way, or by what the page before said."""
    after, before, page = (query[name][0] if name in query else None for name in ("after_id", "before_id", "page"))
    if sum(one is not None for one in (after, before, page)) > 1:
        raise InvalidRequest("page, after_id and before_id: give one of them")
    if page is not None:
        if not page.startswith(_PAGE):
            raise InvalidRequest("page: give the next_page of the page before")
        after = page.removeprefix(_PAGE)
    return after, before


def _limit(query: dict[str, list[str]]) -> int:
    text = query.get("limit", ["20"])[0]
    if not text.isdecimal() or len(text) > _LONGEST_NUMBER or not 1 <= int(text) <= 1000:
        raise InvalidRequest(f"limit must be 1…1000, got {text[:20]!r}")
    return int(text)
