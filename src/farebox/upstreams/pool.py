"""The pool: which upstream gets a call, how its health is judged, and when a failed try may be repeated.

A try is repeated only before its first byte has reached the client, at another upstream or the same one, within a
retry budget. Everything after that is the relay's and the client's to know.
"""

import asyncio
import hashlib
import random
import ssl
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Final

import msgspec

from farebox.errors import Overloaded, Refusal, UpstreamFailed
from farebox.http.client import HttpClient, read_origin
from farebox.http.failures import UpstreamError
from farebox.upstreams.kinds.kind import Ask, Reply
from farebox.upstreams.kinds.make import make_kind
from farebox.upstreams.settings import UpstreamSettings

_RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504, 520, 522, 524, 529})
OPERATORS_OWN: Final = frozenset({401, 402, 403})
"""Statuses that speak of the operator's account: never shown to a customer."""
_ERROR_BODY_BYTES: Final = 2**20
_RESTS_AFTER: Final = 5
_REST_S: Final = 10.0
_LONGEST_REST_S: Final = 120.0
_PROBE_S: Final = 10.0
"""A probe that has not ended by then lets another one go."""
LATELY_S: Final = 300.0
_SAMPLES: Final = 30
_LONGEST_WAIT_S: Final = 8.0
_LONGEST_RETRY_AFTER_S: Final = 86_400


class Upstream:
    """One way up: its connections, its credential, and how it has been doing."""

    def __init__(
        self, settings: UpstreamSettings, *, connect_s: float, stall_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self.name = settings.name
        self.weight = settings.weight
        self.names = dict(settings.models) if isinstance(settings.models, dict) else {}
        """What it calls models, by their ids, where that is not what everybody calls them."""
        self.models = frozenset(settings.models)
        self.first_byte_s = settings.first_byte_s
        self.stall_s = settings.stall_s or stall_s
        self.client = HttpClient(
            read_origin(settings.base_url),
            connect_s=settings.connect_s or connect_s,
            connections=settings.connections,
            stall_s=self.stall_s,
            tls=tls,
        )
        self.kind_name = settings.kind
        self.kind = make_kind(settings)
        usual = settings.kind in {"anthropic", "simulator"}
        self.has_batches = usual if settings.batches is None else settings.batches and self.kind.speaks_messages
        self.drained = False
        """By the operator's word no call goes here; those under way end."""
        self.last_failure: Failure | None = None
        self.calls = 0
        self.failures = 0
        self.limited = 0
        """Answers 429: it is well, but wants no more for now."""
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=_SAMPLES)
        self.failures_in_a_row = 0
        self.rests = 0
        self.rests_until = 0.0
        self.probed_until = 0.0

    def is_healthy(self, now: float) -> bool:
        """Whether calls go here. After a run of failures it rests, then one call at a time finds out."""
        return now >= self.rests_until and now >= self.probed_until

    async def request(self, ask: Ask, *, first_byte_s: float) -> Reply:
        """Send it an ask, in its own words. Raises Refusal for what it cannot be asked, UpstreamError if it fails."""
        outgoing = await self.kind.prepare(ask, self.names.get(ask.model or "", ask.known_as))
        answer = await self.client.request(
            outgoing.method,
            outgoing.target,
            outgoing.headers,
            outgoing.body,
            first_byte_s=self.first_byte_s or first_byte_s,
        )
        return self.kind.reply(ask, answer)

    def sold_as(self, name: str) -> str:
        """Give the id that a model is sold by, of the name that this upstream answers with."""
        return next((sold for sold, theirs in self.names.items() if theirs == name), name)

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return sum(connection.busy for connection in self.client.opened)

    def lately(self) -> tuple[int, int]:
        """Give the calls of the last minutes, and how many of them failed."""
        _, calls, failures = self._samples[0] if self._samples else (0.0, 0, 0)
        return self.calls - calls, self.failures - failures

    def tick(self, now: float) -> None:
        """Remember where the counts stand, every few seconds."""
        if not self._samples or now - self._samples[-1][0] >= LATELY_S / _SAMPLES:
            self._samples.append((now, self.calls, self.failures))

    def takes(self, now: float) -> None:
        """Take note of a call that goes here. The first after a rest is the probe that the others wait for."""
        self.calls += 1
        if self.rests and self.is_healthy(now):
            self.probed_until = now + _PROBE_S

    def succeeded(self) -> None:
        """Take note of a whole answer: whatever was before, it is well."""
        self.failures_in_a_row = self.rests = 0
        self.rests_until = self.probed_until = 0.0

    def failed(self, now: float) -> None:
        """Count a failure that is the upstream's own; after five in a row it rests, after each probe that fails longer.

        Calls sent before it rested may fail while it does: those say nothing new.
        """
        self.failures += 1
        self.failures_in_a_row += 1
        if now >= self.rests_until and (self.rests or self.failures_in_a_row >= _RESTS_AFTER):
            self.rests += 1
            self.rests_until = now + min(_REST_S * self.rests, _LONGEST_REST_S)
            self.probed_until = 0.0


