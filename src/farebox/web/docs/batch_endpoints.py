"""The endpoints of message batches, as the reference and /openapi.json tell of them."""

from typing import Final

from farebox import errors
from farebox.web.docs.endpoint import EVERYWHERE, WITH_A_BODY, Endpoint, Field, Schema
from farebox.web.offer import Offer

_ID: Final = "msgbatch_01a205f286a77458ab07377875479659"
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_MOMENT: Final[Schema] = {"type": "string", "format": "date-time"}
_MOMENT_OR_NULL: Final[Schema] = {"type": ["string", "null"], "format": "date-time"}
_COUNTS: Final = ("processing", "succeeded", "errored", "canceled", "expired")
_BATCH: Final[Schema] = {
    "type": "object",
    "required": ["id", "type", "processing_status", "request_counts", "created_at", "expires_at", "results_url"],
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "message_batch"},
        "processing_status": {"type": "string", "enum": ["in_progress", "canceling", "ended"]},
        "request_counts": {
            "type": "object",
            "required": list(_COUNTS),
            "properties": dict.fromkeys(_COUNTS, _COUNT),
        },
        "created_at": _MOMENT,
        "expires_at": _MOMENT,
        "ended_at": _MOMENT_OR_NULL,
        "archived_at": _MOMENT_OR_NULL,
        "cancel_initiated_at": _MOMENT_OR_NULL,
        "results_url": {"type": ["string", "null"]},
    },
}
_PLACE: Final = Field(
    "message_batch_id", {"type": "string"}, "The id of a batch of yours.", required=True, place="path"
)
_FREE: Final = (*EVERYWHERE, errors.NotFound, errors.RateLimited)


def batch_endpoints(offer: Offer) -> tuple[Endpoint, ...]:
    """Describe all of them."""
    return (_create(offer), _list(), _get(), _cancel(), _delete(), _results())


def _create(offer: Offer) -> Endpoint:
    params = {"model": offer.sample.id, "max_tokens": 1024, "messages": [{"role": "user", "content": "Hello!"}]}
    return Endpoint(
        slug="create-batch",
        method="POST",
        path="/v1/messages/batches",
        title="Create a batch",
        words="Send many messages at once, to be answered within a day. What all of them can cost is held first.",
        fields=(
            Field(
                "requests",
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 100_000,
                    "items": {
                        "type": "object",
                        "required": ["custom_id", "params"],
                        "properties": {
                            "custom_id": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
                            "params": {"type": "object"},
                        },
                        "additionalProperties": False,
                    },
                },
                "The messages: `params` is the body of each, without `stream`, `speed` and `fallbacks`; `custom_id` is "
                "what you call it, once in a batch.",
                required=True,
            ),
        ),
        example={"requests": [{"custom_id": "first", "params": params}]},
        answer=_BATCH,
        answer_example=_shown("in_progress", processing=1),
        refusals=(*WITH_A_BODY, errors.InsufficientBalance, errors.UpstreamFailed),
        passes_on=True,
    )


def _list() -> Endpoint:
    id_or_null: Schema = {"type": ["string", "null"]}
    return Endpoint(
        slug="list-batches",
        method="GET",
        path="/v1/messages/batches",
        title="List batches",
        words="Your account's batches, newest first, a page at a time.",
        fields=(
            Field(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20},
                "How many to give at most.",
                place="query",
            ),
            Field("after_id", {"type": "string"}, "Give those that come after this one.", place="query"),
            Field("before_id", {"type": "string"}, "Give those that come before this one.", place="query"),
        ),
        example=None,
        answer={
            "type": "object",
            "required": ["data", "has_more", "first_id", "last_id"],
            "properties": {
                "data": {"type": "array", "items": _BATCH},
                "has_more": {"type": "boolean"},
                "first_id": id_or_null,
                "last_id": id_or_null,
            },
        },
        answer_example={
            "data": [_shown("in_progress", processing=1)],
            "has_more": False,
            "first_id": _ID,
            "last_id": _ID,
        },
        refusals=_FREE,
    )


def _get() -> Endpoint:
    return Endpoint(
        slug="get-batch",
        method="GET",
        path="/v1/messages/batches/{message_batch_id}",
        title="Get a batch",
        words="How a batch is. Its counts are told once it has ended.",
        fields=(_PLACE,),
        example=None,
        answer=_BATCH,
        answer_example=_shown("ended", succeeded=1),
        refusals=_FREE,
    )


def _cancel() -> Endpoint:
    return Endpoint(
        slug="cancel-batch",
        method="POST",
        path="/v1/messages/batches/{message_batch_id}/cancel",
        title="Cancel a batch",
        words="Let nothing more of a batch be begun. What is answered by then is charged; the rest is free.",
        fields=(_PLACE,),
        example=None,
        answer=_BATCH,
        answer_example=_shown("canceling", processing=1),
        refusals=(*_FREE, errors.UpstreamFailed, errors.Overloaded),
    )


def _delete() -> Endpoint:
    return Endpoint(
        slug="delete-batch",
        method="DELETE",
        path="/v1/messages/batches/{message_batch_id}",
        title="Delete a batch",
        words="Forget a batch that has ended, with its results. What it cost stays in your log of calls.",
        fields=(_PLACE,),
        example=None,
        answer={
            "type": "object",
            "required": ["id", "type"],
            "properties": {"id": {"type": "string"}, "type": {"const": "message_batch_deleted"}},
        },
        answer_example={"id": _ID, "type": "message_batch_deleted"},
        refusals=_FREE,
    )


def _results() -> Endpoint:
    return Endpoint(
        slug="batch-results",
        method="GET",
        path="/v1/messages/batches/{message_batch_id}/results",
        title="Get the results of a batch",
        words="One line of JSON for each message of a batch that has ended, in no particular order.",
        fields=(_PLACE,),
        example=None,
        answer={
            "type": "object",
            "required": ["custom_id", "result"],
            "properties": {
                "custom_id": {"type": "string"},
                "result": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {"type": {"type": "string", "enum": list(_COUNTS[1:])}},
                },
            },
        },
        answer_example={"custom_id": "first", "result": {"type": "succeeded", "message": {"type": "message"}}},
        refusals=(*_FREE, errors.UpstreamFailed, errors.Overloaded),
        answers_lines=True,
    )


def _shown(status: str, **counts: int) -> Schema:
    ended = "2026-11-23T01:30:00.000000Z" if status == "ended" else None
    return {
        "id": _ID,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": dict.fromkeys(_COUNTS, 0) | counts,
        "created_at": "2026-11-23T01:00:00.000000Z",
        "expires_at": "2026-11-24T01:00:00.000000Z",
        "ended_at": ended,
        "archived_at": None,
        "cancel_initiated_at": "2026-11-23T01:10:00.000000Z" if status == "canceling" else None,
        "results_url": f"https://farebox.example/api/proxy/v1/messages/batches/{_ID}/results" if ended else None,
    }
