"""One call and what is known of it: from the key it came with to the usage it ended with."""

import asyncio
from enum import StrEnum
from typing import Final

import msgspec

from farebox.accounts.keyring import Caller
from farebox.billing.bound import Demand, estimated_output
from farebox.billing.ledger import Settle, SpendLimit
from farebox.billing.pricing import Catalogue, Model, Priced
from farebox.billing.ratelimit import Level
from farebox.billing.usage import UnusableUsage, Usage, WireUsage, read_usage
from farebox.gateway.ask import Asked
from farebox.http.exchange import Exchange, Headers
from farebox.ids import show_request_id
from farebox.upstreams.kinds.kind import Reply
from farebox.upstreams.tries import Tries
from farebox.upstreams.upstream import Failure


class Outcome(StrEnum):
    """How an admitted call ended. Who breaks it pays: see `paid_by_customer`."""

    FINISHED = "finished"
    CLIENT_GONE = "client_gone"
    OUT_OF_MONEY = "out_of_money"
    REFUSED_UPSTREAM = "refused_upstream"
    UPSTREAM_BROKE = "upstream_broke"
    GATEWAY_BROKE = "gateway_broke"

    @property
    def paid_by_customer(self) -> bool:
        """Finished, or cut off by the client or its balance: charged. Broken by upstream or gateway: free."""
        return self in _PAID


_KEPT_CHARS: Final = 200
_NAME_CHARS: Final = 100
_CLAUDE_CODE: Final = (b"x-claude-code-session-id", b"x-claude-code-agent-id", b"x-claude-code-parent-agent-id")
_PAID: Final = frozenset({Outcome.FINISHED, Outcome.CLIENT_GONE, Outcome.OUT_OF_MONEY})


class Call:
    """A call in the hands of the coroutine that serves it."""

    room = 0
    """What its body takes of the room for bodies."""
    lacks_usage = False
    """It came to its end as a stream, and did not say what it used."""

    def __init__(
        self, exchange: Exchange, request_id: bytes, caller: Caller, catalogue: Catalogue, started_at: float
    ) -> None:
        self.exchange = exchange
        self.request_id = request_id
        self.shown_id = show_request_id(request_id)
        self.caller = caller
        self.catalogue = catalogue
        self.started_at = started_at
        self.body = b""
        self.asked: Asked
        self.model: Model
        self.demand: Demand
        self.output_rate = 0
        self.fallback_of: Model | None = None
        """The model that was asked for, once another one serves the call in its place."""
        self.fallbacks_seen = 0
        self.conversation = b""
        self.nickname = ""
        """What the client called the model, where the operator made that up."""
        self.held_nanos = 0
        self.most_held_nanos = 0
        self.budget: SpendLimit | None = None
        """The spend limit of its key, and what was left of it before."""
        self.spend_limit: SpendLimit | None = None
        """Of its key, once that lets the hold grow no more."""
        self.session, self.agent, self.parent_agent = claude_code_names(exchange.headers)
        self.stopped = False
        """Its session was stopped while it ran."""
        self.requests: Level | None = None
        self.tokens: Level | None = None
        self.tries = Tries()
        self.answer: Reply | None = None
        self.status = 0
        self.first_byte_at: float | None = None
        self.usage: WireUsage = {}
        self.usage_is_final = False
        self.visible_bytes = 0
        self.visible_text = b""
        """What came of its answer, as JSON writes it, while it is served; empty when that was much."""
        self.counted_output: int | None = None
        """The upstream's count of what came of an answer that was cut off."""
        self.answered_model = ""
        self.message_id: str | None = None
        self.stop_reason: str | None = None
        self.hung_up = False
        self.held_up_s = 0.0
        """How long its stream stood still because the client did not read."""
        self.expired = False
        """Its time was up: the drain after a hang-up, or the longest a call may take."""
        self.task: asyncio.Task[None] | None = None
        """Who serves it, while it may be stopped by `expire`."""
        self._read: tuple[WireUsage, Usage | None] | None = None

    def forget_prompt(self) -> None:
        """Let go of what nobody needs once the answer has begun, as it is not asked for again: most of a long call."""
        self.body = b""
        self.asked = self.asked.without_prompt()

    def expire(self) -> None:
        """Stop sending and relaying; whoever serves the call goes on to settle it."""
        if self.task is not None:
            self.expired = True
            self.task.cancel()
            self.task = None

    def usage_so_far(self) -> Usage | None:
        """Read the usage the upstream has reported, with output that was cut off counted by the published rule.

        None when it reported nothing that can be read: then nothing is charged (promise 2).
        """
        if not self.usage:
            return None
        counts = self.usage
        if not self.usage_is_final:
            reported = counts.get("output_tokens")
            seen = estimated_output(self.visible_bytes)
            if self.counted_output is not None:
                seen = min(seen, self.counted_output)
            counts = {**counts, "output_tokens": max(reported if isinstance(reported, int) else 0, seen)}
        elif self._read is not None and self._read[0] is counts:
            return self._read[1]
        try:
            usage = read_usage(counts, self._answering_model, long_cache_asked=self.demand.caches_long)
        except UnusableUsage:
            usage = None
        self._read = (counts, usage)
        return usage

    def settlement(self, outcome: Outcome, now: float) -> tuple[Settle, Priced]:
        """Turn what is known into the command that ends the hold, and the price it was worked out from."""
        usage = self.usage_so_far()
        priced = Priced(0, 0)
        if usage is not None and not self._unbilled_refusal():
            priced = self.catalogue.price(usage, self.fallback_of or self.model)  # as the audit does, by what was asked
        usage = usage or Usage()
        kind = "exact" if self.usage_is_final else "estimated"
        if not outcome.paid_by_customer:
            kind = "failed" if outcome is Outcome.REFUSED_UPSTREAM else "waived"
        elif not usage.lines:
            kind = "waived"
        line = usage.lines[0] if len(usage.lines) == 1 else usage.summed(self.model.id)
        upstream = self.tries.upstream
        theirs = self.answer.header(b"request-id") if self.answer is not None else None
        settle = Settle(
            request_id=self.request_id,
            account_id=self.caller.account_id,
            kind=kind,
            model=self._answering_model,
            outcome=outcome.value,
            status=self.status,
            cost_nanos=priced.cost_nanos,
            list_nanos=priced.list_nanos,
            waive=not outcome.paid_by_customer,
            input_tokens=line.input,
            cache_write_5m_tokens=line.cache_write_5m,
            cache_write_1h_tokens=line.cache_write_1h,
            cache_read_tokens=line.cache_read,
            output_tokens=line.output,
            web_searches=usage.web_searches,
            limited_tokens=line.limited_tokens,
            detail=_detail(usage, self._answering_model),
            stop_reason=_kept(self.stop_reason),
            message_id=_kept(self.message_id),
            upstream=upstream.name if upstream is not None else None,
            upstream_request_id=_kept(theirs.decode("latin-1")) if theirs else None,
            attempts=self.tries.total,
            streamed=bool(self.asked.stream),
            first_byte_us=_us(self.started_at, self.first_byte_at),
            duration_us=_us(self.started_at, now) or 0,
            session=self.session,
            agent=self.agent,
            parent_agent=self.parent_agent,
            held_nanos=self.most_held_nanos,
            tries=self._attempts(now),
        )
        return settle, priced

    def hold(self, nanos: int) -> None:
        """Take note of what is held for it now."""
        self.held_nanos = nanos
        self.most_held_nanos = max(self.most_held_nanos, nanos)

    def _attempts(self, now: float) -> str | None:
        """Tell of its attempts at upstreams as JSON, where not all went well: never of what was said."""
        tries = self.tries
        if not tries.failures:
            return None
        told = [_attempt(failure, self.started_at) for failure in tries.failures]
        if len(told) < tries.total and tries.upstream is not None:
            status = self.answer.status if self.answer is not None else None
            last = Failure(tries.upstream.name, tries.sent_at, now, status, None)
            told.append(_attempt(last, self.started_at))
        return msgspec.json.encode(told).decode()

    @property
    def _answering_model(self) -> str:
        name = _kept(self.answered_model)
        if name is None:
            return self.model.id
        sold = self.tries.upstream.sold_as(name) if self.tries.upstream is not None else name
        if self.fallback_of is not None and self.catalogue.answered_by(sold, self.model) is None:
            return self.model.id  # a name of the upstream's own: else it would cost what the model asked for does
        return sold

    def _unbilled_refusal(self) -> bool:
        """Tell a refusal without output, which the upstream does not bill (Messages API, "stop reasons")."""
        return self.stop_reason == "refusal" and self.usage_is_final and self.usage.get("output_tokens") == 0


