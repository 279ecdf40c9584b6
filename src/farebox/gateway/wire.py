"""The wire: what may cross between client and upstream, and what a request asks for as far as money goes.

Bodies cross as they came (promise 8). Headers cross by the lists below, which docs/headers.md explains line by line.
The request is decoded only in part, to bound its cost; the decoded copy is never sent anywhere.
"""

import json
from typing import Any, Final

import msgspec

from farebox.errors import InvalidRequest
from farebox.http.server import Headers

REQUEST_HEADERS_DROPPED: Final = frozenset(
    {
        # credentials: the gateway's key stays here, the upstream gets the operator's
        b"authorization", b"x-api-key", b"cookie", b"proxy-authorization",
        # about this connection, not about the request (RFC 9110 7.6.1)
        b"host", b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"content-length", b"expect", b"http2-settings",
        # who is behind the gateway
        b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port",
        b"x-forwarded-prefix", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip", b"via",
        # the answer must be readable by the meter
        b"accept-encoding",
        # these choose an account of the operator's
        b"anthropic-workspace-id", b"anthropic-organization-id", b"anthropic-user-profile-id",
        # a browser's origin is for this gateway to judge
        b"origin", b"referer",
    }
)  # fmt: skip

RESPONSE_HEADERS_DROPPED: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"content-length", b"date", b"server", b"via", b"alt-svc", b"set-cookie", b"strict-transport-security",
        b"proxy-authenticate", b"www-authenticate", b"report-to", b"nel", b"x-robots-tag", b"cf-ray",
        b"cf-cache-status",
        # ours stand in their place
        b"request-id", b"x-should-retry", b"retry-after", b"retry-after-ms",
        # name the operator's account
        b"anthropic-organization-id", b"anthropic-workspace-id",
    }
)  # fmt: skip
DEFAULT_VERSION: Final = b"2023-06-01"
"""For clients that name no API version, as plain cURL lines do; the API itself requires one."""
RESPONSE_PREFIXES_DROPPED: Final = (b"anthropic-ratelimit-", b"anthropic-priority-", b"anthropic-fast-")


def upstream_headers(headers: Headers) -> Headers:
    """Choose what of a client's headers goes up; asks for an answer without compression."""
    named = b",".join(value.lower() for name, value in headers if name == b"connection")
    hop = frozenset(part.strip() for part in named.split(b",")) if named else frozenset()
    kept = [
        field
        for field in headers
        if field[0] not in REQUEST_HEADERS_DROPPED and (not hop or field[0] not in hop or field[0] == b"content-type")
    ]
    kept.append((b"accept-encoding", b"identity"))
    if not any(name == b"anthropic-version" for name, _ in kept):
        kept.append((b"anthropic-version", DEFAULT_VERSION))
    return kept


def client_headers(headers: Headers) -> Headers:
    """Choose what of an upstream's headers comes down."""
    return [
        field
        for field in headers
        if field[0] not in RESPONSE_HEADERS_DROPPED and not field[0].startswith(RESPONSE_PREFIXES_DROPPED)
    ]


class Asked(msgspec.Struct):
    """The fields of a request that matter here. Everything else is the upstream's business."""

    model: str
    messages: msgspec.Raw
    max_tokens: int | None = None
    stream: bool | None = None
    temperature: float | None = None
    system: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    thinking: msgspec.Raw = msgspec.Raw()
    metadata: msgspec.Raw = msgspec.Raw()
    cache_control: msgspec.Raw = msgspec.Raw()
    mcp_servers: msgspec.Raw = msgspec.Raw()
    fallbacks: msgspec.Raw = msgspec.Raw()
    fallback_credit_token: msgspec.Raw = msgspec.Raw()
    thread: msgspec.Raw = msgspec.Raw()
    compaction: msgspec.Raw = msgspec.Raw()
    context_management: msgspec.Raw = msgspec.Raw()
    container: msgspec.Raw = msgspec.Raw()
    user_profile_id: msgspec.Raw = msgspec.Raw()
    billing_policy: msgspec.Raw = msgspec.Raw()
    workspace_id: msgspec.Raw = msgspec.Raw()
    speed: str | None = None
    inference_geo: str | None = None


_asked: Final = msgspec.json.Decoder(Asked)


def read_request(body: bytes) -> Asked:
    """Decode what matters of a Messages request. Raises InvalidRequest in words that name the field."""
    try:
        asked = _asked.decode(body)
        if not body.isascii():
            body.decode()
    except msgspec.ValidationError as error:
        raise InvalidRequest(_validation_words(str(error))) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8: see byte {error.start}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply; at most 500 levels are read") from None
    _refuse_duplicates(body, asked)
    if present(asked.messages) and bytes(asked.messages)[:1] != b"[":
        raise InvalidRequest("messages: an array of messages is required")
    if asked.temperature is not None and not 0 <= asked.temperature <= 1:
        raise InvalidRequest(f"temperature must be 0…1, got {asked.temperature:g}")
    return asked


def present(field: msgspec.Raw) -> bool:
    """Tell whether a field was sent with a value other than null."""
    return len(bytes(field)) > 0 and bytes(field) != b"null"


def with_max_tokens(body: bytes, max_tokens: int) -> bytes:
    """Insert max_tokens into a body that has none: the one change ever made to a body."""
    at = body.index(b"{") + 1
    return b'%b"max_tokens":%d,%b' % (body[:at], max_tokens, body[at:])


def _validation_words(error: str) -> str:
    """Turn "Expected `int`, got `str` - at `$.max_tokens`" into the API's way of naming a field first."""
    what, _, where = error.partition(" - at `$")
    if "missing required field" in what:
        return f"{what.split('`')[1]}: field required"
    field = where.rstrip("`").lstrip(".")
    return f"{field}: {what.replace('`', '')}" if field else f"the body must be a JSON object: {what.replace('`', '')}"


def _refuse_duplicates(body: bytes, asked: Asked) -> None:
    """Refuse a field that is given twice: whoever reads it second might read another price than we did.

    The large values are cut out first, so that looking at the rest costs next to nothing.
    """
    rest = body
    for field in (asked.messages, asked.system, asked.tools):
        value = bytes(field)
        if len(value) > 64:
            at = rest.find(value[:64])
            if rest.startswith(value, at):
                rest = b"%b0%b" % (rest[:at], rest[at + len(value) :])
    try:
        json.loads(rest, object_pairs_hook=_no_duplicates)
    except _DuplicateField as error:
        raise InvalidRequest(f"{error}: the field is given twice; give it once") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply; at most 500 levels are read") from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


class _DuplicateField(Exception):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        raise _DuplicateField(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return fields
