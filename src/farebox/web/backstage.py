"""What the site asks of the running gateway behind it: a protocol, so that pages know no gateway."""

from typing import Literal, Protocol

from msgspec import Struct

from farebox.http.exchange import Exchange
from farebox.upstreams.roster import Broken, Source
from farebox.upstreams.trial import Trial

Service = Literal["up", "reduced", "down"]
"""How a model is served now: by all of its upstreams, by some of them, by none."""
Health = Literal["healthy", "returning", "limited", "half-open", "resting", "drained"]
"""Whether calls go to an upstream. Half-open: it has rested, one call at a time finds out whether it is well.
Returning: it is, and gets its share back bit by bit. Limited: a rate limit of its own is used up for now."""


class UpstreamState(Struct, frozen=True, kw_only=True):
    """How one upstream does, as this process sees it; since it started, and in the last minutes."""

    name: str
    kind: str
    source: Source
    health: Health
    test_is_free: bool
    origin: str
    weight: int
    priority: int
    concurrency: int
    """Calls it takes at once; 0: as many as there are connections."""
    organization: str
    ejections: int
    spared: tuple[str, ...]
    """Models whose limit it has used up for now."""
    left: tuple[tuple[str, str, int], ...]
    """What is left of its limits, by its own last word: model, kind of limit, how much."""
    models: tuple[str, ...]
    """The models it serves; none: all that are sold."""
    drained: bool
    resting_s: int
    """It has failed several times in a row: for so long no call goes there."""
    in_flight: int
    calls: int
    failures: int
    limited: int
    lately_calls: int
    lately_failures: int
    last_error: str
    last_error_at_us: int | None


class Backstage(Protocol):
    """The gateway as pages see it. What it tells is of this process alone."""

    def service(self, model_id: str) -> Service:
        """Tell how a model is served at the moment."""
        ...

    def forget_keys(self) -> None:
        """Look keys and accounts up anew: one has changed."""
        ...

    async def call(self, exchange: Exchange, request_id: bytes, account_id: int, body: bytes) -> None:
        """Serve a call of the playground as one of the account's own. Raises Refusal."""
        ...

    async def quote(self, exchange: Exchange, request_id: bytes, account_id: int, body: bytes) -> None:
        """Answer what such a call would come to. Raises Refusal."""
        ...

    async def stop_session(self, account_id: int, session: str) -> None:
        """Refuse the calls of a Claude Code session from now on, and end those under way. Raises StoreUnavailable."""
        ...

    async def resume_session(self, account_id: int, session: str) -> None:
        """Let a stopped session go on. Raises StoreUnavailable."""
        ...

    def upstreams(self) -> list[UpstreamState]:
        """Tell how each upstream does."""
        ...

    def broken_upstreams(self) -> list[Broken]:
        """Tell which upstreams were entered and cannot be used."""
        ...

    async def follow_upstreams(self) -> None:
        """Have, drain and enable upstreams as the database says now. Raises StoreUnavailable."""
        ...

    async def try_upstream(self, name: str, model_id: str) -> Trial | None:
        """Put a small question to an upstream, which no customer pays for; None: there is no such upstream."""
        ...