def claude_code_names(headers: Headers) -> tuple[str | None, str | None, str | None]:
    """Give what Claude Code calls its session, and the agent and parent agent within it; None where it does not."""
    fields = dict(headers)
    if b"x-claude-code-session-id" not in fields:
        return None, None, None
    session, agent, parent = (_name(fields.get(name)) for name in _CLAUDE_CODE)
    return session, agent, parent


def _name(value: bytes | None) -> str | None:
    """Read a name that a client gave; one that is too long, or no printable ASCII, is none."""
    if not value or len(value) > _NAME_CHARS or not value.isascii():
        return None
    text = value.decode()
    return text if text.isprintable() else None


def _attempt(failure: Failure, started_at: float) -> dict[str, object]:
    told: dict[str, object] = {"upstream": failure.upstream}
    if failure.status is not None:
        told["status"] = failure.status
    if failure.error is not None:
        told["error"] = failure.error
    told["started_ms"] = round((failure.sent_at - started_at) * 1000)
    told["took_ms"] = round((failure.ended_at - failure.sent_at) * 1000)
    return told


def _kept(text: str | None) -> str | None:
    """Cut a text of the upstream's to what every database takes: a row must not fail, nor grow, for a name."""
    return (text or "").replace("\0", "")[:_KEPT_CHARS] or None


def _detail(usage: Usage, model: str) -> str | None:
    """Keep the whole usage where a row's columns cannot say it: several steps or models, factors, unknown counters."""
    if len(usage.lines) <= 1 and not usage.unpriced_uses:
        line = usage.lines[0] if usage.lines else None
        if line is None or not (line.model != model or line.fast or line.geo_us or line.batch or line.unpriced):
            return None
    return msgspec.json.encode(usage).decode()


def _us(begin: float, end: float | None) -> int | None:
    return round((end - begin) * 1_000_000) if end is not None else None
