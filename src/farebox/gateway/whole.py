"""Answers that are one JSON body, read as far as money and routing go. The rest of them is the client's alone.

What is not looked at is skipped, not decoded: numbers no float holds or bytes that are no text may stand there.
"""

from typing import Any, Final

import msgspec

from farebox.http.surrogates import without_halves
from farebox.upstreams.refusals import Matter

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_OPERATORS_ACCOUNT: Final = ("Your credit balance is too low", "You have reached your specified API usage limits")
"""How the API's own 400s about the operator's account begin (Messages API, "errors"): no business of a customer."""


class WholeAnswer(msgspec.Struct):
    """A message: what it used, and what it is called."""

    usage: Any = None
    type: Any = None
    model: Any = None
    id: Any = None
    stop_reason: Any = None


class WireError(msgspec.Struct):
    """What an error envelope says."""

    type: str
    message: str


class _Envelope(msgspec.Struct):
    error: WireError


_answers: Final = msgspec.json.Decoder(WholeAnswer)
_envelopes: Final = msgspec.json.Decoder(_Envelope)


def read_answer(body: bytes) -> WholeAnswer | None:
    """Read a message, which may say nothing usable of what it used. None where it is none."""
    answer: WholeAnswer | None = _decode(_answers, body)
    return answer if answer is not None and (answer.type == "message" or isinstance(answer.usage, dict)) else None


def read_error(body: bytes) -> WireError | None:
    """Read an error envelope; None where the body is none."""
    envelope: _Envelope | None = _decode(_envelopes, body)
    return envelope.error if envelope is not None else None


def operators_own(error_body: bytes) -> Matter | None:
    """Tell whether an upstream's error is the operator's: about the account, or about a model that was not set up.

    Only its type and how its message begins count: further on it may quote the customer, who could else have an
    upstream taken for broke.
    """
    error = read_error(error_body)
    if error is None:
        return None
    if error.type == "billing_error" or error.message.startswith(_OPERATORS_ACCOUNT):
        return "account"
    return "model" if error.type == "permission_error" else None


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    body = body.removeprefix(_BYTE_ORDER_MARK)
    try:
        try:
            return decoder.decode(body)
        except msgspec.DecodeError:
            readable = without_halves(body)
            return decoder.decode(readable) if readable is not None else None
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
