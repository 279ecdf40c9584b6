"""The endpoint for clients that speak Chat Completions, as the reference and /openapi.json tell of it."""

from typing import Any, Final

from farebox import errors
from farebox.web.docs.endpoint import WITH_A_BODY, Endpoint, Field, Schema
from farebox.web.offer import Offer

_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_CONTENT: Final[Schema] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}},
        },
        {"type": "null"},
    ]
}
_ROLES: Final = ["system", "developer", "user", "assistant", "tool"]
_TOOL: Final[Schema] = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"type": "string", "enum": ["function"]},
        "function": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
    },
}
_USAGE: Final[Schema] = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": {
            "type": "object",
            "properties": {"cached_tokens": _COUNT, "cache_write_tokens": _COUNT},
        },
        "completion_tokens_details": {"type": "object", "properties": {"reasoning_tokens": _COUNT}},
    },
}
_MESSAGE: Final[Schema] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"]},
        "refusal": {"type": ["string", "null"]},
        "reasoning_content": {"type": "string"},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
    },
}
_COMPLETION: Final[Schema] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": _COUNT,
        "model": {"type": "string"},
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "message", "finish_reason"],
                "properties": {"index": _COUNT, "message": _MESSAGE, "finish_reason": {"type": "string"}},
            },
        },
        "usage": _USAGE,
    },
}


def chat_completions(offer: Offer) -> Endpoint:
    """Describe POST /v1/chat/completions."""
    return Endpoint(
        slug="chat-completions",
        method="POST",
        path="/v1/chat/completions",
        title="Create a chat completion",
        words="The same models, key and balance in the words of OpenAI's Chat Completions API, for clients that speak "
        "nothing else.",
        fields=_fields(offer),
        example={"model": offer.sample.id, "messages": [{"role": "user", "content": "Hello!"}]},
        answer=_COMPLETION,
        answer_example=_example(offer),
        refusals=(
            *(kind for kind in WITH_A_BODY if kind is not errors.Overloaded),
            errors.InsufficientBalance,
            errors.UpstreamFailed,
        ),
        streams=True,
        passes_on=True,
        error="ChatError",
    )


def _fields(offer: Offer) -> tuple[Field, ...]:
    turn: Schema = {
        "type": "object",
        "required": ["role"],
        "properties": {"role": {"type": "string", "enum": _ROLES}, "content": _CONTENT},
    }
    return (
        Field(
            "model",
            {"type": "string", "examples": [offer.sample.id]},
            "The id or another name of a model that is [sold here](/models).",
            required=True,
        ),
        Field(
            "messages",
            {"type": "array", "minItems": 1, "items": turn},
            "The conversation. Content is a text, or an array of parts: `text`, `image_url` (`https://` or "
            "`data:…;base64,`) and `file` with a PDF in `file_data`. `tool_calls` and role `tool` go along.",
            required=True,
        ),
        Field(
            "max_completion_tokens",
            {"type": "integer", "minimum": 1},
            f"The most tokens to produce, thinking included; `max_tokens` is the same. Left out, it is "
            f"{offer.limits.default_max_tokens:,}, or the most the model can where that is less.",
        ),
        Field(
            "stream",
            {"type": "boolean", "default": False},
            'The answer comes in chunks as it is produced; `stream_options: {"include_usage": true}` adds its usage.',
        ),
        Field("temperature", {"type": "number", "minimum": 0, "maximum": 1}, "From 0 to 1; more is refused."),
        Field("tools", {"type": "array", "items": _TOOL}, "Functions that the model may call."),
        Field(
            "reasoning_effort",
            {"type": "string", "enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"]},
            "How much effort to spend. From `low` on the model thinks; what it shows of that is `reasoning_content`.",
        ),
    )


def _example(offer: Offer) -> dict[str, Any]:
    said = {"role": "assistant", "content": "Hello! What shall we build?", "refusal": None}
    return {
        "id": "chatcmpl-01a205f286a77458ab07377875479659",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": offer.sample.id,
        "choices": [{"index": 0, "message": said, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 11,
            "total_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
