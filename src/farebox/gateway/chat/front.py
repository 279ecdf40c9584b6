"""POST /v1/chat/completions: a call there is a call to /v1/messages in other words, for clients that speak only those.

It has no rule about money of its own. What `Messages` reads is translated on its way in, and what it writes on its way
out: so nothing leaves that it has not written, and the end of an answer not before its charge is durable (promise 1).
"""

from collections.abc import Iterable
from typing import Final

from farebox.books.prices import Prices
from farebox.clock import US_PER_S, Clock
from farebox.errors import NotFound
from farebox.gateway.answers import JSON
from farebox.gateway.chat.answer import completion_of, error_body_of
from farebox.gateway.chat.asked import to_messages
from farebox.gateway.chat.stream import Chunks
from farebox.gateway.messages import Messages
from farebox.gateway.wire import DEFAULT_VERSION
from farebox.http.exchange import Exchange, Headers
from farebox.ids import show_request_id
from farebox.upstreams.kinds.bodies import beside

PATH: Final = "/chat/completions"
_NOT_FOR_UPSTREAM: Final = frozenset({b"anthropic-version", b"openai-organization", b"openai-project", b"openai-beta"})
_NAMED: Final = 30
_ERROR: Final = 400


class Chat:
    """Serves chat completions."""

    def __init__(self, messages: Messages, prices: Prices, clock: Clock) -> None:
        self._messages = messages
        self._prices = prices
        self._clock = clock

    async def serve(self, exchange: Exchange, request_id: bytes) -> None:
        """Serve one call from its first byte to its last. Raises Refusal for what was not let in."""
        created = self._clock() // US_PER_S
        passage = Passage(exchange, show_request_id(request_id), created, self._prices)
        try:
            await self._messages.serve(passage, request_id)
        finally:
            exchange.on_gone = exchange.on_resumed = None


class Passage(Exchange):
    """An exchange as `Messages` sees it: one of the Messages API. Outside it is one of chat completions."""

    __slots__ = ("_chunks", "_created", "_id", "_include_usage", "_outer", "_prices")

    def __init__(self, outer: Exchange, shown_id: str, created: int, prices: Prices) -> None:
        super().__init__(outer.line, outer.peer)
        self.method, self.path = outer.method, outer.path
        self.headers = [field for field in outer.headers if field[0] not in _NOT_FOR_UPSTREAM]
        self.headers.append((b"anthropic-version", DEFAULT_VERSION))
        self.content_length = outer.content_length
        self.gone = outer.gone
        self._outer = outer
        self._id = f"chatcmpl-{shown_id.removeprefix('req_')}"
        self._created = created
        self._prices = prices
        self._include_usage = False
        self._chunks: Chunks | None = None
        outer.on_gone = self._lost
        outer.on_resumed = self._resumed

    async def read_body(self, limit: int) -> bytes:
        """Give the body in the words of the Messages API. Raises Refusal, besides what `Exchange` raises."""
        asked = await beside(await self._outer.read_body(limit), to_messages)
        catalogue = self._prices.now
        if catalogue.find(asked.model) is None:
            sold = ", ".join(sorted(catalogue.models)[:_NAMED])
            raise NotFound(f"model: {asked.model[:100]!r} is not sold here; choose one of: {sold}")
        self._include_usage = asked.include_usage
        return asked.body

    def respond(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes = b"") -> None:
        self.started = self.finished = True
        if status >= _ERROR:
            status, body = error_body_of(status, body)
            headers = [JSON, *(field for field in headers if field[0] != b"content-type")]
        else:
            body = completion_of(body, self._id, self._created)
        self.status = status
        self._outer.respond(status, _with_id(headers), body)

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, length: int | None = None) -> None:
        """Begin a stream: whatever has a length is given by `respond`."""
        assert length is None, "only streams begin before they end"
        self.started, self.status = True, status
        self._chunks = Chunks(self._id, self._created, include_usage=self._include_usage)
        self._outer.start(status, _with_id(headers))

    def write(self, data: bytes) -> None:
        assert self._chunks is not None
        self._outer.write(self._chunks.feed(data))

    def flush(self) -> None:
        self._outer.flush()

    def finish(self) -> None:
        self.finished = True
        self._outer.finish()

    def abort(self) -> None:
        self.finished = True
        self._outer.abort()

    def break_off(self, *, reset: bool) -> None:
        self.finished = True
        self._outer.break_off(reset=reset)

    @property
    def backed_up(self) -> bool:
        return self._outer.backed_up

    def _resumed(self) -> None:
        if self.on_resumed is not None:
            self.on_resumed()


def _with_id(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Give the call's id under the name that OpenAI's clients read, too."""
    fields = [field for field in headers if field[0] != b"x-request-id"]
    return [*fields, *((b"x-request-id", value) for name, value in fields if name == b"request-id")]
