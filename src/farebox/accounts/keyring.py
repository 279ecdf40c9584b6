"""Who is calling: keys looked up by their hash, cached until anything about keys or accounts changes.

The cache only spares look-ups. Whether a key still counts is decided again inside every hold, by the ledger.
"""

from typing import Final

import msgspec

from farebox.errors import AuthenticationFailed, PermissionDenied
from farebox.http.exchange import Headers
from farebox.ids import key_hash, key_is_well_formed
from farebox.store.protocol import Store

_CACHED: Final = 50_000
_CREDENTIALS: Final = 4
_PATIENCE_S: Final = 1.5
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

    def __init__(self, store: Store, prefix: str, support_email: str, keys_url: str) -> None:
        self._store = store
        self._prefix = prefix
        self._support_email = support_email
        self._keys_url = keys_url
        """Where customers make keys."""
        self._callers: dict[bytes, Caller] = {}
        self._generation = 0

    def forget(self) -> None:
        """Look everything up again: keys or accounts have changed."""
        self._generation += 1
        self._callers.clear()

    async def authenticate(self, headers: Headers, now_us: int) -> Caller:
        """Give the caller of a request. Raises AuthenticationFailed or PermissionDenied, saying what to do.

        Claude Code sends both headers with different values: the one that is a gateway key wins. Two valid keys of
        different accounts are refused rather than guessed between.
        """
        sent = _sent(headers)
        callers = []
        for text in sent:
            digest = key_hash(text)
            caller = self._callers.get(digest) or await self._look_up(text, digest)
            if caller is not None:
                callers.append(caller)
        if not callers:
            raise AuthenticationFailed(self._no_caller_words(sent))
        if len(callers) > 1 and len({caller.account_id for caller in callers}) > 1:
            raise AuthenticationFailed("x-api-key and authorization carry keys of two accounts; send one of them")
        usable = [caller for caller in callers if caller.revoked_at_us is None]
        if not usable:
            raise AuthenticationFailed(f"this API key has been revoked; make a new one at {self._keys_url}")
        caller = usable[0]
        if caller.expires_at_us is not None and now_us >= caller.expires_at_us:
            raise AuthenticationFailed(f"this API key has expired; make a new one at {self._keys_url}")
        if caller.status != "active":
            raise PermissionDenied(f"this account is {caller.status}; write to {self._support_email}")
        return caller

    def _no_caller_words(self, sent: list[bytes]) -> str:
        if not sent:
            return (
                f"an API key is needed: send it as x-api-key or as authorization: Bearer {self._prefix}…; "
                f"keys are made at {self._keys_url}"
            )
        if any(key_is_well_formed(text.decode("latin-1"), self._prefix) for text in sent):
            return f"this API key is not known here; check it, or make a new one at {self._keys_url}"
        return (
            f"this is not an API key of this gateway: they begin with {self._prefix} and carry a checksum, "
            "so a typo or a missing character shows; copy it again"
        )

    async def _look_up(self, text: bytes, digest: bytes) -> Caller | None:
        if not key_is_well_formed(text.decode("latin-1"), self._prefix):
            return None
        generation = self._generation
        rows = await self._store.fetch(_LOOK_UP, (digest,), patience_s=_PATIENCE_S)
        if not rows:
            return None
        caller = Caller(*rows[0])
        if generation == self._generation:  # else something changed while we looked, perhaps this
            if len(self._callers) >= _CACHED:
                self._callers.clear()
            self._callers[digest] = caller
        return caller


def _sent(headers: Headers) -> list[bytes]:
    """Collect the credentials of a request; an empty header counts as absent."""
    sent: list[bytes] = []
    for name, value in headers:
        if name == b"x-api-key":
            text = value.strip()
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            text = value[7:].strip()
        else:
            continue
        if text and text not in sent and len(sent) < _CREDENTIALS:
            sent.append(text)
    return sent
