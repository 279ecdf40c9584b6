"""Streams of messages, put as streams of chat completions. Bytes in, bytes out; any split gives the same chunks.

A chunk leaves with the event it comes from: the last ones, which tell the end, exist only once the events that say so
are given, which is after the charge is durable (promise 1).
"""

from typing import Any, Final

import msgspec

from farebox.gateway.chat.answer import error_of, finish_reason, usage_of
from farebox.http.surrogates import without_halves

_KEEP_ALIVE: Final = b": keep-alive\n\n"
_DONE: Final = b"data: [DONE]\n\n"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_encode: Final = msgspec.json.Encoder().encode


class _Content(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    model: str = ""
    usage: dict[str, Any] | None = None


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Event(msgspec.Struct):
    type: str = ""
    message: _Message | None = None
    content_block: _Content | None = None
    delta: _Delta | None = None
    usage: dict[str, Any] | None = None
    error: _Error | None = None


_event: Final = msgspec.json.Decoder(_Event)


class Chunks:
    """One stream. It keeps an event that has not come whole, and the figures of usage; nothing of what was said.

    What it is fed are whole events of at most 16 MiB, which the meter has seen to; it would take any split.
    """

    __slots__ = (
        "_calls", "_carriage", "_data", "_ended", "_head", "_id", "_include_usage", "_is_call", "_said_arguments",
        "_stop_reason", "_tail", "_usage",
    )  # fmt: skip

    def __init__(self, id_: str, created: int, *, include_usage: bool) -> None:
        self._id = _encode(id_), created
        self._include_usage = include_usage
        self._head = self._head_of("")
        self._calls = 0
        self._is_call = False
        self._said_arguments = False
        self._stop_reason: str | None = None
        self._usage: dict[str, Any] = {}
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._carriage = False
        self._ended = False

    def feed(self, piece: bytes) -> bytes:
        """Take bytes of events; give the chunks they make."""
        if self._carriage and piece:
            self._carriage = False
            piece = piece.removeprefix(b"\n")  # the second half of a line's end
        end = max(piece.rfind(b"\n"), piece.rfind(b"\r")) + 1
        if not end:
            self._tail += piece
            return b""
        self._carriage = piece.endswith(b"\r")
        lines = bytes(self._tail) + piece[:end] if self._tail else piece[:end]
        self._tail[:] = piece[end:]
        chunks: list[bytes] = []
        for line in lines.splitlines():
            if line.startswith(b"data:"):
                self._data.append(line[5:])
            elif not line:
                if self._data:
                    data, self._data = b"\n".join(self._data), []
                    chunks.append(self._chunk(data))
            elif line.removeprefix(_BYTE_ORDER_MARK).startswith(b":") and not self._ended:
                chunks.append(_KEEP_ALIVE)
        return b"".join(chunks)

    def _chunk(self, data: bytes) -> bytes:
        event = _read(data)
        if event is None or self._ended:
            return b""
        match event.type:
            case "content_block_delta":
                return self._delta(event.delta) if event.delta is not None else b""
            case "content_block_start":
                return self._start(event.content_block) if event.content_block is not None else b""
            case "content_block_stop":
                return self._stop()
            case "ping":
                return _KEEP_ALIVE
            case "message_start" if event.message is not None:
                self._head = self._head_of(event.message.model)
                self._usage |= event.message.usage or {}
                return self._say({"role": "assistant", "content": "", "refusal": None})
            case "message_delta":
                self._usage |= {name: value for name, value in (event.usage or {}).items() if value is not None}
                if event.delta is not None and event.delta.stop_reason:
                    self._stop_reason = event.delta.stop_reason
                return b""
            case "message_stop":
                return self._end()
            case "error":
                self._ended = True
                error = event.error or _Error()
                told = error_of(0, error.type, error.message or "the stream broke off")
                return b"data: " + _encode({"error": told}) + b"\n\n"
            case _:
                return b""

    def _delta(self, delta: _Delta) -> bytes:
        match delta.type:
            case "text_delta":
                return self._say({"content": delta.text})
            case "thinking_delta":
                return self._say({"reasoning_content": delta.thinking}) if delta.thinking else b""
            case "input_json_delta" if self._is_call and delta.partial_json:
                return self._arguments(delta.partial_json)
            case _:
                return b""

    def _start(self, block: _Content) -> bytes:
        self._is_call = block.type == "tool_use"
        if block.type == "text" and block.text:
            return self._say({"content": block.text})
        if block.type == "thinking" and block.thinking:
            return self._say({"reasoning_content": block.thinking})
        if not self._is_call:
            return b""
        self._calls += 1
        given = bytes(block.input).decode(errors="replace")
        self._said_arguments = given not in {"{}", "null"}
        function = {"name": block.name, "arguments": given if self._said_arguments else ""}
        call = {"index": self._calls - 1, "id": block.id, "type": "function", "function": function}
        return self._say({"tool_calls": [call]})

    def _stop(self) -> bytes:
        """End a block; a call that came without arguments has none, which clients read as JSON all the same."""
        is_bare, self._is_call = self._is_call and not self._said_arguments, False
        return self._arguments("{}") if is_bare else b""

    def _arguments(self, piece: str) -> bytes:
        self._said_arguments = True
        return self._say({"tool_calls": [{"index": self._calls - 1, "function": {"arguments": piece}}]})

    def _end(self) -> bytes:
        self._ended = True
        last = self._say({}, finish_reason(self._stop_reason))
        if self._include_usage:
            last += b'%b[],"usage":%b}\n\n' % (self._head, _encode(usage_of(self._usage)))
        return last + _DONE

    def _say(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return b'%b[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]%b}\n\n' % (
            self._head,
            _encode(delta),
            b'"%b"' % finish.encode() if finish else b"null",
            b',"usage":null' if self._include_usage else b"",
        )

    def _head_of(self, model: str) -> bytes:
        id_, created = self._id
        return b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":' % (
            id_,
            created,
            _encode(model),
        )


def _read(data: bytes) -> _Event | None:
    """Read an event; None where it is none that is known."""
    try:
        try:
            return _event.decode(data)
        except msgspec.DecodeError:
            readable = without_halves(data)
            return _event.decode(readable) if readable is not None else None
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
