"""POST …/messages/quote: what a call would hold, cost and be refused for, by the very code that admits calls.

Nothing is held, nothing goes upstream, nothing is charged.
"""

from statistics import median_low
from typing import Any, Final

import msgspec

from farebox.accounts.keyring import Caller, KeyRing
from farebox.accounts.keys import find_key
from farebox.accounts.stopped_sessions import StoppedSessions
from farebox.billing.ledger import SpendLimit
from farebox.billing.pricing import Catalogue
from farebox.billing.usage import Line, Usage
from farebox.books.prices import Prices
from farebox.clock import Clock
from farebox.errors import InsufficientBalance, RateLimited
from farebox.gateway.answers import JSON
from farebox.gateway.bodies import Bodies
from farebox.gateway.call import claude_code_names
from farebox.gateway.counting import CountLimit
from farebox.gateway.settings import CallLimits, Features
from farebox.gateway.spending import SpendWords
from farebox.gateway.terms import Amounts, Terms, amounts_of, fitting_tokens, insufficient_words, terms_of
from farebox.http.exchange import Exchange, Headers
from farebox.ids import show_request_id
from farebox.money import decimal_usd
from farebox.store.protocol import Store

_BYTES_PER_QUESTION: Final = 2**19
"""A large body is read for longer: it counts for as many questions."""
_LOOKED_AT: Final = 200
"""Of the account's last calls so many are looked through for those like this one."""
_FREE: Final = "SELECT posted_nanos - held_nanos FROM account WHERE id = ?"
_OUTPUTS: Final = (
    "SELECT output_tokens FROM (SELECT model, asked_model, outcome, output_tokens FROM usage "
    "WHERE account_id = ? ORDER BY at DESC LIMIT ?) AS recent "
    "WHERE outcome = 'finished' AND (model = ? OR asked_model = ?)"
)


