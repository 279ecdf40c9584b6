"""Who is calling: keys looked up by their hash, cached until anything about keys or accounts changes.

The cache only spares look-ups. Whether a key still counts is decided again inside every hold, by the ledger.
"""

import ipaddress
from typing import Final

import msgspec

from farebox.billing.plans import Plan, limits_of
from farebox.errors import AuthenticationFailed, PermissionDenied
from farebox.http.addresses import Network, is_within
from farebox.http.exchange import Headers
from farebox.ids import key_hash, key_is_well_formed
from farebox.store.protocol import Store

_CACHED: Final = 50_000
_CREDENTIALS: Final = 4
_PATIENCE_S: Final = 1.5
_LOOK_UP: Final = (
    "SELECT k.id, k.account_id, k.expires_at, k.revoked_at, k.disabled_at, a.status, a.plan, a.requests_full_ns, "
    "a.tokens_full_ns, k.requests_per_minute, k.models, k.networks, "
    "a.requests_per_minute, a.tokens_per_minute, a.concurrent "
    "FROM api_key k JOIN account a ON a.id = k.account_id WHERE k.hash = ?"
)


class Caller(msgspec.Struct, frozen=True):
    """The account behind a key. The bucket states are those of the moment it was looked up."""

    key_id: int
    account_id: int
    expires_at_us: int | None
    revoked_at_us: int | None
    disabled_at_us: int | None
    status: str
    plan: str
    requests_full_ns: int
    tokens_full_ns: int
    key_requests_per_minute: int | None = None
    models: frozenset[str] = frozenset()
    """What the key may ask for; empty: whatever is sold."""
    networks: tuple[Network, ...] = ()
    """Where the key may be used from; empty: anywhere."""
    own_limits: tuple[int | None, int | None, int | None] = (None, None, None)
    """The account's, in the place of its plan's: requests and tokens a minute, calls at once."""

    def may_use(self, model_id: str) -> bool:
        return not self.models or model_id in self.models

    def limits(self, plan: Plan) -> Plan:
        """Give the plan with the account's own limits in it."""
        return limits_of(plan, *self.own_limits)


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

    async def authenticate(self, headers: Headers, now_us: int, peer: str = "") -> Caller:
        """Give the caller of a request, which came from the address `peer`.

        Raises AuthenticationFailed or PermissionDenied, saying what to do.

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
        return self._admitted(callers, now_us, peer)

    async def of_key(self, digest: bytes, now_us: int, peer: str) -> Caller:
        """Give the caller that a key of this hash stands for, for a call that proved by other means whose it is.

        Raises AuthenticationFailed or PermissionDenied, as `authenticate` does.
        """
        caller = self._callers.get(digest) or await self._fetch(digest)
        if caller is None:
            raise AuthenticationFailed(f"this API key is not known here; make a new one at {self._keys_url}")
        return self._admitted([caller], now_us, peer)

    def _admitted(self, callers: list[Caller], now_us: int, peer: str) -> Caller:
        """Choose the caller who may call; raises what stands in the way of all."""
        kept = [caller for caller in callers if caller.revoked_at_us is None]
        if not kept:
            raise AuthenticationFailed(f"this API key has been revoked; make a new one at {self._keys_url}")
        caller = next((caller for caller in kept if caller.disabled_at_us is None), kept[0])
        if caller.expires_at_us is not None and now_us >= caller.expires_at_us:
            raise AuthenticationFailed(f"this API key has expired; make a new one at {self._keys_url}")
        if caller.status != "active":
            raise PermissionDenied(f"this account is {caller.status}; write to {self._support_email}")
        if caller.disabled_at_us is not None:
            raise PermissionDenied(f"this API key is disabled; it can be enabled again at {self._keys_url}")
        if caller.networks and not is_within(peer, caller.networks):
            raise PermissionDenied(
                f"this API key may not be used from {peer or 'here'}; allow that address at {self._keys_url}"
            )
        return caller

    async def key_of(self, headers: Headers, caller: Caller) -> bytes:
        """Give the key itself that a request of this caller came with. It is kept nowhere."""
        for text in _sent(headers):
            digest = key_hash(text)
            found = self._callers.get(digest) or await self._look_up(text, digest)
            if found is not None and found.key_id == caller.key_id:
                return text
        raise AuthenticationFailed(self._no_caller_words([]))

    def check_model(self, caller: Caller, model_id: str) -> None:
        """Raise PermissionDenied where a key may not ask for a model, naming those that it may."""
        if not caller.may_use(model_id):
            allowed = ", ".join(sorted(caller.models)[:30])
            raise PermissionDenied(
                f"this API key may not use {model_id}, only {allowed}; allow more at {self._keys_url}"
            )

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
        return await self._fetch(digest)

    async def _fetch(self, digest: bytes) -> Caller | None:
        generation = self._generation
        rows = await self._store.fetch(_LOOK_UP, (digest,), patience_s=_PATIENCE_S)
        if not rows:
            return None
        *known, models, networks, requests, tokens, concurrent = rows[0]
        rules = (frozenset(models.split()), tuple(map(ipaddress.ip_network, networks.split())))
        row = (*known, *rules, (requests, tokens, concurrent))
        caller = Caller(*row)
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
