"""Recounting: how many tokens of an answer were delivered that was cut off before the upstream told.

The upstream counts tokens for free, so it is asked for what came, and the published rule (bytes of text) gives way
to its count where that is lower. Never upwards; and without an answer in time the rule stands.
"""

import asyncio
from typing import Annotated, Final

import msgspec

from farebox.errors import Refusal
from farebox.gateway.call import Call
from farebox.gateway.wire import DEFAULT_VERSION
from farebox.http.failures import UpstreamError
from farebox.upstreams.kinds.kind import COUNT_TOKENS, Ask
from farebox.upstreams.pool import Pool
from farebox.upstreams.tries import Tries
from farebox.upstreams.upstream import Upstream

_ANSWER_BYTES: Final = 2**16
_PROBE: Final = b"."
"""One token; what its count is above that is what a message costs around its text."""


class Recount:
    """Asks upstreams how long an answer was that was cut off."""

    def __init__(self, pool: Pool, patience_s: float) -> None:
        self._pool = pool
        self._patience_s = patience_s
        self._around: dict[tuple[str, str], int] = {}
        """Tokens around the text of a message, by upstream and the model's name there: as many as models are sold."""

    async def correct(self, call: Call) -> None:
        """Take note in a call of what its upstream counts for what was delivered of its answer."""
        upstream = call.tries.upstream
        text = call.visible_text
        if not text or upstream is None or self._patience_s <= 0 or not upstream.kind.has(COUNT_TOKENS):
            return
        try:
            async with asyncio.timeout(self._patience_s):
                around = await self._tokens_around(call, upstream)
                counted = await self._count(call, upstream, text) - around
        except (UpstreamError, Refusal, TimeoutError, msgspec.DecodeError):
            return
        if counted < 1:  # what came is a token at least: one of the two counts is none, and the next probe tells which
            self._around.pop((upstream.name, call.model.id), None)
            return
        call.counted_output = counted

    async def _tokens_around(self, call: Call, upstream: Upstream) -> int:
        key = (upstream.name, call.model.id)
        if key not in self._around:
            self._around[key] = await self._count(call, upstream, _PROBE) - 1
        return self._around[key]

    async def _count(self, call: Call, upstream: Upstream, text: bytes) -> int:
        """Count one message of a text, which is written as it stands in JSON."""
        name = msgspec.json.encode(call.asked.model)
        ask = Ask(
            path=COUNT_TOKENS,
            headers=[(b"content-type", b"application/json"), (b"anthropic-version", DEFAULT_VERSION)],
            body=b'{"model":%b,"messages":[{"role":"user","content":"%b"}]}' % (name, text),
            model=call.model.id,
            said=call.asked.model,
            known_as=call.asked.model,
        )
        tries = Tries(only=upstream.name)
        tries.abandoned = True  # the rule will do: nothing is tried twice for this
        answer = await self._pool.send(tries, ask, conversation=call.conversation)
        data = await answer.read(_ANSWER_BYTES)
        self._pool.note_success(tries)
        if answer.status != 200:
            raise msgspec.DecodeError
        return msgspec.json.decode(data, type=_Counted).input_tokens


class _Counted(msgspec.Struct):
    input_tokens: Annotated[int, msgspec.Meta(ge=1)]
