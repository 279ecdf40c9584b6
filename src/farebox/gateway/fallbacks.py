"""Fallbacks: another model in the place of one that no upstream can serve, where the operator says so.

Only while nothing has reached the client, and only where the balance has what that model needs: the hold is brought to
it first. The customer pays for the model that answered, is told in a header, and can decline by one.
"""

from typing import Final

from farebox.accounts.keyring import KeyRing
from farebox.billing.ledger import Resize
from farebox.books.ledger import Ledger
from farebox.errors import Refusal, StoreUnavailable
from farebox.gateway.call import Call
from farebox.gateway.settings import CallLimits, Features
from farebox.gateway.terms import Terms, amounts_of, terms_of
from farebox.upstreams.kinds.bodies import with_fields
from farebox.upstreams.pool import Pool

HEADER: Final = b"farebox-fallback"
_DECLINED: Final = b"off"
_TOKENS_PER_BYTE: Final = 4


class Fallbacks:
    """Finds the model that a call falls back to."""

    def __init__(self, keys: KeyRing, ledger: Ledger, pool: Pool, features: Features, limits: CallLimits) -> None:
        self._keys = keys
        self._ledger = ledger
        self._pool = pool
        self._features = features
        self._limits = limits
        self.taken = 0

    async def take(self, call: Call) -> bool:
        """Turn a call that no upstream could serve to the next model for it; tells whether there is one."""
        if call.exchange.started or call.exchange.gone or call.tries.abandoned or call.tries.only:
            return False
        asked = call.fallback_of or call.model
        if (call.exchange.header(HEADER) or b"").strip().lower() == _DECLINED:
            return False
        for name in asked.fallbacks[call.fallbacks_seen :]:
            call.fallbacks_seen += 1
            terms = self._terms(call, name)
            if terms is not None and await self._is_held(call, terms):
                call.fallback_of = asked
                call.asked, call.body, call.model = terms.asked, terms.body, terms.model
                call.demand, call.output_rate = terms.demand, terms.output_rate
                call.tries = call.tries.anew()
                self.taken += 1
                return True
        return False

    def _terms(self, call: Call, name: str) -> Terms | None:
        """Bound the call as one to another model; None where that is not served, allowed or able."""
        model = call.catalogue.find(name)
        if model is None or not self._pool.ways_up(model.id)[0]:
            return None
        if call.demand.web_searches and model.web_search != call.model.web_search:
            return None  # searches are priced by the model that was asked for
        try:
            self._keys.check_model(call.caller, model.id)
            body = with_fields(call.body, model=model.id)
            return terms_of(body, call.exchange.headers, call.catalogue, self._features, self._limits)
        except Refusal:
            return None

    async def _is_held(self, call: Call, terms: Terms) -> bool:
        """Bring the hold to what the other model needs at first; tells whether the balance has it."""
        amounts = amounts_of(
            terms.model,
            terms.demand,
            terms.output_rate,
            stream=terms.asked.stream,
            slice_tokens=self._limits.slice_tokens,
        )
        wanted = max(amounts.wanted, call.held_nanos)
        tokens = len(call.body) // _TOKENS_PER_BYTE
        try:
            resized = await self._ledger.resize(Resize(call.request_id, call.caller.account_id, wanted, tokens))
        except StoreUnavailable:
            return False
        if resized.gone:
            return False
        call.hold(resized.amount_nanos)
        return resized.amount_nanos >= amounts.least
