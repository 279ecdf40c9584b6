"""A test of an upstream: one small question by the way its calls go, free of charge where there is such a question."""

import asyncio
from typing import Final

import msgspec
from msgspec import Struct

from farebox.clock import Clock
from farebox.errors import Refusal
from farebox.http.failures import UpstreamError
from farebox.upstreams.fields import secrets_of
from farebox.upstreams.kinds.kind import COUNT_TOKENS, MESSAGES, Ask
from farebox.upstreams.upstream import Upstream

_TRIAL_S: Final = 10.0
_TRIAL_BYTES: Final = 2**16
_WORDS_CHARS: Final = 300
_SECRET_CHARS: Final = 6
"""Shorter ones are in any text."""


class Trial(Struct, frozen=True):
    """What came of a test of an upstream. `paid`: whether it was a call of one token, which the provider may charge."""

    well: bool
    words: str
    took_us: int
    paid: bool = False


def is_free(upstream: Upstream) -> bool:
    """Tell whether a test costs nothing: the upstream counts tokens."""
    return upstream.kind.has(COUNT_TOKENS)


async def try_upstream(upstream: Upstream, model_id: str, clock: Clock) -> Trial:
    """Let an upstream count the tokens of a word or, where it does not count, say one token.

    `model_id` is asked about unless the upstream serves certain models. One that rests is used again when it went well.
    The words are the upstream's own, less a credential that it repeats.
    """
    model = model_id if not upstream.models else min(upstream.models)
    free = is_free(upstream)
    said = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    body = msgspec.json.encode(said if free else said | {"max_tokens": 1})
    headers = [(b"content-type", b"application/json"), (b"anthropic-version", b"2023-06-01")]
    path = COUNT_TOKENS if free else MESSAGES
    ask = Ask(path=path, headers=headers, body=body, model=model, said=model, known_as=model)
    began_us = clock()
    try:
        async with asyncio.timeout(_TRIAL_S):
            answer = await upstream.request(ask, first_byte_s=_TRIAL_S)
            text = (await answer.read(_TRIAL_BYTES)).decode("utf-8", "replace")
    except (UpstreamError, Refusal, TimeoutError) as error:
        words = str(error) or f"no answer within {_TRIAL_S:g} s"
        return Trial(False, f"{type(error).__name__}: {words}", clock() - began_us, not free)  # noqa: FBT003
    if well := answer.status == 200:
        upstream.succeeded()
    for secret in secrets_of(upstream.settings).values():
        text = text.replace(secret, "…") if len(secret) >= _SECRET_CHARS else text
    shown = "".join(char for char in text[:_WORDS_CHARS] if char.isprintable())
    return Trial(well, f"{answer.status}: {shown}", clock() - began_us, not free)