class Quotes:
    """Answers what a call would come to."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        store: Store,
        prices: Prices,
        features: Features,
        limits: CallLimits,
        bodies: Bodies,
        questions: CountLimit,
        stopped: StoppedSessions,
        clock: Clock,
        top_up_words: str,
        spend_words: SpendWords,
    ) -> None:
        self._keys = keys
        self._store = store
        self._prices = prices
        self._features = features
        self._limits = limits
        self._bodies = bodies
        self._questions = questions
        self._stopped = stopped
        self._clock = clock
        self._top_up_words = top_up_words
        self._spend_words = spend_words

    async def quote(
        self, exchange: Exchange, request_id: bytes, caller: Caller | None = None, body: bytes | None = None
    ) -> None:
        """Answer with a quote. Raises Refusal for what the call itself would be refused for, in the same words.

        A balance or spend limit that is too small is told in the answer instead, beside what would fit.
        `caller` and `body`: of a question whose key is known by other means, and whose body has been read.
        """
        caller = caller or await self._keys.authenticate(exchange.headers, self._clock(), exchange.peer)
        session = claude_code_names(exchange.headers)[0]
        if session is not None and self._stopped.has(caller.account_id, session):
            raise self._stopped.refusal(session)
        room = self._bodies.take(caller.account_id, exchange)
        try:
            body = body if body is not None else await exchange.read_body(self._limits.body_bytes)
            if wait_s := self._questions.take(caller.key_id, 1 + len(body) // _BYTES_PER_QUESTION):
                raise RateLimited(
                    f"a key may ask {self._questions.per_minute} questions a minute about its account, "
                    f"of which a large quote is several; try again in {wait_s} s",
                    retry_after_s=wait_s,
                )
            catalogue = self._prices.now
            terms = terms_of(body, exchange.headers, catalogue, self._features, self._limits)
            self._keys.check_model(caller, terms.model.id)
            value = await self._quote(caller, terms, catalogue)
        finally:
            self._bodies.give_back(caller.account_id, room)
        shown = show_request_id(request_id).encode()
        headers: Headers = [JSON, (b"request-id", shown), (b"cache-control", b"no-store")]
        exchange.respond(200, headers, msgspec.json.encode(value))

    async def _quote(self, caller: Caller, terms: Terms, catalogue: Catalogue) -> dict[str, Any]:
        model, demand, stream = terms.model, terms.demand, terms.asked.stream
        slice_tokens = self._limits.slice_tokens
        amounts = amounts_of(model, demand, terms.output_rate, stream=stream, slice_tokens=slice_tokens)
        balance = int((await self._store.fetch(_FREE, (caller.account_id,)))[0][0])
        limit = await self._spend_limit(caller)
        free = balance if limit is None else min(balance, limit.left_nanos)
        admitted = _admitted(amounts, free)
        seen = await self._store.fetch(_OUTPUTS, (caller.account_id, _LOOKED_AT, model.id, terms.asked.model))
        output = min(demand.max_tokens, median_low([tokens for (tokens,) in seen]) if seen else demand.max_tokens)
        line = Line(model.id, input=demand.likely_tokens, output=output, fast=demand.fast, geo_us=demand.geo_us)
        expected = min(amounts.most, catalogue.price(Usage((line,)), model).cost_nanos)
        return {
            "type": "quote",
            "currency": "USD",
            "model": model.id,
            "stream": stream,
            "max_tokens": demand.max_tokens,
            "price_version": catalogue.version,
            "input_tokens": {"expected": demand.likely_tokens, "at_most": demand.prompt_tokens},
            "output_tokens": {"expected": output, "at_most": demand.max_tokens},
            "expected_cost": decimal_usd(expected),
            "expected_from": _basis(len(seen)),
            "highest_cost": decimal_usd(amounts.most),
            "hold": decimal_usd(max(amounts.least, min(amounts.wanted, free))),
            "least_hold": decimal_usd(amounts.least),
            "free": decimal_usd(balance),
            "spend_limit_left": None if limit is None else decimal_usd(max(0, limit.left_nanos)),
            "missing": decimal_usd(max(0, amounts.least - max(0, free))),
            "affordable_max_tokens": min(model.max_output_tokens, fitting_tokens(amounts, terms.output_rate, free)),
            "admitted": admitted,
            "refusal": None if admitted == "yes" else self._refusal(terms, amounts, balance, limit),
        }

    async def _spend_limit(self, caller: Caller) -> SpendLimit | None:
        now_us = self._clock()
        budget = (await find_key(self._store, str(caller.key_id))).budget
        if budget is None:
            return None
        return SpendLimit(budget.limit_nanos, budget.limit_nanos - budget.used(now_us), budget.resets)

    def _refusal(self, terms: Terms, amounts: Amounts, balance: int, limit: SpendLimit | None) -> dict[str, Any]:
        """Say what the call would be refused with: the balance comes first, as in the ledger."""
        most = terms.demand.max_tokens
        if limit is None or _admitted(amounts, balance) != "yes":
            words = insufficient_words(amounts, terms.output_rate, most, balance, self._top_up_words)
        else:
            words = self._spend_words.refused(limit, amounts, terms.output_rate, most, self._clock())
        return {"status": InsufficientBalance.status, "type": InsufficientBalance.wire_type, "message": words}


def _admitted(amounts: Amounts, free: int) -> str:
    """Tell whether so much money lets the call in: where little is left the provider counts the input first."""
    if free > 0 and amounts.least <= free:
        return "yes"
    return "if_counted" if free > amounts.least - amounts.prompt else "no"


def _basis(calls: int) -> str:
    """Say what the expected figures come from."""
    input_ = "input: a token for every four bytes of text, at the plain price"
    if not calls:
        return f"{input_}; output: all of max_tokens, since there is no finished call like it yet"
    return f"{input_}; output: the median of {calls} finished calls to this model among your last {_LOOKED_AT}"
