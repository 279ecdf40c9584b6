"""Sign-in with another provider: GitHub, Google, or any that speaks OpenID Connect. The way there and back.

The authorization code flow with PKCE (RFC 7636), state and nonce. What a provider says is taken from its own server by
our own request over TLS, never from the browser; an ID token that came this way needs no check of its signature
(OpenID Connect Core 1.0, 3.1.3.7 (6)), its claims are checked all the same. Decision 0013 says why it is done by hand.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from farebox.clock import US_PER_S
from farebox.errors import FareboxError
from farebox.http.errands import Errands
from farebox.http.failures import UpstreamError
from farebox.secret import Secret

_WITHIN_S: Final = 10.0
_MOST_BYTES: Final = 256 * 1024
_FRESH_US: Final = 3600 * US_PER_S
_SKEW_S: Final = 120
_GOOGLE: Final = "https://accounts.google.com"
_GITHUB: Final = "https://github.com"
_SUBJECT_CHARS: Final = 255


class ProviderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A provider that people may sign in with. `issuer` is for kind "oidc", and for a GitHub of one's own."""

    name: Annotated[
        str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,30}$", description="up to 31 of a-z, 0-9 and -, a letter first")
    ]
    kind: Literal["github", "google", "oidc"]
    client_id: Annotated[str, msgspec.Meta(min_length=1)]
    client_secret: Secret = Secret("")
    issuer: str = ""
    title: str = ""

    @property
    def shown(self) -> str:
        """What people know it by."""
        return self.title or {"github": "GitHub", "google": "Google"}.get(self.kind, self.name.capitalize())


class ProviderFailed(FareboxError):
    """A provider did not do its part; the words are for the person who waits for it."""


class Departure(msgspec.Struct, frozen=True):
    """How somebody leaves for a provider: what they come back with, and what is checked then."""

    url: str
    state: str
    verifier: str
    nonce: str


class Persona(msgspec.Struct, frozen=True):
    """Whom a provider says somebody is. `email` is empty unless the provider has proof of it."""

    subject: str
    name: str
    email: str


class _Places(msgspec.Struct, frozen=True):
    """Where a provider is spoken to."""

    issuer: str
    authorize: str
    token: str
    user: str
    by_post: bool
    """Whether the secret goes in the form instead of a header."""