class RetryBudget:
    """Retries as a share of calls, with a small allowance for quiet times (Finagle's RetryBudget)."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._tokens = 10.0 if share > 0 else 0.0

    def call(self) -> None:
        self._tokens = min(self._tokens + self._share, 100.0)

    def take(self) -> bool:
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Failure(msgspec.Struct, frozen=True):
    """One try of a call: at which upstream, when by the loop's clock, and the status or kind of error it ended with."""

    upstream: str
    sent_at: float
    ended_at: float
    status: int | None
    error: str | None


class Tries:
    """The tries of one call: which upstreams failed it, how often, and why the last one did."""

    def __init__(self, only: str = "") -> None:
        self.only = only
        """The one upstream it may go to, by name: where a file, a batch or a thread is. Empty: any."""
        self.count = 0
        self.sent_at = 0.0
        """When the last one was sent."""
        self.failures: list[Failure] = []
        self.failed_at: set[str] = set()
        self.last: UpstreamError | None = None
        self.retry_after_s: float | None = None
        self.status: int | None = None
        self.model: str | None = None
        self.upstream: Upstream | None = None
        self.abandoned = False
        """The client has gone: what is under way is read to its end, but nothing is tried again."""


class Pool:
    """All upstreams of this process."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        attempts: int,
        retry_budget: float,
        retry_wait_s: float,
        retry_after_max_s: float,
        first_byte_s: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.upstreams = upstreams
        self._attempts = attempts
        self._budget = RetryBudget(retry_budget)
        self._retry_wait_s = retry_wait_s
        self._retry_after_max_s = retry_after_max_s
        self._first_byte_s = first_byte_s
        self._chance = chance
        self.retries = 0

    async def send(self, tries: Tries, ask: Ask, *, conversation: bytes) -> Reply:
        """Send a request until an upstream answers it, in success or with an error that is the client's to see.

        How the answer ends is for the caller to note, by `note_success` or `note_failure`.

        Raises UpstreamFailed or Overloaded when no try is left, and InvalidRequest for what no upstream can be asked.
        `tries` carries on from call to call, so that an answer
        that breaks before its first byte was passed on can be tried again by calling this again.
        """
        tries.model = ask.model
        if tries.count == 0:
            self._budget.call()
        while True:
            upstream = self._choose(tries, conversation)
            if upstream is None:
                if not self.upstreams:
                    raise UpstreamFailed("no upstream is set up here yet; ask the operator", retry_after_s=60)
                raise UpstreamFailed("no upstream serves this model at the moment; try again shortly", retry_after_s=5)
            tries.count += 1
            tries.upstream = upstream
            tries.sent_at = asyncio.get_running_loop().time()
            upstream.takes(tries.sent_at)
            try:
                answer = await upstream.request(ask, first_byte_s=self._first_byte_s)
            except UpstreamError as error:
                self.note_failure(tries, error)
            else:
                if (
                    answer.status not in _RETRIED
                    and answer.status not in OPERATORS_OWN
                    and not 300 <= answer.status < 400
                ):
                    if answer.status >= 400:  # of others the end will tell
                        upstream.succeeded()
                    return answer
                await self._note_status(tries, answer)
            await self.prepare_retry(tries)

    def note_success(self, tries: Tries) -> None:
        """Remember that the try's upstream gave a whole, usable answer: its head alone proves little."""
        assert tries.upstream is not None
        tries.upstream.succeeded()

    def note_failure(self, tries: Tries, error: UpstreamError) -> None:
        """Remember that the try's upstream broke it."""
        assert tries.upstream is not None
        tries.last = error
        tries.status = None
        tries.retry_after_s = None
        self._note(tries, tries.upstream, type(error).__name__).failed(asyncio.get_running_loop().time())

    def note_unfunded(self, tries: Tries) -> None:
        """Remember that the try's upstream refuses the operator's account, in whatever words."""
        assert tries.upstream is not None
        tries.last, tries.status, tries.retry_after_s = None, 402, None
        self._note(tries, tries.upstream).failed(asyncio.get_running_loop().time())

    async def prepare_retry(self, tries: Tries) -> None:
        """Wait for the next try. Raises what the client gets when there is none."""
        others = any(upstream.name not in tries.failed_at for upstream in self._able(tries))
        patient = tries.retry_after_s is None or tries.retry_after_s <= self._retry_after_max_s
        if tries.abandoned or tries.count >= self._attempts or not (others or patient) or not self._budget.take():
            raise _refusal(tries)
        self.retries += 1
        if others:
            return
        wait_s = min(_LONGEST_WAIT_S, self._retry_wait_s * 2 ** (tries.count - 1)) * self._chance()
        await asyncio.sleep(max(wait_s, tries.retry_after_s or 0.0))

    def ways_up(self, model: str) -> tuple[int, int]:
        """Count the upstreams for a model: those that calls go to at the moment, and all there are."""
        now = asyncio.get_running_loop().time()
        able = [upstream for upstream in self.upstreams if not upstream.models or model in upstream.models]
        return sum(upstream.is_healthy(now) and not upstream.drained for upstream in able), len(able)

    def drain(self, names: Container[str]) -> None:
        """Send no new call to these, and to all others as ever."""
        for upstream in self.upstreams:
            upstream.drained = upstream.name in names

    def replace(self, upstreams: Sequence[Upstream]) -> None:
        """Send new calls to these alone. Those that stay keep all they know; calls under way at others end there."""
        self.upstreams = tuple(upstreams)

    def tick(self, now: float) -> None:
        """Called about once a second."""
        for upstream in self.upstreams:
            upstream.tick(now)

    async def close(self) -> None:
        for upstream in self.upstreams:
            await upstream.client.close()
            await upstream.kind.close()

    def _able(self, tries: Tries) -> list[Upstream]:
        """Give the upstreams that a call may go to: that serve its model and are not drained, or the one it is for."""
        if tries.only:
            return [upstream for upstream in self.upstreams if upstream.name == tries.only]
        model = tries.model
        return [
            upstream
            for upstream in self.upstreams
            if not upstream.drained and (not upstream.models or model is None or model in upstream.models)
        ]

    def _choose(self, tries: Tries, conversation: bytes) -> Upstream | None:
        """Choose by rendezvous hashing: a conversation stays where its prompt cache is, weights are kept."""
        able = self._able(tries)
        if len(able) == 1:
            return able[0]
        now = asyncio.get_running_loop().time()
        fresh = [u for u in able if u.name not in tries.failed_at] or able
        healthy = [u for u in fresh if u.is_healthy(now)] or fresh
        weighted = [u for u in healthy if u.weight > 0] or healthy
        return max(weighted, key=lambda u: _score(u, conversation), default=None)

    async def _note_status(self, tries: Tries, answer: Reply) -> None:
        assert tries.upstream is not None
        tries.status = answer.status
        tries.last = None
        tries.retry_after_s = _seconds(answer.header(b"retry-after"))
        upstream = self._note(tries, tries.upstream)
        if answer.status == 429:
            upstream.limited += 1
        else:
            upstream.failed(asyncio.get_running_loop().time())
        try:
            await answer.read(_ERROR_BODY_BYTES)
        except UpstreamError as error:
            tries.last = error

    def _note(self, tries: Tries, upstream: Upstream, error: str | None = None) -> Upstream:
        """Keep what a failed try can be told by."""
        now = asyncio.get_running_loop().time()
        tries.failed_at.add(upstream.name)
        upstream.last_failure = Failure(upstream.name, tries.sent_at, now, tries.status, error)
        tries.failures.append(upstream.last_failure)
        return upstream


