"""AWS Signature Version 4 for requests whose whole body is known. Pure: what to sign comes in, what to add goes out.

Source: AWS, "Create a signed AWS API request". Paths are signed encoded twice, as every service but S3 wants them.
"""

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, quote

import msgspec

from farebox.http.exchange import Headers
from farebox.secret import Secret

_ALGORITHM: Final = "AWS4-HMAC-SHA256"


class AwsKey(msgspec.Struct, frozen=True):
    """What a principal of AWS signs with; temporary ones have a session token."""

    access_key_id: str
    secret_access_key: Secret
    session_token: Secret = Secret("")


def sign(
    method: str,
    path: str,
    query: str,
    headers: Headers,
    body_sha256: str,
    *,
    key: AwsKey,
    region: str,
    service: str,
    at_s: float,
) -> Headers:
    """Give the headers that a request needs besides `headers`, all of which are signed; `host` must be among them.

    `path` and `query` are as they stand on the wire: percent-encoded, the query by `signable_query`, without dot
    segments. `at_s` is in seconds since 1970.
    """
    moment = datetime.fromtimestamp(at_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    added: Headers = [(b"x-amz-date", moment.encode())]
    if key.session_token:
        added.append((b"x-amz-security-token", key.session_token.reveal().encode("latin-1")))
    signed = sorted((name.decode("latin-1"), _trimmed(value)) for name, value in [*headers, *added])
    names = ";".join(name for name, _ in signed)
    request = "\n".join(
        (
            method,
            quote(path, safe="/~") or "/",
            "&".join(sorted(query.split("&"), key=_by_name)),
            *(f"{name}:{value}" for name, value in signed),
            "",
            names,
            body_sha256,
        )
    )
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(request.encode("latin-1")).hexdigest()
    text = f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}"
    signing_key = f"AWS4{key.secret_access_key.reveal()}".encode()
    for part in (moment[:8], region, service, "aws4_request"):
        signing_key = _hmac(signing_key, part)
    signature = _hmac(signing_key, text).hex()
    credential = f"{_ALGORITHM} Credential={key.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return [*added, (b"authorization", credential.encode("latin-1"))]


def signable_query(query: str) -> str:
    """Write a query so that nobody can read it in two ways: every character but the plain ones percent-encoded."""
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    return "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in pairs)


def _quoted(text: str) -> str:
    return quote(text, safe="~", errors="surrogateescape")


def _by_name(pair: str) -> tuple[str, str]:
    name, _, value = pair.partition("=")
    return name, value


def _trimmed(value: bytes) -> str:
    return " ".join(value.decode("latin-1").split())


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
