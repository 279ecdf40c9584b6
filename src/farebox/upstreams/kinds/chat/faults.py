"""Errors of Chat Completions servers, put in the envelope of the Messages API.

What speaks of the operator's account, key, model or address becomes an error of a type that no customer is shown.
Sources: OpenAI, "Error codes"; vLLM's ErrorResponse; llama.cpp's server README; OpenRouter, "Errors"; DeepSeek, "Error
codes"; Ollama, "Errors".
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from farebox.http.failures import BadAnswer

_BODY_BYTES: Final = 2**20
_WORDS_CHARS: Final = 2000
_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "billing_error",
    402: "billing_error",
    403: "billing_error",
    404: "permission_error",
    408: "timeout_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""401 to 404 are about the operator's key and account, and about a model or an address that is wrong."""
_OPERATORS_CODES: Final = frozenset(
    {
        "account_deactivated",
        "billing_hard_limit_reached",
        "billing_not_active",
        "insufficient_quota",
        "invalid_api_key",
        "unsupported_country_region_territory",
    }
)
_TOO_LONG: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_TOO_LONG_WORDS: Final = re.compile(
    r"context length|context window|context size|prompt is too long|too many tokens in the prompt",
    re.IGNORECASE,
)
_WITH_OUTPUT: Final = (
    re.compile(r"too large: (?P<output>\d+)\..*context length is (?P<most>\d+).*has (?P<prompt>\d+) input", re.DOTALL),
    re.compile(
        r"context length is (?P<most>\d+).*\((?P<prompt>\d+) in the messages, (?P<output>\d+) in the completion",
        re.DOTALL,
    ),
)
"""How vLLM and OpenAI say that prompt and max_tokens do not fit together."""
_PROMPT_ALONE: Final = re.compile(
    r"context length is (?P<most>\d+).*(?:resulted in|contains|contain|has|requested) (?:about )?(?P<prompt>\d+)",
    re.DOTALL,
)
_KEY_REFUSED: Final = re.compile(r"API key (?:not valid|expired)\b")
"""How Google's 400 about the operator's key begins."""
_FLAGGED: Final = re.compile(r"moderation|flagged", re.IGNORECASE)
_SET_UP: Final = "the upstream does not serve this model to this gateway"
_LIMITED: Final = "the model's provider is at its rate limit"


class Fault(msgspec.Struct, frozen=True):
    """What an error says, whoever wrote it."""

    status: int
    codes: tuple[str, ...] = ()
    words: str = ""
    prompt_tokens: int | None = None
    context_tokens: int | None = None

    @property
    def envelope(self) -> bytes:
        """Write it as the Messages API does."""
        kind, words = self._told()
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": words}})

    def _told(self) -> tuple[str, str]:
        if not _OPERATORS_CODES.isdisjoint(self.codes) or _KEY_REFUSED.match(self.words):
            return "billing_error", _SET_UP
        if "model_not_found" in self.codes:
            return "permission_error", _SET_UP
        if self.status == 403 and _FLAGGED.search(self.words):
            return "invalid_request_error", self.words
        kind = _TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        if kind in {"billing_error", "permission_error"}:
            return kind, _SET_UP
        if kind == "rate_limit_error":
            return kind, _LIMITED  # their words name the operator's organisation
        if kind == "invalid_request_error" and (
            not _TOO_LONG.isdisjoint(self.codes) or _TOO_LONG_WORDS.search(self.words)
        ):
            return kind, self._too_long()
        return kind, self.words or f"the upstream answered {self.status}"

    def _too_long(self) -> str:
        """Say that it is too long as the Messages API does, since clients look for its words."""
        for pattern in _WITH_OUTPUT:
            if found := pattern.search(self.words):
                prompt, output, most = found["prompt"], found["output"], found["most"]
                return f"input length and `max_tokens` exceed context limit: {prompt} + {output} > {most}"
        if self.prompt_tokens and self.context_tokens:
            return f"prompt is too long: {self.prompt_tokens} tokens > {self.context_tokens} maximum"
        found = _PROMPT_ALONE.search(self.words)
        if found and int(found["prompt"]) > int(found["most"]):
            return f"prompt is too long: {found['prompt']} tokens > {found['most']} maximum"
        return f"prompt is too long: {self.words}"


class FaultDecoder:
    """A `Decoder` of the body of an error."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._body = bytearray()

    def feed(self, data: bytes) -> bytes:
        self._body += data
        if len(self._body) > _BODY_BYTES:
            raise BadAnswer(f"the upstream's error is larger than {_BODY_BYTES} bytes")
        return b""

    def end(self) -> bytes:
        try:
            said = msgspec.json.decode(self._body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = None
        return read_fault(said, self._status).envelope


def read_fault(said: Any, status: int) -> Fault:
    """Read an error: a body, or what a stream has under `error`. Its own code counts where it is a status."""
    if isinstance(said, list) and said:  # as Google has it
        said = said[0]
    error = said
    if isinstance(said, dict):
        error = said.get("error") or said
    if not isinstance(error, dict):
        return Fault(status, words=_text(error))
    code, kind = error.get("code"), error.get("type")
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    if type(code) is int and 400 <= code <= 599 and status == 200:
        status = code
    if status == 200:
        status = 429 if "rate_limit" in f"{code} {kind}" else 500
    return Fault(
        status,
        tuple(text for text in (code, kind) if isinstance(text, str)),
        _text(error.get("message")) or _text(error.get("detail")),
        _number(error.get("n_prompt_tokens")),
        _number(error.get("n_ctx")),
    )


def _text(value: Any) -> str:
    return value[:_WORDS_CHARS] if isinstance(value, str) else ""


def _number(value: Any) -> int | None:
    return value if type(value) is int else None
