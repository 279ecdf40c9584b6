"""Google Vertex AI: model and verb in the path, the API version in the body, tokens for a service account.

Sources: Google, "Claude on Vertex AI" and "Using OAuth 2.0 for server to server applications"; the client
AnthropicVertex of Anthropic's SDK.
"""

import base64
import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from farebox.errors import NotFound
from farebox.http.client import Answer
from farebox.secret import Secret
from farebox.upstreams.kinds.bodies import beside, with_fields
from farebox.upstreams.kinds.clouds import VERSION, upward, version_of, with_betas
from farebox.upstreams.kinds.faults import fault, shown
from farebox.upstreams.kinds.kind import COUNT_TOKENS, MESSAGES, Ask, Outgoing, Reply
from farebox.upstreams.kinds.tokens import Tokens, is_private_way

_FIRST_VERSION: Final = "vertex-2023-10-16"
_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_ASSERTION_S: Final = 3600


class ServiceAccount(msgspec.Struct, frozen=True):
    """The key file of a service account, as Google hands it out."""

    client_email: str
    private_key: str
    private_key_id: str = ""
    project_id: str = ""
    token_uri: str = "https://oauth2.googleapis.com/token"  # noqa: S105


class Assertions:
    """Writes the assertions (RFC 7523) that tokens of a service account are had for."""

    def __init__(self, account: ServiceAccount, now_s: Callable[[], float] = time.time) -> None:
        """Raises ValueError for a key that cannot sign."""
        self._account = account
        self._now_s = now_s
        try:
            key = serialization.load_pem_private_key(account.private_key.encode(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError("holds a private_key that cannot be read") from None
        if not isinstance(key, RSAPrivateKey):
            raise ValueError("holds a private_key that is not of RSA")  # noqa: TRY004
        self._key = key

    def form(self) -> dict[str, str]:
        """Write what is posted for a token."""
        now = int(self._now_s())
        head = {"alg": "RS256", "typ": "JWT"}
        if self._account.private_key_id:
            head["kid"] = self._account.private_key_id
        claims = {
            "iss": self._account.client_email,
            "scope": _SCOPE,
            "aud": self._account.token_uri,
            "iat": now,
            "exp": now + _ASSERTION_S,
        }
        text = b".".join(_base64url(msgspec.json.encode(part)) for part in (head, claims))
        signature = self._key.sign(text, padding.PKCS1v15(), hashes.SHA256())
        return {"grant_type": _GRANT, "assertion": (text + b"." + _base64url(signature)).decode()}


def read_service_account(secret: Secret) -> ServiceAccount:
    """Read a key file. Raises ValueError, whose words never quote it."""
    try:
        account = msgspec.json.decode(secret.reveal(), type=ServiceAccount)
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise ValueError("is not the key file of a service account: JSON with client_email and private_key") from None
    if not is_private_way(account.token_uri):
        raise ValueError("holds a token_uri that is no https:// URL")
    Assertions(account)
    return account


class Vertex:
    """Vertex AI in one project and one location."""

    speaks_messages = True

    def __init__(self, tokens: Tokens, *, project: str, region: str, betas: Mapping[str, str]) -> None:
        self.tokens = tokens
        self._models = f"/v1/projects/{project}/locations/{region}/publishers/anthropic/models/"
        self._betas = betas

    def has(self, path: str) -> bool:
        return path in {MESSAGES, COUNT_TOKENS}

    async def prepare(self, ask: Ask, name: str) -> Outgoing:
        version = version_of(ask.headers, _FIRST_VERSION)
        if ask.path == COUNT_TOKENS:
            target = f"{self._models}count-tokens:rawPredict"
            body = await beside(ask.body, with_fields, model=name, anthropic_version=version)
        elif ask.path == MESSAGES:
            target = f"{self._models}{quote(name, safe='@')}:{'streamRawPredict' if ask.stream else 'rawPredict'}"
            body = await beside(ask.body, with_fields, model=None, anthropic_version=version)
        else:
            raise NotFound(f"{ask.path} is not served by this upstream")
        headers = with_betas(upward(ask.headers, frozenset({VERSION})), self._betas)
        return Outgoing("POST", target, [*headers, (b"authorization", await self.tokens.bearer())], body)

    def reply(self, ask: Ask, answer: Answer) -> Reply:  # noqa: ARG002
        if answer.status == 401:
            self.tokens.forget()
        if answer.status >= 400:
            return fault(answer)
        answer.headers = shown(answer.headers)
        return answer

    async def close(self) -> None:
        await self.tokens.close()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
