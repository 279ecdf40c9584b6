"""The terms of a call: what it asks for, and what it may come to. A call and a quote for one get them here alike."""

from typing import Final

import msgspec

from farebox.billing.bound import Demand, affordable_tokens, output_cost, output_rate, prompt_cost
from farebox.billing.pricing import Catalogue, Model
from farebox.errors import InvalidRequest
from farebox.gateway.ask import Asked, read_request, with_max_tokens
from farebox.gateway.demand import demand_of
from farebox.gateway.settings import CallLimits, Features
from farebox.http.exchange import Headers
from farebox.money import format_usd
from farebox.upstreams.kinds.bodies import with_fields

_WRITTEN_WIDER: Final = 8
"""Bytes that a client may need to write max_tokens itself: what it is then told to be affordable still is."""


class Terms(msgspec.Struct):
    """What a request asks for. `body` is what goes up; `output_rate` is in nano-dollars per million tokens.

    `nickname` is what the model was called, where the operator made that name up; `asked` and `body` have its id.
    """

    asked: Asked
    body: bytes
    model: Model
    demand: Demand
    output_rate: int
    nickname: str = ""


class Amounts(msgspec.Struct, frozen=True):
    """What a call holds at first, what is the least that lets it in, and what it comes to at most; in nano-dollars."""

    prompt: int
    least: int
    wanted: int
    most: int


def terms_of(body: bytes, headers: Headers, catalogue: Catalogue, features: Features, limits: CallLimits) -> Terms:
    """Read what a request asks for, and bound it. Raises InvalidRequest, naming field and reason."""
    asked = read_request(body)
    model = catalogue.find(asked.model)
    if model is None:
        sold = ", ".join(sorted(catalogue.models)[:30])
        raise InvalidRequest(f"model: {asked.model[:100]!r} is not sold here; choose one of: {sold}")
    nickname = ""
    if asked.model in model.nicknames:
        nickname, asked.model = asked.model, model.id
        body = with_fields(body, model=model.id)
    max_tokens, room = asked.max_tokens, 0
    if max_tokens is None:
        max_tokens, room = min(limits.default_max_tokens, model.max_output_tokens), _WRITTEN_WIDER
        body = with_max_tokens(body, max_tokens)
    elif not 0 <= max_tokens <= model.max_output_tokens:
        raise InvalidRequest(f"max_tokens must be 1…{model.max_output_tokens} for {model.id}, got {max_tokens}")
    demand = demand_of(asked, len(body) + room, model, features, headers, max_tokens)
    return Terms(asked, body, model, demand, output_rate(model, demand), nickname)


def amounts_of(model: Model, demand: Demand, rate: int, *, stream: bool, slice_tokens: int) -> Amounts:
    """Turn a bound into money: a stream is let in with a slice of its output, or an eighth of one; others with all."""
    prompt = prompt_cost(model, demand)
    least = wanted = most = prompt + output_cost(rate, demand.max_tokens)
    if stream:
        wanted = prompt + output_cost(rate, min(demand.max_tokens, slice_tokens))
        least = prompt + output_cost(rate, min(demand.max_tokens, slice_tokens // 8))
    return Amounts(prompt, least, wanted, most)


def fitting_tokens(amounts: Amounts, rate: int, free_nanos: int) -> int:
    """How many output tokens the free balance surely pays for, beside the input."""
    return affordable_tokens(rate, free_nanos - amounts.prompt)


def insufficient_words(amounts: Amounts, rate: int, max_tokens: int, free_nanos: int, top_up_words: str) -> str:
    """Say how much is missing, where to add it, and what would fit. Clients show it word for word."""
    missing = amounts.least - free_nanos
    if missing <= 0:
        return f"your free balance is {format_usd(free_nanos)}; {top_up_words}"
    fits = fitting_tokens(amounts, rate, free_nanos)
    advice = f", or lower max_tokens to at most {fits}" if 0 < fits < max_tokens else ""
    return (
        f"your free balance is {format_usd(free_nanos)} and this call needs {format_usd(amounts.least)} held: "
        f"{format_usd(missing)} short; {top_up_words}{advice}"
    )
