"""How an endpoint of the API for customers is described, and what every one of them may be refused with."""

from typing import Any, Final, Literal

from msgspec import Struct

from farebox import errors
from farebox.errors import Refusal

Schema = dict[str, Any]
"""A JSON Schema (draft 2020-12), as OpenAPI 3.1 takes it."""


class Field(Struct, frozen=True):
    """A field that a request may carry, and what it means here."""

    name: str
    schema: Schema
    words: str
    required: bool = False
    place: Literal["body", "query", "path"] = "body"

    @property
    def kind(self) -> str:
        """Its type in words: "string", "string or array"."""
        kinds = [self.schema] if "type" in self.schema else self.schema["anyOf"]
        return " or ".join(kind["type"] for kind in kinds)


class Endpoint(Struct, frozen=True):
    """One thing to ask the gateway for. `path` is below the base URL."""

    slug: str
    method: Literal["GET", "POST", "DELETE"]
    path: str
    title: str
    words: str
    fields: tuple[Field, ...]
    example: Schema | None
    """A request's body; None where there is none."""
    answer: Schema
    answer_example: Schema
    refusals: tuple[type[Refusal], ...]
    streams: bool = False
    only_streams: bool = False
    """The answer is a stream, and never a whole."""
    passes_on: bool = False
    """What a provider refuses with is passed on."""
    answers_text: bool = False
    """The answer is a line of text, and JSON to who accepts it."""

    answers: str = ""
    """The media type of an answer that is neither JSON nor text."""
    takes: Literal["application/json", "multipart/form-data"] = "application/json"
    """The media type of its body."""

    error: Literal["Error", "ChatError"] = "Error"
    """The shape of its errors."""
    answers_lines: bool = False
    """The answer is one such value a line."""

    @property
    def body(self) -> tuple[Field, ...]:
        return tuple(field for field in self.fields if field.place == "body")


EVERYWHERE: Final = (
    errors.InvalidRequest,
    errors.AuthenticationFailed,
    errors.PermissionDenied,
    errors.InternalError,
    errors.Unavailable,
)
WITH_A_BODY: Final = (
    *EVERYWHERE,
    errors.NotFound,
    errors.RequestTimeout,
    errors.RequestTooLarge,
    errors.RateLimited,
    errors.Overloaded,
)
