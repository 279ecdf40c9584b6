"""Streams: the decisions a running stream needs, made by the coroutine that owns its hold.

The relay carries bytes and wakes it; here the hold is tightened at message_start, extended slice by slice while output
flows, and the stream ended when the money is gone, the upstream broke it or the gateway must stop.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from farebox.billing.bound import affordable_tokens, estimated_output, output_cost, prompt_cost
from farebox.billing.ledger import Resize, Resized, Settled
from farebox.billing.usage import UnusableUsage, Usage, read_usage
from farebox.books.ledger import Ledger
from farebox.clock import Clock
from farebox.errors import Refusal, StoreUnavailable
from farebox.gateway.answers import error_event
from farebox.gateway.call import Call, Outcome
from farebox.gateway.demand import thinks_hidden
from farebox.gateway.relay import Relay
from farebox.gateway.settings import CallLimits
from farebox.gateway.spending import SpendWords
from farebox.http.exchange import Headers
from farebox.http.failures import BadAnswer, UpstreamError
from farebox.upstreams.kinds.kind import Reply

_LINGER_S: Final = 1.0
"""How long an upstream has to end an answer whose message has ended, so that its connection can be kept."""
_STORE_PAUSE_S: Final = 0.25
"""While the books cannot be written, an extension is asked for this often."""
_OPERATORS_OWN: Final = frozenset({"authentication_error", "permission_error", "billing_error"})


class Streams:
    """All streams in flight."""

    def __init__(
        self,
        ledger: Ledger,
        limits: CallLimits,
        top_up_words: str,
        spend_words: SpendWords,
        clock: Clock,
        *,
        patience_s: float = 10.0,
    ) -> None:
        self._ledger = ledger
        self._limits = limits
        self._top_up_words = top_up_words
        self._spend_words = spend_words
        self._clock = clock
        self._patience_s = patience_s
        """How long a stream that has used up its hold waits for books that cannot be written."""
        self._relays: dict[bytes, Relay] = {}
        self.stopping = False

    def __len__(self) -> int:
        return len(self._relays)

    def tick(self, now: float) -> None:
        """Let every stream take note of the time. Called about once a second."""
        for relay in list(self._relays.values()):
            relay.tick(now)

    def stop(self) -> None:
        """End every stream: the gateway is going down and cannot wait any longer."""
        self.stopping = True
        for relay in list(self._relays.values()):
            relay.cut()

    def hung_up(self, call: Call) -> None:
        relay = self._relays.get(call.request_id)
        if relay is not None:
            relay.hung_up()

    async def relay(
        self, call: Call, answer: Reply, headers: Headers, begun: Callable[[Call], None]
    ) -> tuple[Outcome, bytes]:
        """Relay a stream to its end. Answers the outcome and the last events, which have not been sent.

        `begun` is called once it will not be asked for anew. Raises UpstreamError when it broke before anything of it
        reached the client.
        """
        upstream = call.tries.upstream
        thinks = thinks_hidden(call.asked) or (upstream is not None and not upstream.kind.speaks_messages)
        hidden_rate = call.model.output_tokens_per_s if thinks else 0
        relay = Relay(
            answer,
            call.exchange,
            stall_s=(upstream.stall_s if upstream else None) or self._limits.stall_s,
            keep_alive_s=self._limits.keep_alive_ping_s,
            hidden_rate=hidden_rate,
        )
        self._relays[call.request_id] = relay
        if call.exchange.gone:
            relay.hung_up()
        try:
            await self._first_event(relay)
            call.status = 200
            if relay.client_is_there:
                relay.begin(200, [*headers, (b"x-accel-buffering", b"no")])
                begun(call)
            outcome = await self._watch(call, relay)
            if outcome is Outcome.FINISHED and not relay.ended:
                asyncio.get_running_loop().call_later(_LINGER_S, answer.abandon)
        finally:
            del self._relays[call.request_id]
            self._learn(call, relay)
        if outcome is Outcome.OUT_OF_MONEY:
            call.visible_bytes = relay.delivered_bytes
            call.visible_text = call.visible_text[: relay.delivered_bytes]
        return outcome, self._last_events(call, relay, outcome)

    def finish(self, call: Call, last: bytes, refusal: Refusal | None, settled: Settled | None) -> None:
        """Send the last events of a stream, now that its charge is durable, or the error that ends it."""
        if refusal is not None:
            last = error_event(refusal.wire_type, refusal.message, call.shown_id)
        elif settled is None:
            last = error_event("api_error", "the charge could not be written; nothing was charged", call.shown_id)
        call.exchange.write(last)
        call.exchange.finish()

    async def _first_event(self, relay: Relay) -> None:
        """Wait for the first whole event, so that a stream that breaks at once can be tried elsewhere.

        A long silence ends the waiting: the client then gets headers and keep-alives.
        """
        meter = relay.meter
        while not (meter.events_seen or relay.ended or meter.broken) and relay.client_is_there:
            if relay.silent_for(asyncio.get_running_loop().time()) >= self._limits.keep_alive_ping_s - 1:
                return
            await relay.news(self._limits.keep_alive_ping_s)
        if meter.broken is not None:
            raise BadAnswer(meter.broken)
        if meter.error is not None and relay.first_byte_at is None:
            raise BadAnswer("the stream began with an error")
        if relay.failure is not None and relay.first_byte_at is None and relay.client_is_there:
            raise relay.failure

    async def _watch(self, call: Call, relay: Relay) -> Outcome:
        """Decide whenever the relay asks, until the stream has ended one way or another."""
        relay.cover(self._affordable(call, prompt_cost(call.model, call.demand)), float("inf"))
        tightened = False
        while True:
            meter = relay.meter
            if meter.finished:
                return Outcome.FINISHED if self._usage_is_usable(call, relay) else Outcome.UPSTREAM_BROKE
            if self.stopping:
                return Outcome.GATEWAY_BROKE
            if meter.broken is not None or meter.error is not None or relay.ended:
                return Outcome.UPSTREAM_BROKE
            if meter.started and (not tightened or relay.produced_tokens > relay.ask_at):
                tightened = True
                ended = await self._extend(call, relay)
                if ended is not None:
                    return ended
                continue
            await relay.news(None if meter.started else 1.0)

    async def _extend(self, call: Call, relay: Relay) -> Outcome | None:
        """Bring the hold to what has been used and one more slice, or as near as the balance goes.

        Answers how the stream ends, if it does. Output may have outrun a slice that was granted in full: then the next
        one is asked for, not an end made.
        """
        known, prompt = self._known_prompt(call, relay)
        most = call.demand.max_tokens
        target = int(min(relay.produced_tokens + self._limits.slice_tokens, most))
        wanted = prompt + output_cost(call.output_rate, target)
        counted = (known.limited_tokens if known else 0) + estimated_output(relay.meter.visible_bytes)
        resize = Resize(
            request_id=call.request_id, account_id=call.caller.account_id, amount_nanos=wanted, tokens=counted
        )
        resized = await self._ask_for(resize, relay)
        if resized is None and self._has_ended(relay):
            return None
        if resized is None or resized.gone:
            return Outcome.GATEWAY_BROKE
        call.hold(resized.amount_nanos)
        call.spend_limit = resized.spend_limit
        enough = resized.amount_nanos >= wanted
        if target >= most and enough:
            relay.cover(float("inf"), float("inf"))
            return None
        covered = self._affordable(call, prompt)
        relay.cover(covered, covered - self._limits.slice_tokens / 2 if enough else covered)
        return None if enough or relay.is_covered or relay.meter.finished else Outcome.OUT_OF_MONEY

    async def _ask_for(self, resize: Resize, relay: Relay) -> Resized | None:
        """Ask for a hold's new size until the books answer; meanwhile the stream goes on within what it holds.

        None when it came to its end like that, or stood still for too long, with all it holds used up.
        """
        loop = asyncio.get_running_loop()
        used_up_at: float | None = None
        while True:
            try:
                return await self._ledger.resize(resize)
            except StoreUnavailable:
                used_up_at = None if relay.is_covered else used_up_at or loop.time()
            if self._has_ended(relay) or (used_up_at is not None and loop.time() - used_up_at >= self._patience_s):
                return None
            await asyncio.sleep(_STORE_PAUSE_S)

    def _has_ended(self, relay: Relay) -> bool:
        meter = relay.meter
        return self.stopping or relay.ended or meter.finished or meter.broken is not None or meter.error is not None

    def _affordable(self, call: Call, prompt_nanos: int) -> int:
        return affordable_tokens(call.output_rate, call.held_nanos - prompt_nanos)

    def _known_prompt(self, call: Call, relay: Relay) -> tuple[Usage | None, int]:
        """Give the input usage that message_start reported and its cost; the bound where it said nothing usable."""
        bound = prompt_cost(call.model, call.demand)
        counts = {**relay.meter.usage, "output_tokens": 0}
        try:
            usage = read_usage(counts, relay.meter.model or call.model.id, long_cache_asked=call.demand.caches_long)
        except UnusableUsage:
            return None, bound
        if call.demand.web_searches or not any(line.prompt_tokens for line in usage.lines):
            return usage, bound  # each search adds input later on; no input at all means that it is told at the end
        return usage, call.catalogue.price(usage, call.model).cost_nanos

    def _usage_is_usable(self, call: Call, relay: Relay) -> bool:
        """Tell whether the stream reported what it used. A finished answer without usage counts as broken."""
        self._learn(call, relay)
        call.lacks_usage = not (relay.meter.usage_is_final and call.usage_so_far() is not None)
        return not call.lacks_usage

    def _learn(self, call: Call, relay: Relay) -> None:
        meter = relay.meter
        call.usage, call.usage_is_final = meter.usage, meter.usage_is_final and meter.finished
        call.visible_bytes = meter.visible_bytes
        call.visible_text = bytes(meter.text) if len(meter.text) == meter.visible_bytes else b""
        call.answered_model = meter.model
        call.message_id = meter.message_id
        call.stop_reason = meter.stop_reason
        call.first_byte_at = relay.first_byte_at
        call.held_up_s = relay.held_up_s()

    def _last_events(self, call: Call, relay: Relay, outcome: Outcome) -> bytes:
        if outcome is Outcome.FINISHED:
            return relay.take_uncovered() + relay.meter.held
        if outcome is Outcome.OUT_OF_MONEY:
            words = (
                f"your balance is used up, so the stream ends here; what you received is charged; {self._top_up_words}"
            )
            if call.spend_limit is not None:
                words = self._spend_words.ended(call.spend_limit, self._clock())
            return error_event("insufficient_balance", words, call.shown_id)
        if outcome is Outcome.GATEWAY_BROKE:
            why = "the gateway is restarting" if self.stopping else "the books cannot be written at the moment"
            return error_event("overloaded_error", f"{why}; nothing was charged; try again", call.shown_id)
        error = (relay.meter.error or {}).get("error")
        if isinstance(error, dict) and error.get("type") not in _OPERATORS_OWN:
            return relay.meter.error_event
        return error_event("upstream_error", f"{_why(relay)}; nothing was charged; try again", call.shown_id)


def _why(relay: Relay) -> str:
    failure: UpstreamError | None = relay.failure
    if relay.meter.broken is not None:
        return "the upstream's stream could not be read any further"
    if relay.meter.finished:
        return "the upstream reported no usage for its answer"
    return f"the upstream broke off: {failure}" if failure is not None else "the upstream broke off"
