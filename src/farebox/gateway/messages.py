"""The life of a call to POST /v1/messages, as one story.

One coroutine owns the hold from its first moment to its end. Whatever happens to client, upstream or task, it comes
past `_end`, which settles once (promises 1, 2 and 4).
"""

import asyncio
from typing import Final

import msgspec

from farebox.accounts.keyring import Caller, KeyRing
from farebox.accounts.stopped_sessions import StoppedSessions
from farebox.billing.ledger import Admission, Admit, Settled, SpendLimit, Verdict
from farebox.books.ledger import Ledger
from farebox.books.prices import Prices
from farebox.clock import Clock
from farebox.errors import (
    AuthenticationFailed,
    InsufficientBalance,
    Overloaded,
    PermissionDenied,
    RateLimited,
    Refusal,
    StoreUnavailable,
    Unavailable,
    UpstreamFailed,
)
from farebox.gateway.answers import budget_headers, limit_headers
from farebox.gateway.bodies import Bodies
from farebox.gateway.call import Call, Outcome
from farebox.gateway.counting import CountLimit
from farebox.gateway.demand import conversation_of
from farebox.gateway.fallbacks import HEADER as FALLBACK
from farebox.gateway.fallbacks import Fallbacks
from farebox.gateway.files.desk import Files
from farebox.gateway.levels import Levels
from farebox.gateway.recount import Recount
from farebox.gateway.settings import CallLimits, Features
from farebox.gateway.settling import Settler
from farebox.gateway.spending import SpendWords
from farebox.gateway.streaming import Streams
from farebox.gateway.terms import Amounts, amounts_of, insufficient_words, terms_of
from farebox.gateway.whole import operators_own, read_answer
from farebox.gateway.wire import client_headers, upstream_headers
from farebox.http.exchange import Exchange, Headers
from farebox.http.failures import BadAnswer, NoUsage, UpstreamError
from farebox.upstreams.kinds.kind import COUNT_TOKENS, MESSAGES, Ask, Reply
from farebox.upstreams.pool import Pool
from farebox.upstreams.tries import Tries

_ANSWER_BYTES: Final = 64 * 2**20
_CLIENTS_SHARE: Final = 0.1
"""A stream that stood still for its client for more than this share of the longest time ran out of it for that."""
_ADMIT_S: Final = 1.8
"""How long a call may wait for its hold: somebody is waiting for the answer, and can try again."""
_TOKENS_PER_BYTE: Final = 4
"""A first guess for the token bucket, corrected once the upstream has counted."""
_COUNT_MARGIN_PERMILLE: Final = 1_050
"""The upstream's token count "may differ by a small amount" from what it bills."""


