"""Answers of the Messages API, put as chat completions: whole ones, and errors.

What a field cannot be read from is left out: the answer has been paid for, and the rest of it is worth having.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from farebox.errors import Refusal
from farebox.gateway.answers import error_headers
from farebox.gateway.whole import read_error
from farebox.http.exchange import Headers
from farebox.http.surrogates import without_halves

_FINISHES: Final[Mapping[str, str]] = {
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
_CODES: Final[Mapping[str, str | None]] = {
    "authentication_error": "invalid_api_key",
    "insufficient_balance": "insufficient_quota",
    "rate_limit_error": "rate_limit_exceeded",
    "not_found_error": "not_found",
    "permission_error": "permission_denied",
    "request_too_large": "request_too_large",
    "overloaded_error": "overloaded",
    "upstream_error": "upstream_error",
}
_TYPES: Final[Mapping[str, str]] = {
    "insufficient_balance": "insufficient_quota",
    "rate_limit_error": "rate_limit_error",
    "permission_error": "permission_error",
}
_OWN_STATUSES: Final = {529: 503}
"""Statuses that the Messages API made up, as everybody else says them."""
_SERVER_ERROR: Final = 500
_FIELD: Final = re.compile(r"([a-z_]+(?:\[\d+\]|\.[a-z_]+)*)(?:: | must )")
_MODEL_UNKNOWN: Final = "model: "
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items: Final = msgspec.json.Decoder(list[msgspec.Raw])
_any: Final = msgspec.json.Decoder()
_encode: Final = msgspec.json.Encoder().encode


class Block(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


_block: Final = msgspec.json.Decoder(Block)


def finish_reason(stop_reason: object) -> str:
    """Name the end of a message as chat completions do; whatever ends well is "stop"."""
    return _FINISHES.get(stop_reason, "stop") if isinstance(stop_reason, str) else "stop"


def usage_of(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Add up usage: prompt tokens are all that went in, what was read from or written to a cache included."""
    read, written = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
    prompt, completion = _count(usage, "input_tokens") + read + written, _count(usage, "output_tokens")
    details = usage.get("output_tokens_details")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "completion_tokens_details": {
            "reasoning_tokens": _count(details, "thinking_tokens") if isinstance(details, dict) else 0
        },
    }


def completion_of(body: bytes, id_: str, created: int) -> bytes:
    """Put a message as a chat completion. `created` is in seconds."""
    message = _read(_fields, body) or {}
    text, thinking, calls = "", "", []
    for raw in _read(_items, message.get("content", b"[]")) or []:
        block = _read(_block, raw)
        if block is None:
            continue
        if block.type == "text":
            text += block.text
        elif block.type == "thinking":
            thinking += block.thinking
        elif block.type == "tool_use":
            arguments = bytes(block.input).decode(errors="replace")
            calls.append({"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}})
    said: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if thinking:
        said["reasoning_content"] = thinking
    if calls:
        said["tool_calls"] = calls
    usage = _read(_any, message.get("usage", b"{}"))
    choice = {
        "index": 0,
        "message": said,
        "logprobs": None,
        "finish_reason": finish_reason(_read(_any, message.get("stop_reason", b"null"))),
    }
    return _encode(
        {
            "id": id_,
            "object": "chat.completion",
            "created": created,
            "model": _read(_any, message.get("model", b'""')),
            "choices": [choice],
            "usage": usage_of(usage if isinstance(usage, dict) else {}),
        }
    )


def error_of(status: int, wire_type: str, message: str) -> dict[str, Any]:
    """Put an error of the Messages API as the object that OpenAI's clients read. `status` 0: it stands in a stream."""
    field = _FIELD.match(message)
    code = _CODES.get(wire_type)
    if wire_type == "not_found_error" and message.startswith(_MODEL_UNKNOWN):
        code = "model_not_found"
    fallback = "server_error" if status >= _SERVER_ERROR or status == 0 else "invalid_request_error"
    return {
        "message": message,
        "type": _TYPES.get(wire_type, fallback),
        "param": field[1] if field else None,
        "code": code,
    }


def error_body_of(status: int, body: bytes) -> tuple[int, bytes]:
    """Put an upstream's error body, and its status."""
    error = read_error(body)
    wire_type, words = (error.type, error.message) if error else ("", "the upstream refused the call without words")
    return _OWN_STATUSES.get(status, status), _encode({"error": error_of(status, wire_type, words)})


def refusal_of(refusal: Refusal, request_id: str) -> tuple[int, Headers, bytes]:
    """Put a refusal of ours: status, headers and body."""
    headers = [*error_headers(refusal), (b"x-request-id", request_id.encode())]
    error = error_of(refusal.status, refusal.wire_type, refusal.message)
    if refusal.error_code is not None:
        error["code"] = refusal.error_code
    return _OWN_STATUSES.get(refusal.status, refusal.status), headers, _encode({"error": error})


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if type(value) is int and value > 0 else 0


def _read(decoder: msgspec.json.Decoder[Any], data: bytes | msgspec.Raw) -> Any:
    """Decode; None where that cannot be done."""
    try:
        try:
            return decoder.decode(data)
        except msgspec.DecodeError:
            readable = without_halves(bytes(data))
            return decoder.decode(readable) if readable is not None else None
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
