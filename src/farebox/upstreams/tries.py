"""One call on its way up: where it was tried and how that ended, and its turn where it waits for room."""

import asyncio

from farebox.errors import Refusal
from farebox.http.failures import UpstreamError
from farebox.upstreams.kinds.kind import MESSAGES
from farebox.upstreams.upstream import Failure, Upstream


class Tries:
    """The tries of one call: which upstreams failed it, how often, and why the last one did."""

    def __init__(self, only: str = "") -> None:
        self.only = only
        """The one upstream it may go to, by name: where a file, a batch or a thread is. Empty: any."""
        self.count = 0
        self.before = 0
        """Tries at another model's upstreams, that came before these."""
        self.sent_at = 0.0
        """When the last one was sent."""
        self.failures: list[Failure] = []
        self.failed_at: set[str] = set()
        self.unable: dict[str, Refusal] = {}
        """Upstreams that it cannot be put to, by name, and what they would have said."""
        self.last: UpstreamError | None = None
        self.retry_after_s: float | None = None
        self.status: int | None = None
        self.path = MESSAGES
        self.model: str | None = None
        self.conversation = b""
        self.upstream: Upstream | None = None
        self.abandoned = False
        """The client has gone: what is under way is read to its end, but nothing is tried again."""

    @property
    def total(self) -> int:
        """All tries of the call."""
        return self.before + self.count

    def anew(self) -> "Tries":
        """Begin again for another model; what has been tried is still told."""
        fresh = Tries(self.only)
        fresh.before, fresh.failures, fresh.abandoned = self.total, self.failures, self.abandoned
        return fresh


class Turn:
    """A call that waits for room."""

    __slots__ = ("future", "promised", "tries")

    def __init__(self, tries: Tries) -> None:
        self.tries = tries
        self.anew()

    def anew(self) -> None:
        """Wait for its turn, or for the next one."""
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.promised: Upstream | None = None
        """Where a place is kept for it, from when its turn has come until it takes one: nobody comes between."""

    def come(self, promised: Upstream | None = None) -> None:
        """Let the call look again."""
        if not self.future.done():
            self.promised = promised
            if promised is not None:
                promised.claimed += 1
            self.future.set_result(None)
