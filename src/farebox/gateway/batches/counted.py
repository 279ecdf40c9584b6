"""A closer bound for batches that the balance does not cover by their bytes: the upstream counts tokens for free."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from farebox.billing.bound import output_rate
from farebox.errors import Refusal
from farebox.gateway.batches.entries import Entry
from farebox.gateway.counting import CountLimit
from farebox.gateway.terms import amounts_of
from farebox.http.exchange import Headers
from farebox.http.failures import UpstreamError
from farebox.upstreams.kinds.kind import COUNT_TOKENS, Ask
from farebox.upstreams.pool import Pool
from farebox.upstreams.tries import Tries

_MOST_ITEMS: Final = 200
"""Larger batches are held by their bytes: their items would be as many requests upstream."""
_AT_ONCE: Final = 8
_MARGIN_PERMILLE: Final = 1_050
"""The upstream's token count "may differ by a small amount" from what it bills."""
_ANSWER_BYTES: Final = 2**16


class _Count(msgspec.Struct):
    input_tokens: int


_count: Final = msgspec.json.Decoder(_Count)


class Counting:
    """Asks upstreams how many tokens items are. `counts` is the customers' own limit of such questions."""

    def __init__(self, pool: Pool, counts: CountLimit) -> None:
        self._pool = pool
        self._counts = counts

    async def refine(self, entries: Sequence[Entry], headers: Headers, account_id: int) -> None:
        """Lower what items can cost at most, where their upstream's count says so."""
        if len(entries) > _MOST_ITEMS or self._counts.take(account_id, len(entries)):
            return
        turns = asyncio.Semaphore(_AT_ONCE)
        await asyncio.gather(*(self._refine(entry, headers, turns) for entry in entries))

    async def _refine(self, entry: Entry, headers: Headers, turns: asyncio.Semaphore) -> None:
        async with turns:
            tokens = await self._ask(entry, headers)
        if tokens is not None and tokens < entry.demand.prompt_tokens:
            entry.demand = msgspec.structs.replace(entry.demand, prompt_tokens=tokens)
            rate = output_rate(entry.model, entry.demand)
            entry.nanos = amounts_of(entry.model, entry.demand, rate, stream=False, slice_tokens=0).most

    async def _ask(self, entry: Entry, headers: Headers) -> int | None:
        ask = Ask(
            path=COUNT_TOKENS,
            headers=headers,
            body=bytes(entry.params),
            model=entry.model.id,
            said=entry.said,
            known_as=entry.said,
        )
        tries = Tries()
        try:
            answer = await self._pool.send(tries, ask, conversation=b"")
            body = await answer.read(_ANSWER_BYTES)
            self._pool.note_success(tries)
            return _count.decode(body).input_tokens * _MARGIN_PERMILLE // 1000 + 64 if answer.status == 200 else None
        except (UpstreamError, Refusal, msgspec.DecodeError):
            return None