class Messages:
    """Serves calls. Everything it needs is given; it keeps nothing of a call once it has ended."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        ledger: Ledger,
        pool: Pool,
        streams: Streams,
        settler: Settler,
        recount: Recount,
        fallbacks: Fallbacks,
        levels: Levels,
        counts: CountLimit,
        bodies: Bodies,
        prices: Prices,
        features: Features,
        limits: CallLimits,
        clock: Clock,
        top_up_words: str,
        spend_words: SpendWords,
        stopped: StoppedSessions,
        files: Files | None = None,
    ) -> None:
        self._keys = keys
        self._ledger = ledger
        self._pool = pool
        self._streams = streams
        self._settler = settler
        self._recount = recount
        self.fallbacks = fallbacks
        self._levels = levels
        self._counts = counts
        self._bodies = bodies
        self._prices = prices
        self._features = features
        self._limits = limits
        self._clock = clock
        self._top_up_words = top_up_words
        self._spend_words = spend_words
        self.stopped = stopped
        self._files = files
        self._calls: set[Call] = set()
        self.in_flight = 0

    async def serve(
        self, exchange: Exchange, request_id: bytes, caller: Caller | None = None, body: bytes | None = None
    ) -> None:
        """Serve one call from its first byte to its last. Raises Refusal for what was not let in.

        `caller` and `body`: of a call whose key is known by other means, and whose body has been read.
        """
        started_at = asyncio.get_running_loop().time()
        self._check_crowd()
        caller = caller or await self._keys.authenticate(exchange.headers, self._clock(), exchange.peer)
        call = Call(exchange, request_id, caller, self._prices.now, started_at)
        try:
            if self._is_stopped(call):
                raise self.stopped.refusal(call.session or "")
            call.room = self._bodies.take(caller.account_id, exchange)
            self._parse(call, body if body is not None else await exchange.read_body(self._limits.body_bytes))
            if self._files is not None:
                call.tries.only = await self._files.place(call.asked, caller.account_id, call.model.id)
            self._check_crowd()
            self.in_flight += 1
            try:
                await self._hold(call)
                await self._run(call)
            finally:
                self.in_flight -= 1
        except Refusal as refusal:
            refusal.headers = self._levels.headers(caller, self._clock())
            raise
        finally:
            self._bodies.give_back(caller.account_id, call.room)

    def _check_crowd(self) -> None:
        """Refuse a call too many: before anything is done for it, and once more when its body has come."""
        if self.in_flight >= self._limits.concurrent_calls:
            raise Overloaded("the gateway is at its limit of calls at once; try again shortly", retry_after_s=2)

    def _begun(self, call: Call) -> None:
        """Let go of a prompt whose answer has begun, and of the room that it took."""
        call.forget_prompt()
        self._bodies.give_back(call.caller.account_id, call.room)
        call.room = 0

    # parse

    def _parse(self, call: Call, body: bytes) -> None:
        """Read what the call asks for, and bound it, at the prices of now: its body may have been long in coming."""
        call.catalogue = self._prices.now
        terms = terms_of(body, call.exchange.headers, call.catalogue, self._features, self._limits)
        self._keys.check_model(call.caller, terms.model.id)
        call.asked, call.body, call.model = terms.asked, terms.body, terms.model
        call.demand, call.output_rate, call.nickname = terms.demand, terms.output_rate, terms.nickname
        call.conversation = conversation_of(call.asked, call.exchange.headers, call.caller.account_id)

    # rate-limit, bound, hold

    async def _hold(self, call: Call) -> None:
        """Take the call's share of the limits and hold its money, durably, or refuse it in words that help."""
        admission = await self._admit(call, len(call.body) // _TOKENS_PER_BYTE)
        if _nearly_enough(admission):
            counted = await self._count_tokens(call)
            if counted is not None and counted < call.demand.prompt_tokens:
                call.demand = msgspec.structs.replace(call.demand, prompt_tokens=counted)
                admission = await self._admit(call, counted)
        call.requests, call.tokens, call.budget = admission.requests, admission.tokens, admission.spend_limit
        self._levels.saw(call.caller.account_id, admission.requests, admission.tokens)
        call.hold(admission.held_nanos)
        if admission.verdict is not Verdict.ADMITTED:
            raise self._refusal(call, admission)

    async def _admit(self, call: Call, tokens: int) -> Admission:
        amounts = self._amounts(call)
        admit = Admit(
            request_id=call.request_id,
            account_id=call.caller.account_id,
            key_id=call.caller.key_id,
            model=call.asked.model,
            amount_nanos=amounts.wanted,
            least_nanos=amounts.least,
            tokens=tokens,
            price_version=call.catalogue.version,
        )
        try:
            return await self._ledger.hold(admit, _ADMIT_S)
        except StoreUnavailable as error:
            raise Unavailable(
                "the books cannot be written at the moment; try again shortly", retry_after_s=2
            ) from error

    async def _count_tokens(self, call: Call) -> int | None:
        """Ask the upstream, which counts for free, when the bound by bytes is more than the balance."""
        if self._counts.take(call.caller.account_id):
            return None
        tries = Tries(only=call.tries.only)
        try:
            answer = await self._pool.send(tries, _ask_of(call, COUNT_TOKENS), conversation=call.conversation)
            counted = msgspec.json.decode(await answer.read(2**16)).get("input_tokens")
            self._pool.note_success(tries)
        except (UpstreamError, Refusal, msgspec.DecodeError, AttributeError):
            return None
        return (
            counted * _COUNT_MARGIN_PERMILLE // 1000 + 64 if answer.status == 200 and isinstance(counted, int) else None
        )

    def _refusal(self, call: Call, admission: Admission) -> Refusal:
        wait_s = -(-admission.retry_after_ns // 1_000_000_000)
        match admission.verdict:
            case Verdict.REQUESTS_LIMITED if admission.requests:
                return RateLimited(
                    f"your plan allows {admission.requests.limit} requests a minute; try again in {wait_s} s",
                    retry_after_s=wait_s,
                )
            case Verdict.KEY_REQUESTS_LIMITED:
                return RateLimited(
                    f"this key allows {call.caller.key_requests_per_minute} requests a minute; try again in {wait_s} s",
                    retry_after_s=wait_s,
                )
            case Verdict.TOKENS_LIMITED if admission.tokens:
                return RateLimited(
                    f"your plan allows {admission.tokens.limit} tokens a minute; try again in {wait_s} s",
                    retry_after_s=wait_s,
                )
            case Verdict.TOO_MANY_AT_ONCE:
                return RateLimited(
                    f"your plan allows {admission.concurrent} calls at once; try again when one has ended",
                    retry_after_s=1,
                )
            case Verdict.INSUFFICIENT:
                return InsufficientBalance(self._insufficient_words(call, admission.free_nanos))
            case Verdict.KEY_LIMITED if admission.spend_limit:
                return InsufficientBalance(self._spend_limit_words(call, admission.spend_limit))
            case Verdict.SUSPENDED:
                self._keys.forget()
                return PermissionDenied("this account is suspended")
            case Verdict.DUPLICATE:
                return Unavailable("this call's id is in use; try again", retry_after_s=1)
            case _:
                self._keys.forget()
                return AuthenticationFailed("this API key has just been revoked or disabled; use another")

    def _amounts(self, call: Call) -> Amounts:
        return amounts_of(
            call.model,
            call.demand,
            call.output_rate,
            stream=call.asked.stream,
            slice_tokens=self._limits.slice_tokens,
        )

    def _insufficient_words(self, call: Call, free_nanos: int) -> str:
        amounts, most = self._amounts(call), call.demand.max_tokens
        return insufficient_words(amounts, call.output_rate, most, free_nanos, self._top_up_words)

    def _spend_limit_words(self, call: Call, limit: SpendLimit) -> str:
        amounts, most = self._amounts(call), call.demand.max_tokens
        return self._spend_words.refused(limit, amounts, call.output_rate, most, self._clock())

    # send, relay, settle

    async def _run(self, call: Call) -> None:
        """Send the call up, bring its answer down, and end its hold, however that goes."""
        outcome = Outcome.GATEWAY_BROKE
        refusal: Refusal | None = None
        last = b""
        call.task = asyncio.current_task()
        call.exchange.on_gone = lambda: self._hung_up(call)
        self._calls.add(call)
        try:
            if call.exchange.gone:
                outcome = Outcome.CLIENT_GONE  # before a byte of it went upstream: nobody wants the answer any more
            elif self._is_stopped(call):
                outcome, refusal = Outcome.CLIENT_GONE, self.stopped.refusal(call.session or "")
            else:
                outcome, last = await self._send_and_relay(call)
        except Refusal as error:
            outcome, refusal = Outcome.UPSTREAM_BROKE, error
        except asyncio.CancelledError:
            if not call.expired:
                raise
            outcome, refusal = self._out_of_time(call)
        finally:
            call.task = call.exchange.on_gone = None
            self._calls.discard(call)
            if call.answer is not None and not (outcome is Outcome.FINISHED or outcome is Outcome.REFUSED_UPSTREAM):
                call.answer.abandon()
            if refusal is not None and not call.exchange.started:
                call.status = refusal.status
            if outcome is Outcome.FINISHED and call.hung_up:
                outcome = Outcome.CLIENT_GONE
            try:
                if outcome.paid_by_customer and not call.usage_is_final and not self._streams.stopping:
                    await self._recount.correct(call)
            finally:
                settled = await self._settler.end(call, outcome)
        self._deliver(call, last, refusal, settled)

    def tick(self, now: float) -> None:
        """End calls that have taken too long. Called about once a second."""
        oldest = now - self._limits.call_s
        for call in [call for call in self._calls if call.started_at < oldest]:
            call.expire()

    def end_stopped(self) -> None:
        """End the calls of sessions that have been stopped: as if their client had gone, what came is charged."""
        for call in [call for call in self._calls if self._is_stopped(call)]:
            call.stopped = True
            call.expire()

    def _is_stopped(self, call: Call) -> bool:
        return self.stopped.has(call.caller.account_id, call.session)

    def _out_of_time(self, call: Call) -> tuple[Outcome, Refusal | None]:
        """Tell who broke a call that was ended for its time: else reading slowly would make every long stream free."""
        if call.hung_up:
            return Outcome.CLIENT_GONE, None
        if call.stopped:
            return Outcome.CLIENT_GONE, self.stopped.refusal(call.session or "")
        words = f"the call took longer than {self._limits.call_s:g} s and was ended"
        if call.held_up_s < self._limits.call_s * _CLIENTS_SHARE:
            return Outcome.UPSTREAM_BROKE, Unavailable(f"{words}; nothing was charged")
        return Outcome.CLIENT_GONE, Unavailable(f"{words}, since its client read too slowly; what came is charged")

    def _hung_up(self, call: Call) -> None:
        """Read on without the client, for as long as a drain may take."""
        call.hung_up = call.tries.abandoned = True
        self._streams.hung_up(call)
        if self._limits.drain_s > 0:
            asyncio.get_running_loop().call_later(self._limits.drain_s, call.expire)
        else:
            call.expire()

    async def _send_and_relay(self, call: Call) -> tuple[Outcome, bytes]:
        """Have the call served by its model, or by one that it falls back to; else as `_try_upstreams` does."""
        while True:
            try:
                return await self._try_upstreams(call)
            except (UpstreamFailed, Overloaded):
                if not await self.fallbacks.take(call):
                    raise

    async def _try_upstreams(self, call: Call) -> tuple[Outcome, bytes]:
        """Try upstreams until one answers; relay what it says. Answers the outcome and the last bytes, not yet sent.

        Raises Refusal when no upstream gave a usable answer; then nothing has reached the client.
        """
        while True:  # the ask is kept by no name: it has the whole body, and the stream may last for an hour
            call.answer = answer = await self._pool.send(
                call.tries, _ask_of(call, MESSAGES), conversation=call.conversation
            )
            try:
                if (answer.header(b"content-encoding") or b"identity").strip().lower() != b"identity":
                    raise BadAnswer("the upstream compressed its answer, though nobody asked for that")
                if answer.status >= 400:
                    error_body = await answer.read(_ANSWER_BYTES)
                    matter = operators_own(error_body)
                    if matter is None:
                        call.status = answer.status
                        return Outcome.REFUSED_UPSTREAM, error_body
                    self._pool.note_refused(call.tries, matter)
                    await self._pool.prepare_retry(call.tries)
                    continue
                content_type = (answer.header(b"content-type") or b"").lower()
                if content_type.startswith(b"text/event-stream"):
                    headers = self._answer_headers(call, answer)
                    outcome, last = await self._streams.relay(call, answer, headers, self._begun)
                elif content_type.startswith(b"application/json"):
                    outcome, last = await self._whole(call, answer)
                else:
                    kind = content_type[:60].decode("latin-1")
                    raise BadAnswer(f"the upstream answered {answer.status} with {kind!r}")
            except UpstreamError as error:  # nothing has reached the client: another try may
                answer.abandon()
                self._pool.note_failure(call.tries, error)
                await self._pool.prepare_retry(call.tries)
                continue
            if outcome is Outcome.FINISHED:
                self._pool.note_success(call.tries)
            elif outcome is Outcome.UPSTREAM_BROKE:
                broke = NoUsage("the stream reported no usage") if call.lacks_usage else BadAnswer("the stream broke")
                self._pool.note_failure(call.tries, broke)
            return outcome, last

    async def _whole(self, call: Call, answer: Reply) -> tuple[Outcome, bytes]:
        """Take in an answer that is one JSON body."""
        data = await answer.read(_ANSWER_BYTES)
        message = read_answer(data)
        if message is None:
            raise BadAnswer("the upstream's answer is not a message")
        if not isinstance(message.usage, dict):
            raise NoUsage("the upstream's answer reports no usage")
        call.answered_model = str(message.model or "")
        call.message_id = str(message.id or "") or None
        call.stop_reason = str(message.stop_reason or "") or None
        call.usage, call.usage_is_final = message.usage, True
        if message.usage.get("output_tokens") is None or call.usage_so_far() is None:
            call.usage, call.usage_is_final = {}, False
            raise NoUsage("the upstream's answer reports no usable usage")
        call.status = 200
        call.first_byte_at = asyncio.get_running_loop().time()
        return Outcome.FINISHED, data

    def _deliver(self, call: Call, last: bytes, refusal: Refusal | None, settled: Settled | None) -> None:
        """Send what was held back until the charge was durable; without a charge nothing more leaves (promise 1)."""
        exchange = call.exchange
        if exchange.started:
            self._streams.finish(call, last, refusal, settled)
            return
        if settled is None and refusal is None:
            refusal = Unavailable(
                "the charge could not be written, so nothing was charged and nothing is delivered",
                retry_after_s=5,
            )
        if refusal is not None:
            raise refusal
        if exchange.gone or call.answer is None:
            return
        exchange.respond(call.status, self._answer_headers(call, call.answer), last)

    def _answer_headers(self, call: Call, answer: Reply) -> Headers:
        headers = client_headers(answer.headers)
        headers.append((b"request-id", call.shown_id.encode()))
        headers += limit_headers(call.requests, call.tokens)
        if call.nickname or call.fallback_of is not None:
            headers.append((b"farebox-model", call.model.id.encode()))
        if call.fallback_of is not None:
            headers.append((FALLBACK, f"{call.fallback_of.id} -> {call.model.id}".encode()))
        if call.budget is not None:
            headers += budget_headers(call.budget, self._clock())
        return headers


def _nearly_enough(admission: Admission) -> bool:
    """Tell whether a call that was not let in might be, once its prompt has been counted."""
    limit = admission.spend_limit
    if admission.verdict is Verdict.KEY_LIMITED and limit is not None:
        return limit.left_nanos > 0
    return admission.verdict is Verdict.INSUFFICIENT and admission.free_nanos > 0


def _ask_of(call: Call, path: str) -> Ask:
    """Put what a call asks for as it goes up: the body, and the headers that may."""
    return Ask(
        path=path,
        headers=upstream_headers(call.exchange.headers),
        body=call.body,
        query=call.exchange.query,
        model=call.model.id,
        said=call.asked.model,
        known_as=call.asked.model,
        stream=call.asked.stream,
    )