class Provider:
    """One provider. `callback` is the page of ours that it sends people back to."""

    def __init__(self, settings: ProviderSettings, errands: Errands, callback: str) -> None:
        self.name = settings.name
        self.shown = settings.shown
        self._settings = settings
        self._errands = errands
        self._callback = callback
        self._known: tuple[_Places, int] | None = None

    async def depart(self, now_us: int) -> Departure:
        """Make ready to send somebody there. Raises ProviderFailed."""
        places = await self._places(now_us)
        state, verifier, nonce = (secrets.token_urlsafe(32) for _ in range(3))
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._callback,
            "scope": "read:user user:email" if self._settings.kind == "github" else "openid email profile",
            "state": state,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        if self._settings.kind != "github":
            query["nonce"] = nonce
        joint = "&" if "?" in places.authorize else "?"
        return Departure(f"{places.authorize}{joint}{urlencode(query)}", state, verifier, nonce)

    async def arrive(self, code: str, verifier: str, nonce: str, now_us: int) -> Persona:
        """Ask the provider whom it has sent back. Raises ProviderFailed."""
        places = await self._places(now_us)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
            "code_verifier": verifier,
            "client_id": self._settings.client_id,
        }
        secret = self._settings.client_secret.reveal()
        headers = {"content-type": "application/x-www-form-urlencoded"}
        if secret and places.by_post:
            form["client_secret"] = secret
        elif secret:  # RFC 6749 2.3.1: both are encoded as in a form first
            pair = f"{quote(self._settings.client_id, safe='')}:{quote(secret, safe='')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        answer = await self._ask("POST", places.token, headers, urlencode(form).encode())
        token = _text(answer, "access_token")
        if not token or not token.isascii() or not token.isprintable():
            raise self._failed("gave no access token")
        if self._settings.kind == "github":
            return await self._at_github(places, token)
        return await self._by_claims(places, answer, token, nonce, now_us)

    async def _at_github(self, places: _Places, token: str) -> Persona:
        """GitHub speaks OAuth alone: who it is, its API tells (docs.github.com, REST API, users and emails)."""
        headers = {"authorization": f"Bearer {token}"}
        user = await self._ask("GET", places.user, headers)
        emails = await self._ask("GET", f"{places.user}/emails", headers, want=list)
        proven = [one for one in emails if isinstance(one, dict) and one.get("verified") is True]
        email = next((_text(one, "email") for one in proven if one.get("primary") is True), "")
        if not isinstance(user.get("id"), int):
            raise self._failed("did not say who you are")
        return Persona(str(user["id"]), _text(user, "login"), email)

    async def _by_claims(
        self, places: _Places, answer: Mapping[str, Any], token: str, nonce: str, now_us: int
    ) -> Persona:
        """OpenID Connect: the ID token says who it is; what it leaves out, the UserInfo endpoint may say."""
        claims = _claims(_text(answer, "id_token"))
        audience = claims.get("aud")
        ours = self._settings.client_id
        expires = claims.get("exp")
        wrong = [
            words
            for is_wrong, words in (
                (claims.get("iss") != places.issuer, "its issuer"),
                (ours not in (audience if isinstance(audience, list) else [audience]), "its audience"),
                (isinstance(audience, list) and len(audience) > 1 and claims.get("azp") != ours, "its audience"),
                (not isinstance(expires, int | float) or expires + _SKEW_S < now_us // US_PER_S, "its time"),
                (not secrets.compare_digest(_text(claims, "nonce").encode(), nonce.encode()), "its nonce"),
                (not 0 < len(_text(claims, "sub")) <= _SUBJECT_CHARS, "its subject"),
            )
            if is_wrong
        ]
        if wrong:
            raise self._failed(f"sent an ID token that is not for this sign-in ({wrong[0]})")
        if "email" not in claims and places.user:
            more = await self._ask("GET", places.user, {"authorization": f"Bearer {token}"})
            if more.get("sub") == claims["sub"]:
                claims = {**more, **claims}
        email = _text(claims, "email") if claims.get("email_verified") is True else ""
        name = _text(claims, "preferred_username") or _text(claims, "email") or _text(claims, "name") or claims["sub"]
        return Persona(claims["sub"], name, email)

    async def _places(self, now_us: int) -> _Places:
        """Find out where the provider is spoken to; asked again after an hour (OpenID Connect Discovery 1.0, 4)."""
        if self._known is None or now_us - self._known[1] > _FRESH_US:
            self._known = (await self._discover(), now_us)
        return self._known[0]

    async def _discover(self) -> _Places:
        kind, issuer = self._settings.kind, self._settings.issuer.rstrip("/")
        if kind == "github":
            base = issuer or _GITHUB
            api = f"{base}/api/v3" if issuer else "https://api.github.com"
            tokens = f"{base}/login/oauth/access_token"
            return _Places(base, f"{base}/login/oauth/authorize", tokens, f"{api}/user", by_post=True)
        base = issuer or _GOOGLE
        told = await self._ask("GET", f"{base}/.well-known/openid-configuration", {})
        found = {key: _text(told, key) for key in ("issuer", "authorization_endpoint", "token_endpoint")}
        if found["issuer"].rstrip("/") != base:
            raise self._failed("goes by another name than it is configured with")
        user = _text(told, "userinfo_endpoint")
        for url in (*list(found.values())[1:], *([user] if user else [])):
            if not is_trustworthy(url):
                raise self._failed("names an address that is not https")
        methods = told.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return _Places(
            found["issuer"],
            found["authorization_endpoint"],
            found["token_endpoint"],
            user,
            by_post=isinstance(methods, list) and "client_secret_basic" not in methods,
        )

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"", *, want: type = dict
    ) -> Any:
        """Ask for JSON. Raises ProviderFailed."""
        sent = {"accept": "application/json", "user-agent": "Farebox", **headers}
        try:
            reply = await self._errands.run(method, url, sent, body, within_s=_WITHIN_S, most_bytes=_MOST_BYTES)
            told = json.loads(reply.body)
        except (UpstreamError, ValueError, RecursionError) as error:
            raise self._failed("cannot be reached, or answers what cannot be read") from error
        if reply.status != 200 or not isinstance(told, want):
            raise self._failed(f"answered {reply.status}")
        return told

    def _failed(self, words: str) -> ProviderFailed:
        return ProviderFailed(f"{self.shown} {words}; try again, or sign in with your password")


def is_trustworthy(url: str) -> bool:
    """Tell whether secrets may be sent to a URL: by TLS, or to this very machine."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"})
        )
    except ValueError:
        return False


def _claims(token: str) -> dict[str, Any]:
    """Read what an ID token says (RFC 7519); nothing where it is none."""
    pieces = token.split(".")
    if len(pieces) != 3:
        return {}
    try:
        told = json.loads(base64.urlsafe_b64decode(pieces[1] + "=" * (-len(pieces[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _text(told: Mapping[str, Any], key: str) -> str:
    value = told.get(key)
    return value if isinstance(value, str) else ""
