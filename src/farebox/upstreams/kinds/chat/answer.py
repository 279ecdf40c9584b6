"""Whole chat completions, put as messages."""

from typing import Any, Final

import msgspec

from farebox.http.failures import BadAnswer, NoUsage
from farebox.upstreams.kinds.chat.shapes import Said, call_id, message_id, read_chunk, stop_of, usage_of
from farebox.upstreams.kinds.chat.stream import StreamDecoder

_BODY_BYTES: Final = 64 * 2**20
UNREADABLE: Final = "INVALID_JSON"
"""Under this name a tool is given arguments that are no JSON object (Anthropic, "Fine-grained tool streaming")."""


class AnswerDecoder:
    """A `Decoder` of one completion. With `stream`: for a client that wants events, where the server gave none."""

    def __init__(self, model: str, stops: frozenset[str], stream: StreamDecoder | None = None) -> None:
        self._model = model
        self._stops = stops
        self._stream = stream
        self._body = bytearray()

    def feed(self, data: bytes) -> bytes:
        self._body += data
        if len(self._body) > _BODY_BYTES:
            raise BadAnswer(f"the upstream's answer is larger than {_BODY_BYTES} bytes")
        return b""

    def end(self) -> bytes:
        if self._stream is not None:
            return self._stream.whole(bytes(self._body))
        return to_message(bytes(self._body), self._model, self._stops)


def to_message(body: bytes, model: str, stops: frozenset[str]) -> bytes:
    """Put a completion as a message of `model`. Raises BadAnswer for an error, or one without choice or usage."""
    completion = read_chunk(body)
    if completion.fault is not None:
        raise BadAnswer("the upstream answered 200 with an error")
    usage = usage_of(completion.usage)
    if usage is None:
        raise NoUsage("the upstream's answer reports no usable usage")
    choice = next((choice for choice in completion.choices or () if choice.index == 0), None)
    if choice is None or choice.finish_reason is None:
        raise BadAnswer("the upstream's answer has no finished choice")
    said = choice.message or Said()
    stop_reason, stop_sequence = stop_of(
        choice.finish_reason, choice.stop_reason, stops, calls=bool(said.calls), refused=bool(said.refusal)
    )
    return msgspec.json.encode(
        {
            "id": message_id(completion.id),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": _blocks(said),
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": usage,
        }
    )


def _blocks(said: Said) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if said.thought.strip():
        blocks.append({"type": "thinking", "thinking": said.thought, "signature": ""})
    text = said.text + (said.refusal or "")
    if text.strip():
        blocks.append({"type": "text", "text": text})
    for call in said.calls:
        if call.function is None or not call.function.name:
            raise BadAnswer("the upstream's tool call has no name")
        arguments = _arguments(call.function.written)
        blocks.append({"type": "tool_use", "id": call_id(call.id), "name": call.function.name, "input": arguments})
    return blocks


def _arguments(written: str) -> dict[str, Any]:
    if not written.strip():
        return {}
    try:
        return msgspec.json.decode(written, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return {UNREADABLE: written}
