"""The kind `chat`: servers that speak OpenAI's Chat Completions. What is asked and answered is translated both ways.

What is lost on the way is told in docs/upstreams.md; what would mean something else is refused.
"""

from typing import Final

import msgspec

from farebox.errors import NotFound
from farebox.http.client import Answer, Origin
from farebox.http.exchange import Headers
from farebox.http.surrogates import without_halves
from farebox.secret import Secret
from farebox.upstreams.kinds.bodies import beside
from farebox.upstreams.kinds.chat.answer import AnswerDecoder
from farebox.upstreams.kinds.chat.faults import FaultDecoder
from farebox.upstreams.kinds.chat.manner import Manner
from farebox.upstreams.kinds.chat.request import to_chat
from farebox.upstreams.kinds.chat.stream import StreamDecoder
from farebox.upstreams.kinds.kind import MESSAGES, Ask, Outgoing, Reply
from farebox.upstreams.kinds.translated import Translated

_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream"
_KEPT: Final = {b"retry-after": b"retry-after", b"x-request-id": b"request-id"}
"""Headers of answers that mean something here, and their names here."""


class _Stops(msgspec.Struct):
    stop_sequences: list[str] | None = None


_stops: Final = msgspec.json.Decoder(_Stops)


class Chat:
    """One server. `origin` is its base URL, with or without the /v1 that paths begin with."""

    speaks_messages = False

    def __init__(self, origin: Origin, api_key: Secret, manner: Manner) -> None:
        self._target = "/chat/completions" if origin.path else "/v1/chat/completions"
        self._headers: Headers = [
            (b"content-type", _JSON),
            (b"accept-encoding", b"identity"),
            (b"user-agent", b"farebox"),
        ]
        if api_key:
            self._headers.append((b"authorization", b"Bearer " + api_key.reveal().encode("latin-1")))
        self._manner = manner

    def has(self, path: str) -> bool:
        return path == MESSAGES

    async def prepare(self, ask: Ask, name: str) -> Outgoing:
        if ask.path != MESSAGES:
            raise NotFound(f"{ask.path} is not served by this upstream")
        accept = _EVENTS if ask.stream else _JSON
        body = await beside(ask.body, to_chat, name, self._manner)
        return Outgoing("POST", self._target, [*self._headers, (b"accept", accept)], body)

    def reply(self, ask: Ask, answer: Answer) -> Reply:
        kept = [(_KEPT[name], value) for name, value in answer.headers if name in _KEPT]
        if answer.status >= 400:
            status = _status(answer)
            return Translated(answer, status, [*kept, (b"content-type", _JSON)], FaultDecoder(answer.status))
        if answer.status >= 300:
            return answer
        kind = (answer.header(b"content-type") or b"").lower()
        if not kind.startswith((_JSON, _EVENTS)):
            return answer  # no completion: whoever reads it will say what it is
        model = ask.model or ask.said
        stops: frozenset[str] = frozenset()
        if b"stop_sequences" in ask.body:
            stops = frozenset(_stops.decode(without_halves(ask.body) or ask.body).stop_sequences or ())
        decoder: StreamDecoder | AnswerDecoder = StreamDecoder(model, stops)
        if not kind.startswith(_EVENTS):
            decoder = AnswerDecoder(model, stops, StreamDecoder(model, stops) if ask.stream else None)
        content_type = _EVENTS + b"; charset=utf-8" if ask.stream else _JSON
        return Translated(answer, 200, [*kept, (b"content-type", content_type)], decoder)

    async def close(self) -> None:
        """Nothing of it is open."""


def _status(answer: Answer) -> int:
    """Give the status of an error here. What a 403, a 404 or a 422 is about, its body tells."""
    if answer.status == 429 and answer.header(b"x-should-retry") == b"false":
        return 402  # no rate limit: the operator's account is used up (OpenAI, "insufficient_quota")
    return 400 if answer.status in {403, 404, 405, 409, 422} else answer.status
