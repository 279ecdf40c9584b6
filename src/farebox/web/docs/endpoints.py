"""The API for customers, one structure per endpoint. Reference pages, samples and /openapi.json come of it."""

from datetime import datetime
from typing import Any, Final

from farebox import errors
from farebox.billing.pricing import Model, Rates
from farebox.money import decimal_usd
from farebox.web.docs.account_endpoints import account_endpoints, quote
from farebox.web.docs.batch_endpoints import batch_endpoints
from farebox.web.docs.chat_endpoint import chat_completions
from farebox.web.docs.endpoint import EVERYWHERE, WITH_A_BODY, Endpoint, Field, Schema
from farebox.web.docs.file_endpoints import file_endpoints
from farebox.web.offer import Offer


def endpoints(offer: Offer) -> tuple[Endpoint, ...]:
    """Describe all endpoints as this server has them."""
    messages = _messages(offer)
    return (
        messages,
        _count_tokens(offer),
        *batch_endpoints(offer),
        *file_endpoints(offer),
        chat_completions(offer),
        quote(messages),
        _models(offer),
        _model(offer),
        *account_endpoints(offer),
    )


def _messages(offer: Offer) -> Endpoint:
    limits, sample = offer.limits, offer.sample
    return Endpoint(
        slug="messages",
        method="POST",
        path="/v1/messages",
        title="Create a message",
        words="Send a conversation, get the next message of it, as JSON or as a stream of events.",
        fields=(
            *_conversation(offer),
            Field(
                "max_tokens",
                {"type": "integer", "minimum": 1},
                f"The most tokens to produce, thinking included. Left out, it is {limits.default_max_tokens:,}, or the "
                "most the model can where that is less. It bounds what is [held](/docs/billing#holds) from your "
                "balance, not what is charged.",
            ),
            Field(
                "stream",
                {"type": "boolean", "default": False},
                "`true`: the answer comes as [server-sent events](/docs/streaming) while it is produced.",
            ),
            Field(
                "temperature",
                {"type": "number", "minimum": 0, "maximum": 1},
                "From 0, for answers that vary little, to 1, the default.",
            ),
        ),
        example=_hello(sample, max_tokens=1024),
        answer=_MESSAGE,
        answer_example={
            "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
            "type": "message",
            "role": "assistant",
            "model": sample.id,
            "content": [{"type": "text", "text": "Hello! What shall we build?"}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 9, "output_tokens": 11},
        },
        refusals=(*WITH_A_BODY, errors.InsufficientBalance, errors.UpstreamFailed),
        streams=True,
        passes_on=True,
    )


def _count_tokens(offer: Offer) -> Endpoint:
    return Endpoint(
        slug="count-tokens",
        method="POST",
        path="/v1/messages/count_tokens",
        title="Count tokens",
        words="Ask how many tokens a request would put in, without sending it to a model. Free.",
        fields=_conversation(offer),
        example=_hello(offer.sample),
        answer={
            "type": "object",
            "required": ["input_tokens"],
            "properties": {"input_tokens": {"type": "integer", "minimum": 0}},
        },
        answer_example={"input_tokens": 9},
        refusals=(*WITH_A_BODY, errors.UpstreamFailed),
        passes_on=True,
    )


def _models(offer: Offer) -> Endpoint:
    sample = describe(offer.sample)
    id_or_null: Schema = {"type": ["string", "null"]}
    return Endpoint(
        slug="models",
        method="GET",
        path="/v1/models",
        title="List models",
        words="Everything that is sold, a page at a time, with its prices. Free.",
        fields=(
            Field(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20},
                "How many models to give at most. Left out without a header `anthropic-version`, it is all of them.",
                place="query",
            ),
            Field("after_id", {"type": "string"}, "Give those that come after this model.", place="query"),
            Field("before_id", {"type": "string"}, "Give those that come before this model.", place="query"),
            Field(
                "lifecycle[]",
                {"type": "string", "enum": ["active", "deprecated", "retired"]},
                "Give those in this stage. Everything that is sold is `active`.",
                place="query",
            ),
        ),
        example=None,
        answer={
            "type": "object",
            "required": ["data", "has_more", "first_id", "last_id"],
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": _MODEL},
                "has_more": {"type": "boolean"},
                "first_id": id_or_null,
                "last_id": id_or_null,
            },
        },
        answer_example={
            "data": [sample],
            "has_more": len(offer.models) > 1,
            "first_id": sample["id"],
            "last_id": sample["id"],
        },
        refusals=EVERYWHERE,
    )


