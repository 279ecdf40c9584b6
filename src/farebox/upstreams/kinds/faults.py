"""Errors of clouds, put in the envelope of the Messages API: the right status and type, and the words as they came.

What speaks of the operator's account, credential or set-up becomes an error of a type that no customer is shown and
that lets the pool go elsewhere. An error that is in the envelope already passes as it came.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from farebox.http.client import Answer
from farebox.http.exchange import Headers
from farebox.http.failures import BadAnswer
from farebox.upstreams.kinds.translated import Translated

JSON: Final = (b"content-type", b"application/json")
_BODY_BYTES: Final = 2**20
_STATUSES: Final[Mapping[str, int]] = {
    "ThrottlingException": 429,
    "TooManyRequestsException": 429,
    "ServiceQuotaExceededException": 429,
    "ModelNotReadyException": 503,
    "ModelTimeoutException": 408,
    "ModelErrorException": 502,
    "ModelStreamErrorException": 502,
    "InternalServerException": 500,
    "ServiceUnavailableException": 503,
    "ValidationException": 400,
    "AccessDeniedException": 403,
    "ExpiredTokenException": 403,
    "IncompleteSignatureException": 403,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "ResourceNotFoundException": 403,
    "UnrecognizedClientException": 403,
}
"""What AWS calls its errors (Bedrock Runtime, "Errors" of InvokeModel, and "Common errors"), as statuses here."""
_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OPERATORS_CODES: Final = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED"})
"""What Google says of a project that may not ask."""
_MODELS_CODES: Final = frozenset({"FAILED_PRECONDITION", "NOT_FOUND", "DeploymentNotFound", "api_not_supported"})
"""What Google and Azure say of a deployment or a model that was never set up."""
_OPERATORS_WORDS: Final = re.compile(
    r"The provided model identifier is invalid\.?|Operation not allowed\.?"
    r"|Invocation of model ID \S+ with on-demand throughput isn.t supported\.[^:]*"
    r"|Access to this model is not available for [^:]*"
)
"""Bedrock's ValidationExceptions about models that the operator's account has not. Only the whole counts, and that
without a colon: what begins so may be the name of a field that a customer made up, to have an upstream barred."""
_ACCOUNT: Final = re.compile(r"arn:aws[\w-]*(?::[^\s:]*){4,}|\bprojects/[\w.-]+(?::[\w-]+)?")
"""What names the operator's account or project within words that are otherwise the customer's to see."""
_DROPPED: Final = frozenset(
    {b"content-type", b"content-length", b"content-encoding", b"transfer-encoding", b"connection", b"keep-alive"}
)
_DROPPED_PREFIXES: Final = (b"x-amz-", b"x-amzn-", b"x-goog-", b"x-vertex-", b"x-ms-", b"apim-", b"azureml-")


def shown(headers: Headers) -> Headers:
    """Leave out of an answer's headers what a cloud says of itself and of the operator's account there."""
    return [field for field in headers if not field[0].startswith(_DROPPED_PREFIXES)]


def reshown(headers: Headers, content_type: bytes) -> Headers:
    """Give the headers of an answer whose body is written anew."""
    kept = [field for field in shown(headers) if field[0] not in _DROPPED]
    return [*kept, (b"content-type", content_type)]


def fault(answer: Answer) -> Translated:
    """Put an error in the words of the Messages API."""
    code = (answer.header(b"x-amzn-errortype") or b"").decode("latin-1")
    code = code.partition(":")[0].rpartition("#")[2]
    status = _STATUSES.get(code) or (502 if answer.status == 424 else answer.status)
    return Translated(answer, status, reshown(answer.headers, JSON[1]), _Envelope(status, code))


def aws_event(code: str, headers: Mapping[str, str], payload: bytes) -> bytes:
    """Put an error that comes in the middle of Bedrock's stream as the Messages API does."""
    name = code[:1].upper() + code[1:]
    status = _STATUSES.get(name, 500)
    words = headers.get(":error-message") or _read(payload)[1] or f"the upstream broke off: {name[:100] or 'error'}"
    return b"event: error\ndata: %b\n\n" % _envelope(status, name, words)


class _Envelope:
    """A `Decoder` of the body of an error."""

    def __init__(self, status: int, code: str) -> None:
        self._status = status
        self._code = code
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size > _BODY_BYTES:
            raise BadAnswer(f"the upstream's error is larger than {_BODY_BYTES} bytes")
        self._parts.append(data)
        return b""

    def end(self) -> bytes:
        body = b"".join(self._parts)
        code, words = _read(body)
        if code is None:
            return body
        return _envelope(self._status, self._code or code, words or f"the upstream answered {self._status}")


def _envelope(status: int, code: str, words: str) -> bytes:
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    if code in _OPERATORS_CODES:
        kind = "billing_error"  # this and the next are shown to the operator alone
    elif code in _MODELS_CODES or (status == 400 and _OPERATORS_WORDS.fullmatch(words)):
        kind = "permission_error"
    else:
        words = _ACCOUNT.sub("…", words)
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": words}})


def _read(body: bytes) -> tuple[str | None, str]:
    """Read code and words of an error, whoever wrote it. The code is None for one in the envelope already."""
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", ""
    if isinstance(said, list) and said:  # as Google's streams have it
        said = said[0]
    if not isinstance(said, dict):
        return "", ""
    error = said.get("error")
    if not isinstance(error, dict):
        words = said.get("message") or said.get("Message")
        return _text(said.get("__type")).rpartition("#")[2], _text(words) or _text(error)
    if said.get("type") == "error" and isinstance(error.get("type"), str) and isinstance(error.get("message"), str):
        return None, ""
    return _text(error.get("status")) or _text(error.get("code")), _text(error.get("message"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