def _score(upstream: Upstream, conversation: bytes) -> float:
    digest = hashlib.blake2b(conversation + b"\0" + upstream.name.encode(), digest_size=8).digest()
    share = (int.from_bytes(digest, "big") + 1) / 2**64
    return float(share ** (1.0 / max(upstream.weight, 1)))


def _seconds(value: bytes | None) -> float | None:
    try:
        seconds = float(value) if value is not None else 0.0
    except ValueError:
        return None
    return seconds if 0 < seconds <= _LONGEST_RETRY_AFTER_S else None  # nor "nan" nor "inf"


def _refusal(tries: Tries) -> Refusal:
    """Say what went wrong without naming the operator's account. An upstream's own 401, 402 or 403 is never shown."""
    wait_s = min(_LONGEST_RETRY_AFTER_S, max(1, round(tries.retry_after_s or 2)))
    if tries.status == 529:
        return Overloaded("the model's provider is overloaded; try again shortly", retry_after_s=wait_s)
    if tries.status == 429:
        refusal = Overloaded(
            "the model's provider is at its rate limit; your own limits are not touched; try again shortly",
            retry_after_s=wait_s,
        )
        refusal.status, refusal.wire_type = 429, "rate_limit_error"
        return refusal
    if tries.status in OPERATORS_OWN:
        return UpstreamFailed(
            "the upstream does not accept this gateway at the moment; its operator has been told",
            retry_after_s=30,
        )
    reason = f"answered {tries.status}" if tries.status is not None else "gave no usable answer"
    return UpstreamFailed(
        f"the upstream {reason} after {tries.count} {'try' if tries.count == 1 else 'tries'}; nothing was charged",
        retry_after_s=wait_s,
    )
