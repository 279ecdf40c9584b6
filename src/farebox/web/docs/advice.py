"""What to do about each refusal: one row for every error of the tree in farebox.errors."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from farebox import errors
from farebox.errors import Refusal
from farebox.web.offer import Offer


class Advice(Struct, frozen=True):
    """A row of the table of errors. `again`: whether trying again within a minute can help (`x-should-retry`)."""

    status: int
    type: str
    when: str
    again: bool
    what_to_do: str


_WORDS: Final[dict[type[Refusal], tuple[str, str]]] = {
    errors.InvalidRequest: (
        "the request is malformed, asks for a model that is not sold, or for a feature that is not offered",
        "the message names the field and what would be right",
    ),
    errors.AuthenticationFailed: (
        "no key, a mistyped, unknown, revoked or expired one, or keys of two accounts",
        "check the key; keys carry a checksum, so a typo is told from an unknown key",
    ),
    errors.InsufficientBalance: (
        "the hold is more than your free balance, or than its key may still spend",
        "top up, raise the key's limit, or lower `max_tokens`; the message says how much is missing and what would fit",
    ),
    errors.PermissionDenied: (
        "the account is suspended; the key is disabled, or not for this model or address; the session was stopped",
        "the message says which it is, and where that can be changed",
    ),
    errors.NotFound: (
        "nothing is at that path, or no such model is listed",
        "the message says where calls go",
    ),
    errors.MethodNotAllowed: ("the path takes another method", "see the header `allow`"),
    errors.RequestTimeout: ("the request came too slowly", "send it in one go"),
    errors.RequestTooLarge: ("the body is over {body}", "send less"),
    errors.RateLimited: (
        "the requests, tokens or calls at once of your plan or key are used up; or the provider's limit is",
        "wait as `retry-after` says; the message tells whose limit it is",
    ),
    errors.InternalError: (
        "the gateway failed",
        "try again; if it stays, write to the operator with the request id",
    ),
    errors.UpstreamFailed: (
        "the provider did not answer, or not with anything usable, after all tries",
        "try again",
    ),
    errors.Unavailable: (
        "the books cannot be written at the moment, or the call took longer than {call} (free, unless you read slowly)",
        "try again",
    ),
    errors.Overloaded: ("the gateway or the provider is overloaded", "wait as `retry-after` says"),
}
_HEADERS_TOO_LARGE: Final = ("the headers are over {headers}, or more than 200", "send fewer")
"""Refused before there is a request, as an InvalidRequest of status 431 (RFC 6585)."""


def advice(offer: Offer) -> list[Advice]:
    """Give the table of errors, by status. Raises KeyError for a refusal that nobody has written advice for."""
    limits = offer.limits
    figures = {
        "body": write_size(limits.body_bytes),
        "headers": write_size(limits.header_bytes),
        "call": write_span(limits.call_s),
    }
    rows = [
        Advice(kind.status, kind.wire_type, when.format(**figures), kind.retry, what_to_do)
        for kind in _refusals(Refusal)
        for when, what_to_do in (_WORDS[kind],)
    ]
    when, what_to_do = _HEADERS_TOO_LARGE
    rows.append(
        Advice(431, errors.InvalidRequest.wire_type, when.format(**figures), again=False, what_to_do=what_to_do)
    )
    return sorted(rows, key=lambda row: row.status)


def _refusals(kind: type[Refusal]) -> Iterator[type[Refusal]]:
    for below in kind.__subclasses__():
        yield below
        yield from _refusals(below)


def write_size(size_bytes: int) -> str:
    """Write a size in the largest binary unit that needs no fraction."""
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if size_bytes % unit == 0 and size_bytes >= unit:
            return f"{size_bytes // unit:,} {name}"
    return f"{size_bytes:,} bytes"


def write_span(seconds: float) -> str:
    """Write a span of time in words: "an hour", "90 seconds"."""
    if seconds == 3600:
        return "an hour"
    if seconds >= 120 and seconds % 60 == 0:
        return f"{seconds / 60:,.0f} minutes"
    return "1 second" if seconds == 1 else f"{seconds:g} seconds"
