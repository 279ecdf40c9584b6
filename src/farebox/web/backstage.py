"""What the site asks of the running gateway behind it: a protocol, so that pages know no gateway."""

from typing import Literal, Protocol

Service = Literal["up", "reduced", "down"]
"""How a model is served now: by all of its upstreams, by some of them, by none."""


class Backstage(Protocol):
    """The gateway as pages see it. What it tells is of this process alone."""

    def service(self, model_id: str) -> Service:
        """Tell how a model is served at the moment."""
        ...

    def forget_keys(self) -> None:
        """Look keys and accounts up anew: one has changed."""
        ...

    async def stop_session(self, account_id: int, session: str) -> None:
        """Refuse the calls of a Claude Code session from now on, and end those under way. Raises StoreUnavailable."""
        ...

    async def resume_session(self, account_id: int, session: str) -> None:
        """Let a stopped session go on. Raises StoreUnavailable."""
        ...