def _model(offer: Offer) -> Endpoint:
    return Endpoint(
        slug="model",
        method="GET",
        path="/v1/models/{model_id}",
        title="Get a model",
        words="One model, by its id or another of its names. Free.",
        fields=(Field("model_id", {"type": "string"}, "An id or an alias.", required=True, place="path"),),
        example=None,
        answer=_MODEL,
        answer_example=describe(offer.sample),
        refusals=(*EVERYWHERE, errors.NotFound),
    )


def describe(model: Model) -> Schema:
    """Show a model as the API does."""
    return {
        "object": "model",
        "created": int(datetime.fromisoformat(model.created_at).timestamp()),
        "owned_by": "system",
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": model.created_at,
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": model.context_tokens,
        "max_tokens": model.max_output_tokens,
        "pricing": {
            "unit": "USD per million tokens",
            "sell": _prices(model.rates.sell),
            "list": _prices(model.rates.list),
        },
    }


def _prices(rates: Rates) -> dict[str, str]:
    return {name: decimal_usd(getattr(rates, name)) for name in rates.__struct_fields__}


def _hello(model: Model, **more: Any) -> Schema:
    return {"model": model.id, **more, "messages": [{"role": "user", "content": "Hello!"}]}


def _conversation(offer: Offer) -> tuple[Field, ...]:
    """Give the fields that messages and count_tokens share."""
    return (
        Field(
            "model",
            {"type": "string", "examples": [offer.sample.id]},
            "The id or another name of a model that is [sold here](/models).",
            required=True,
        ),
        Field(
            "messages",
            {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["role", "content"],
                    "properties": {"role": {"type": "string", "enum": ["user", "assistant"]}, "content": _CONTENT},
                },
            },
            "The turns so far, oldest first. Each has a `role`, `user` or `assistant`, and `content`: a text, or an "
            "array of blocks such as text, images, documents, tool uses and their results.",
            required=True,
        ),
        Field("system", _CONTENT, "Instructions for the whole conversation."),
    )


_CONTENT: Final[Schema] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}},
        },
    ]
}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_MESSAGE: Final[Schema] = {
    "type": "object",
    "required": ["id", "type", "role", "model", "content", "stop_reason", "usage"],
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": {"type": "string"},
        "content": {
            "type": "array",
            "items": {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}},
        },
        "stop_reason": {"type": ["string", "null"]},
        "stop_sequence": {"type": ["string", "null"]},
        "usage": {
            "type": "object",
            "required": ["input_tokens", "output_tokens"],
            "properties": {
                "input_tokens": _COUNT,
                "output_tokens": _COUNT,
                "cache_creation_input_tokens": {"type": ["integer", "null"], "minimum": 0},
                "cache_read_input_tokens": {"type": ["integer", "null"], "minimum": 0},
            },
        },
    },
}
_RATES: Final[Schema] = {
    "type": "object",
    "required": list(Rates.__struct_fields__),
    "properties": {name: {"type": "string", "pattern": r"^\d+\.\d{2,9}$"} for name in Rates.__struct_fields__},
}
_MODEL: Final[Schema] = {
    "type": "object",
    "required": ["type", "id", "display_name", "created_at", "max_input_tokens", "max_tokens", "pricing"],
    "properties": {
        "object": {"const": "model"},
        "created": _COUNT,
        "owned_by": {"type": "string"},
        "type": {"const": "model"},
        "id": {"type": "string"},
        "display_name": {"type": "string"},
        "created_at": {"type": "string"},
        "lifecycle": {"const": "active"},
        "deprecated_at": {"type": "null"},
        "retires_at": {"type": "null"},
        "max_input_tokens": _COUNT,
        "max_tokens": _COUNT,
        "pricing": {
            "type": "object",
            "required": ["unit", "sell", "list"],
            "properties": {"unit": {"type": "string"}, "sell": _RATES, "list": _RATES},
        },
    },
}
