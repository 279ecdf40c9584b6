"""Access tokens of clouds: fetched with the operator's credential (RFC 6749, 7523), kept, renewed before they end.

However many calls want one, one renewal runs at a time. While it fails, the old token serves as long as it is good;
then calls fail as if the upstream could not be reached, and the next renewal waits a moment.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode, urlsplit

import msgspec

from farebox.http.client import HttpClient, read_origin
from farebox.http.failures import ConnectFailed, UpstreamError
from farebox.secret import Secret

_ANSWER_BYTES: Final = 64 * 1024
_TIMEOUT_S: Final = 10.0
_EARLY_S: Final = 300.0
"""So long before its end a token is renewed; at half its life if that is shorter."""
_REST_S: Final = 2.0
_WORDS_CHARS: Final = 200
_HEADERS: Final = [
    (b"content-type", b"application/x-www-form-urlencoded"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"identity"),
]


def is_private_way(url: str) -> bool:
    """Tell whether secrets may go to a URL: by https, or within this machine."""
    try:
        parts = urlsplit(url)
        read_origin(url)
    except ValueError:
        return False
    return parts.scheme == "https" or parts.hostname in {"127.0.0.1", "::1", "localhost"}


class _Granted(msgspec.Struct):
    access_token: str
    expires_in: float


class _Refused(msgspec.Struct):
    error: str = ""
    error_description: str = ""


class Tokens:
    """The token of one credential. `form` writes what is posted to `url`; it may take a millisecond."""

    def __init__(self, url: str, form: Callable[[], dict[str, str]]) -> None:
        """Raises ValueError for a URL that is none."""
        self._origin = read_origin(url)
        self._form = form
        self._client: HttpClient | None = None
        self._token = Secret("")
        self._renew_at = self._ends_at = 0.0
        self._rests_until = 0.0
        self._failure = "no access token yet"
        self._renewal: asyncio.Task[None] | None = None
        self.renewals = 0

    async def bearer(self) -> bytes:
        """Give the value of an `authorization` header. Raises ConnectFailed when no token can be had."""
        now = asyncio.get_running_loop().time()
        if now >= self._renew_at and self._renewal is None and now >= self._rests_until:
            self._renewal = asyncio.create_task(self._renew())
        if now >= self._ends_at:
            if self._renewal is not None:
                await asyncio.wait([self._renewal])  # whatever becomes of it: it may be closed meanwhile
            if asyncio.get_running_loop().time() >= self._ends_at:
                raise ConnectFailed(self._failure)
        return b"Bearer " + self._token.reveal().encode("latin-1")

    def forget(self) -> None:
        """Fetch another one for the next call: this one is not taken any more. At most once in a while."""
        if self._renewal is None and asyncio.get_running_loop().time() >= self._rests_until:
            self._renew_at = self._ends_at = 0.0

    async def close(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewal
        if self._client is not None:
            await self._client.close()

    async def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        self.renewals += 1
        try:
            async with asyncio.timeout(2 * _TIMEOUT_S):
                granted = await self._fetch()
        except (UpstreamError, TimeoutError) as error:
            self._failure = f"no access token from {self._origin.host}: {error or 'timed out'}"
        else:
            life_s = max(granted.expires_in, 1.0)
            self._token = Secret(granted.access_token)
            self._ends_at = loop.time() + life_s
            self._renew_at = self._ends_at - min(_EARLY_S, life_s / 2)
        finally:
            self._rests_until = loop.time() + _REST_S
            self._renewal = None

    async def _fetch(self) -> _Granted:
        if self._client is None:
            self._client = HttpClient(self._origin, connect_s=_TIMEOUT_S, connections=2, stall_s=_TIMEOUT_S)
        form = urlencode(self._form()).encode()
        answer = await self._client.request("POST", "", _HEADERS, form, first_byte_s=_TIMEOUT_S)
        body = await answer.read(_ANSWER_BYTES)
        try:
            if answer.status == 200:
                granted = msgspec.json.decode(body, type=_Granted, strict=False)  # Entra writes "3599" at times
                if granted.access_token.isascii() and granted.access_token.isprintable() and granted.access_token:
                    return granted
            refused = msgspec.json.decode(body, type=_Refused)
        except (msgspec.DecodeError, UnicodeDecodeError):
            refused = _Refused()
        words = f"{refused.error} {refused.error_description}".strip()[:_WORDS_CHARS]
        raise ConnectFailed(f"it answered {answer.status}{f': {words}' if words else ''}")
