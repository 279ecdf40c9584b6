"""What every kind of upstream does: turns an ask of the Messages API into its own request, and its answer back."""

from typing import Final, Protocol

import msgspec

from farebox.http.client import Answer
from farebox.http.exchange import Headers
from farebox.http.reading import Sink

MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"
FILES: Final = "/v1/files"


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request of the Messages API on its way up, before it is known to which upstream.

    `headers` are those that may go up, without a credential.
    """

    path: str
    headers: Headers
    body: bytes = b""
    method: str = "POST"
    query: str = ""
    model: str | None = None
    """Id of the model as it is sold; upstreams are chosen by it. None: of no model in particular."""
    said: str = ""
    """The model's name in the body."""
    known_as: str = ""
    """Its name for upstreams that have none of their own for it: as in the body, unless the operator made that up."""
    stream: bool = False

    @property
    def target(self) -> str:
        """Path and query, as they came."""
        return f"{self.path}?{self.query}" if self.query else self.path


class Outgoing(msgspec.Struct, frozen=True):
    """A request as one upstream wants it; `target` goes below the path of its base URL."""

    method: str
    target: str
    headers: Headers
    body: bytes


class Reply(Protocol):
    """An answer in the words of the Messages API: `http.client.Answer`, or one that is translated on its way."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers: ...

    def header(self, name: bytes) -> bytes | None:
        """Give the first value of a header, by its lower-case name."""

    def attach(self, sink: Sink) -> None:
        """Send the body to a sink, beginning with what has come already."""

    async def read(self, limit: int) -> bytes:
        """Read the whole body. Raises UpstreamError when it breaks, stalls or is larger than `limit`."""

    def pause(self) -> None:
        """Stop reading, so that the other side slows down."""

    def resume(self) -> None: ...

    def abandon(self) -> None:
        """Cut the exchange: nothing more of it is wanted."""

    def silent_s(self, now: float) -> float:
        """How long nothing has come, in seconds."""


class Kind(Protocol):
    """One kind of upstream, with the settings and credentials of one of them."""

    speaks_messages: bool
    """Whether bodies cross it as they came (promise 8); else they are translated, and some asks cannot be put."""

    def has(self, path: str) -> bool:
        """Tell whether it serves a path of the Messages API."""

    async def prepare(self, ask: Ask, name: str) -> Outgoing:
        """Put an ask in the upstream's words; `name` is what it calls the model.

        Raises Refusal for what it cannot be asked, which is the client's to mend, and ConnectFailed when it cannot be
        asked now.
        """

    def reply(self, ask: Ask, answer: Answer) -> Reply:
        """Put the head of its answer, and then the body as it comes, in the words of the Messages API."""

    async def close(self) -> None: ...
