"""One way up: its connections, its credential, how it is spoken to, and how it has been doing."""

import ssl

import msgspec

from farebox.http.client import HttpClient, read_origin
from farebox.upstreams.budgets import RateBudget
from farebox.upstreams.health import Health
from farebox.upstreams.kinds.kind import Ask, Reply
from farebox.upstreams.kinds.make import make_kind
from farebox.upstreams.settings import UpstreamSettings


class Upstream(Health):
    """One way up: its connections, its credential, and how it has been doing."""

    def __init__(
        self, settings: UpstreamSettings, *, connect_s: float, stall_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__()
        self.name = settings.name
        self.weight = settings.weight
        self.priority = settings.priority
        self.concurrency = settings.concurrency
        self.at_once = min(settings.connections, settings.concurrency or settings.connections)
        """Calls it takes at once: by the operator's word, and by the connections that may be open."""
        self.organization = settings.organization
        self.names = dict(settings.models) if isinstance(settings.models, dict) else {}
        """What it calls models, by their ids, where that is not what everybody calls them."""
        self.models = frozenset(settings.models)
        self.first_byte_s = settings.first_byte_s
        self.stall_s = settings.stall_s or stall_s
        self.client = HttpClient(
            read_origin(settings.base_url),
            connect_s=settings.connect_s or connect_s,
            connections=self.at_once,
            stall_s=self.stall_s,
            tls=tls,
        )
        self.settings = settings
        self.kind_name = settings.kind
        self.kind = make_kind(settings)
        usual = settings.kind in {"anthropic", "simulator"}
        self.has_batches = usual if settings.batches is None else settings.batches and self.kind.speaks_messages
        self.has_files = usual
        self.drained = False
        """By the operator's word no call goes here; those under way end."""
        self.last_failure: Failure | None = None
        self.rate = RateBudget()
        self.claimed = 0
        """Calls that will be under way: their requests are being put in its words, or their turn has come."""

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return self.client.running

    @property
    def is_used(self) -> bool:
        """Whether a request is under way, or will be: it may still wait for a token."""
        return self.client.running + self.claimed > 0

    @property
    def has_room(self) -> bool:
        """Whether it takes one more call at once."""
        return self.client.running + self.claimed < self.at_once

    async def request(self, ask: Ask, *, first_byte_s: float) -> Reply:
        """Send it an ask, in its own words. Raises Refusal for what it cannot be asked, UpstreamError if it fails."""
        self.claimed += 1
        try:
            outgoing = await self.kind.prepare(ask, self.names.get(ask.model or "", ask.known_as))
        except BaseException:
            self.unclaim()
            raise
        self.claimed -= 1  # from here on the client counts it, and nothing comes between
        answer = await self.client.request(
            outgoing.method,
            outgoing.target,
            outgoing.headers,
            outgoing.body,
            first_byte_s=self.first_byte_s or first_byte_s,
        )
        return self.kind.reply(ask, answer)

    def unclaim(self) -> None:
        """Give back a place that was kept for a call which does not come."""
        self.claimed -= 1
        if self.client.on_free is not None:
            self.client.on_free()

    def go_on_from(self, before: "Upstream") -> None:
        """Know what is known of the same server and account under other settings."""
        for name in vars(Health()):
            setattr(self, name, getattr(before, name))
        self.last_failure, self.rate = before.last_failure, before.rate

    def sold_as(self, name: str) -> str:
        """Give the id that a model is sold by, of the name that this upstream answers with."""
        return next((sold for sold, theirs in self.names.items() if theirs == name), name)


class Failure(msgspec.Struct, frozen=True):
    """One try of a call: at which upstream, when by the loop's clock, and the status or kind of error it ended with."""

    upstream: str
    sent_at: float
    ended_at: float
    status: int | None
    error: str | None
