"""The relay: bytes of one streamed answer from upstream to client, as they come.

It runs in callbacks, one per piece of bytes, and decides nothing: when something must be decided (the end, more
money, a hang-up, a silence) it wakes the coroutine that owns the hold. Nothing leaves that is not covered by money
held: past what `allow` covers it stops reading and waits (promise 3).
"""

import asyncio
from typing import Final

from farebox.billing.bound import TEXT_BYTES_PER_TOKEN
from farebox.gateway.sse import Meter
from farebox.http.exchange import Exchange
from farebox.http.failures import Cut, Stalled, UpstreamError
from farebox.upstreams.kinds.kind import Reply

PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
COMMENT: Final = b": keep-alive\n\n"


class Relay:
    """Between one upstream answer and one client. `tick` must be called about once a second."""

    __slots__ = (
        "_answer", "_exchange", "_held_up_at", "_held_up_s", "_keep_alive_s", "_loop", "_sent_at", "_stall_s",
        "_ticked_bytes", "_uncovered", "_unsent", "_waiter", "ask_at", "covered_tokens", "delivered_bytes", "ended",
        "failure", "first_byte_at", "hidden_rate", "hidden_tokens", "hung_up_at", "meter",
    )  # fmt: skip

    def __init__(
        self, answer: Reply, exchange: Exchange, *, stall_s: float, keep_alive_s: float, hidden_rate: int
    ) -> None:
        self.meter = Meter()
        self.failure: UpstreamError | None = None
        """Why the upstream's bytes ended before the message did."""
        self.ended = False
        """The upstream sends no more."""
        self.hung_up_at: float | None = None
        self.first_byte_at: float | None = None
        self.hidden_rate = hidden_rate
        self.hidden_tokens = 0.0
        self.delivered_bytes = 0
        """Visible text that was passed on, or would have been to a client that is gone."""
        self.ask_at: float = float("inf")
        self.covered_tokens: float = float("inf")
        self._answer = answer
        self._exchange = exchange
        self._stall_s = stall_s
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._held_up_at: float | None = None
        self._held_up_s = 0.0
        self._ticked_bytes = 0
        self._unsent: list[bytes] = []
        self._uncovered: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        if exchange.gone:
            self.hung_up()
        exchange.on_resumed = self._resumed
        answer.attach(self)

    @property
    def produced_tokens(self) -> float:
        """Bound the output tokens produced so far, from what could be seen and the time in which nothing was."""
        return self.meter.visible_bytes // TEXT_BYTES_PER_TOKEN + self.hidden_tokens

    @property
    def client_is_there(self) -> bool:
        return self.hung_up_at is None

    @property
    def is_covered(self) -> bool:
        """Whether all that has come is covered by money held."""
        return self.produced_tokens <= self.covered_tokens

    def cover(self, tokens: float, ask_at: float) -> None:
        """Let output flow up to a bound of `tokens`; wake the owner once it passes `ask_at`."""
        self.covered_tokens = tokens
        self.ask_at = min(ask_at, tokens)
        if self._uncovered and self.is_covered:
            self._send(self.take_uncovered())
            if not (self.client_is_there and self._exchange.backed_up):
                self._answer.resume()

    def take_uncovered(self) -> bytes:
        """Take what has come but was not covered when it came."""
        waiting, self._uncovered = b"".join(self._uncovered), []
        return waiting

    async def news(self, timeout_s: float | None) -> None:
        """Wait until something must be decided, or for `timeout_s`. Look at the attributes for what."""
        if self.needs_decision:
            return
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, self.wake) if timeout_s is not None else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    @property
    def needs_decision(self) -> bool:
        meter = self.meter
        return (
            self.ended
            or meter.finished
            or meter.broken is not None
            or meter.error is not None
            or self.produced_tokens > self.ask_at
        )

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Begin the client's response and send what has waited for it."""
        self._exchange.start(status, headers)
        unsent, self._unsent = self._unsent, []
        if unsent:
            self._exchange.write(b"".join(unsent))
        else:
            self._exchange.flush()

    def hung_up(self) -> None:
        """The client has gone: read on without it."""
        self.hung_up_at = self._loop.time()
        if not self._uncovered:
            self._answer.resume()
        self.wake()

    def held_up_s(self) -> float:
        """How long, in all, the upstream had to wait for a client that did not read."""
        waiting = 0.0 if self._held_up_at is None else self._loop.time() - self._held_up_at
        return self._held_up_s + waiting

    def cut(self) -> None:
        """Stop the upstream: nothing more of its answer is wanted."""
        self._answer.abandon()

    def tick(self, now: float) -> None:
        """Take note of time passing: silence upstream, silence towards the client, thinking that nobody sees."""
        if self.ended or self.meter.finished:
            return
        if self._answer.silent_s(now) > self._stall_s:
            self.failure = Stalled(f"nothing came for {self._stall_s:g} s")
            self.cut()
            return
        if self.meter.started and self.hidden_rate:
            if self.meter.visible_bytes == self._ticked_bytes:
                self.hidden_tokens += self.hidden_rate
                if self.produced_tokens > self.ask_at:
                    self.wake()
            self._ticked_bytes = self.meter.visible_bytes
        if self.client_is_there and now - self._sent_at > self._keep_alive_s and not self._exchange.backed_up:
            self._sent_at = now
            if self._exchange.started:
                self._exchange.write(PING if self.meter.started else COMMENT)
            else:
                self.wake()

    def silent_for(self, now: float) -> float:
        """How long the client has heard nothing, in seconds."""
        return now - self._sent_at

    # the upstream's side

    def on_data(self, data: bytes) -> None:
        meter = self.meter
        passed = meter.feed(data)
        produced = meter.visible_bytes // TEXT_BYTES_PER_TOKEN + self.hidden_tokens
        if passed:
            if produced > self.covered_tokens or self._uncovered:
                self._uncovered.append(passed)
                self._answer.pause()
            else:
                self._send(passed)
        if produced > self.ask_at or meter.finished or not self._exchange.started or meter.broken or meter.error:
            self.wake()

    def on_end(self, error: UpstreamError | None) -> None:
        self.ended = True
        if self.failure is None and not self.meter.finished:
            self.failure = error or Cut("the stream ended without message_stop")
        self.wake()

    def _resumed(self) -> None:
        self._held_up_s, self._held_up_at = self.held_up_s(), None
        if not self._uncovered:
            self._answer.resume()

    def _send(self, data: bytes) -> None:
        if self.first_byte_at is None:
            self.first_byte_at = self._loop.time()
        self.delivered_bytes = self.meter.visible_bytes
        if self.hung_up_at is not None:
            return
        if not self._exchange.started:
            self._unsent.append(data)
            return
        self._sent_at = self._loop.time()
        self._exchange.write(data)
        if self._exchange.backed_up:
            self._answer.pause()
            if self._held_up_at is None:
                self._held_up_at = self._loop.time()
