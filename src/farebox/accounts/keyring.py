"""Who is calling: keys looked up by their hash, cached until anything about keys or accounts changes.

The cache only spares look-ups. Whether a key still counts is decided again inside every hold, by the ledger.
"""

from typing import Final

import msgspec

from farebox.errors import AuthenticationFailed, PermissionDenied
from farebox.http.server import Headers
from farebox.ids import key_hash, key_is_well_formed
from farebox.store.protocol import Store

_CACHED: Final = 50_000
_LOOK_UP: Final = (
    "SELECT k.id, k.account_id, k.expires_at, k.revoked_at, a.status, a.plan, a.requests_full_ns, a.tokens_full_ns "
    "FROM api_key k JOIN account a ON a.id = k.account_id WHERE k.hash = ?"
)


class Caller(msgspec.Struct, frozen=True):
    """The account behind a key. The bucket states are those of the moment it was looked up."""

    key_id: int
    account_id: int
    expires_at_us: int | None
    revoked_at_us: int | None
    status: str
    plan: str
    requests_full_ns: int
    tokens_full_ns: int


class KeyRing:
    """Answers who is behind the credentials of a request."""

    def __init__(self, store: Store, prefix: str, support_email: str) -> None:
        self._store = store
        self._prefix = prefix
        self._support_email = support_email
        self._callers: dict[bytes, Caller] = {}

    def forget(self) -> None:
        """Look everything up again: keys or accounts have changed."""
        self._callers.clear()

    async def authenticate(self, headers: Headers, now_us: int) -> Caller:
        """Give the caller of a request. Raises AuthenticationFailed or PermissionDenied, saying what to do.

        Claude Code sends both headers with different values: the one that is a gateway key wins. Two valid keys of
        different accounts are refused rather than guessed between.
        """
        keys, seen = self._keys(headers)
        if not keys:
            raise AuthenticationFailed(self._no_key_words(seen))
        callers = [caller for key in keys if (caller := await self._look_up(key)) is not None]
        if not callers:
            raise AuthenticationFailed("this API key is not known here; check it, or make a new one in the dashboard")
        if len({caller.account_id for caller in callers}) > 1:
            raise AuthenticationFailed("x-api-key and authorization carry keys of two accounts; send one of them")
        usable = [caller for caller in callers if caller.revoked_at_us is None]
        if not usable:
            raise AuthenticationFailed("this API key has been revoked; make a new one in the dashboard")
        caller = usable[0]
        if caller.expires_at_us is not None and now_us >= caller.expires_at_us:
            raise AuthenticationFailed("this API key has expired; make a new one in the dashboard")
        if caller.status != "active":
            raise PermissionDenied(f"this account is {caller.status}; write to {self._support_email}")
        return caller

    def _keys(self, headers: Headers) -> tuple[list[str], bool]:
        keys: list[str] = []
        seen = False
        for name, value in headers:
            if name == b"x-api-key":
                text = value.strip()
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                text = value[7:].strip()
            else:
                continue
            key = text.decode("latin-1")
            seen = seen or bool(key)
            if key not in keys and key_is_well_formed(key, self._prefix):
                keys.append(key)
        return keys[:2], seen

    def _no_key_words(self, seen: bool) -> str:  # noqa: FBT001
        if seen:
            return (
                f"this is not an API key of this gateway: they begin with {self._prefix} and carry a checksum, "
                "so a typo or a missing character shows; copy it again, or make a new one in the dashboard"
            )
        return f"an API key is needed: send it as x-api-key or as authorization: Bearer {self._prefix}…"

    async def _look_up(self, key: str) -> Caller | None:
        digest = key_hash(key)
        caller = self._callers.get(digest)
        if caller is None:
            rows = await self._store.fetch(_LOOK_UP, (digest,))
            if not rows:
                return None
            caller = Caller(*rows[0])
            if len(self._callers) >= _CACHED:
                self._callers.clear()
            self._callers[digest] = caller
        return caller
