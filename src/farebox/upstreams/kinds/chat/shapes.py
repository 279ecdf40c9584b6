"""The shapes of chat completions, whole and in chunks, as servers write them; what they mean in the Messages API.

Sources: OpenAI, "Chat Completions" (the object, the chunk object, errors); vLLM, "OpenAI-compatible server" and
"Reasoning outputs"; llama.cpp, server README; Ollama, "OpenAI compatibility"; DeepSeek, "Create chat completion";
OpenRouter, "Streaming" and "Errors". What only some of them say is read where it is there and never asked for.
"""

import re
import secrets
from typing import Any, Final

import msgspec

from farebox.http.failures import BadAnswer
from farebox.http.surrogates import without_halves

_MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_MOST_COUNT: Final = 10**12
_BROKEN: Final = frozenset({"error", "abort", "insufficient_system_resource"})
"""Reasons that tell of an answer which its server did not finish: OpenRouter, SGLang, DeepSeek."""
_LENGTHS: Final = frozenset({"length", "max_tokens", "model_length"})


class Part(msgspec.Struct):
    """A piece of content; most servers write a plain string instead."""

    type: str = ""
    text: str | None = None


class Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None
    """JSON as a string; an object with servers that know no better."""

    @property
    def written(self) -> str:
        """Its arguments as JSON."""
        if self.arguments is None or isinstance(self.arguments, str):
            return self.arguments or ""
        return msgspec.json.encode(self.arguments).decode()


class Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Said(msgspec.Struct):
    """A message, or what comes new to it."""

    content: str | list[Part] | None = None
    reasoning_content: Any = None
    """DeepSeek, llama.cpp, older vLLM."""
    reasoning: Any = None
    """OpenRouter, Ollama, newer vLLM."""
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    function_call: Function | None = None

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text or "" for part in self.content if part.type == "text")

    @property
    def thought(self) -> str:
        thought = self.reasoning_content or self.reasoning
        return thought if isinstance(thought, str) else ""

    @property
    def calls(self) -> list[Call]:
        if self.function_call is not None and not self.tool_calls:
            return [Call(index=0, function=self.function_call)]
        return self.tool_calls or []


class Choice(msgspec.Struct):
    index: int = 0
    delta: Said | None = None
    message: Said | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """vLLM: the stop sequence that was met, or the id of a token."""
    error: Any = None

    @property
    def says_more(self) -> bool:
        """Whether it brings output."""
        said = self.delta or self.message
        return said is not None and bool(said.text or said.thought or said.refusal or said.calls)


class Chunk(msgspec.Struct):
    """A chunk of a stream, or a whole completion: they differ in where a choice has what was said."""

    id: Any = None
    object: Any = None
    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None
    message: Any = None
    """Of an error, as older vLLM writes them."""

    @property
    def fault(self) -> Any:
        """Give the error that it tells of; None when it tells of none."""
        if self.object == "error":
            return {"message": self.message}
        choices = self.choices or []
        return self.error or next((choice.error for choice in choices if choice.error), None)


_decoder: Final = msgspec.json.Decoder(Chunk)


def read_chunk(payload: bytes) -> Chunk:
    """Read a chunk or a whole completion. Raises BadAnswer, whose words never quote it."""
    try:
        try:
            return _decoder.decode(payload)
        except msgspec.DecodeError:  # servers that count in UTF-16 cut characters in two
            return _decoder.decode(without_halves(payload) or payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadAnswer("the upstream's chat completion cannot be read") from None


def message_id(said: Any) -> str:
    """Give the id of a message from that of a completion."""
    return f"msg_{said if isinstance(said, str) and _MESSAGE_ID.fullmatch(said) else secrets.token_hex(12)}"


def call_id(said: str | None) -> str:
    """Give the id of a tool call; servers that write none get one made for them."""
    return said or f"toolu_{secrets.token_hex(12)}"


def stop_of(
    reason: str, told: str | int | None, stops: frozenset[str], *, calls: bool, refused: bool
) -> tuple[str, str | None]:
    """Give stop_reason and stop_sequence. Raises BadAnswer for the end of an answer that its server did not finish."""
    if reason in _BROKEN:
        raise BadAnswer(f"the upstream ended its answer with finish_reason {reason}")
    if refused or reason == "content_filter":
        return "refusal", None
    if reason in _LENGTHS:
        return "max_tokens", None
    if calls:
        return "tool_use", None
    if isinstance(told, str) and told in stops:
        return "stop_sequence", told
    return "end_turn", None


def usage_of(said: Any) -> dict[str, Any] | None:
    """Put a report of usage in the words of the Messages API; None for one that says nothing usable.

    What was read from a cache is part of `prompt_tokens` there and apart from `input_tokens` here. Reasoning is part
    of `completion_tokens`, but with servers whose total says that it comes on top.
    """
    if not isinstance(said, dict):
        return None
    prompt, completion = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    details = said.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    if cached is None:
        cached = _count(said.get("prompt_cache_hit_tokens")) or _count(said.get("cached_tokens")) or 0
    cached = min(cached, prompt)
    details = said.get("completion_tokens_details")
    reasoning = (_count(details.get("reasoning_tokens")) if isinstance(details, dict) else None) or 0
    total = _count(said.get("total_tokens")) or 0
    if reasoning and total == prompt + completion + reasoning:
        completion += reasoning
    usage: dict[str, Any] = {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
    }
    if reasoning:
        usage["output_tokens_details"] = {"thinking_tokens": min(reasoning, completion)}
    return usage


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST_COUNT else None
