"""Metering: what the upstream reports is what is charged, to the nano-dollar, worked out here by hand."""

import asyncio
import json
from fractions import Fraction
from typing import Any

import pytest

from tests.gateway.play import USD, books, exact, listen, message, nanos, script, upstream
from tests.stage import MODEL, OpenStage, Stage

IN_OUT = "usage_input=1001 usage_output=77"
SEARCH = {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]}
BASE = exact(input=1001, output=77)

PRICED: list[tuple[str, str, dict[str, Any], Fraction]] = [
    (MODEL, IN_OUT, {}, BASE),
    (MODEL, f"{IN_OUT} cache_write_5m=333", {}, BASE + exact(write_5m=333)),
    (MODEL, f"{IN_OUT} cache_write_1h=333", {}, BASE + exact(write_1h=333)),
    (MODEL, f"{IN_OUT} cache_read=33333", {}, BASE + exact(read=33333)),
    (
        MODEL,
        f"{IN_OUT} cache_write_5m=1 cache_write_1h=2 cache_read=3",
        {},
        BASE + exact(write_5m=1, write_1h=2, read=3),
    ),
    (MODEL, f"{IN_OUT} geo=us", {}, exact(factor="1.1", input=1001, output=77)),
    (MODEL, f"{IN_OUT} geo=eu", {}, BASE),
    (MODEL, f"{IN_OUT} tier=batch", {}, exact(factor="0.5", input=1001, output=77)),
    (MODEL, f"{IN_OUT} geo=us tier=batch", {}, exact(factor="0.55", input=1001, output=77)),
    (MODEL, f"{IN_OUT} many_deltas=4", {}, exact(input=1001 + 300, output=77)),
    (MODEL, f"{IN_OUT} many_deltas=4 chunk=7 crlf", {}, exact(input=1001 + 300, output=77)),
    (
        MODEL,
        f"{IN_OUT} iterations",
        {},
        BASE + exact(input=1800, output=350) + exact("claude-opus-5-5", input=400, output=60),
    ),
    (
        MODEL,
        f"{IN_OUT} fallback=claude-opus-4-6",
        {},
        exact(input=1001) + exact("claude-opus-4-6", input=1001, output=77),
    ),
    (MODEL, f"{IN_OUT} model_answered=claude-opus-4-6", {}, exact("claude-opus-4-6", input=1001, output=77)),
    (
        MODEL,
        f"{IN_OUT} model_answered=claude-haiku-5-5-20261101",
        {},
        exact("claude-haiku-5-5", input=1001, output=77),
    ),
    (MODEL, f"{IN_OUT} searches=2", SEARCH, exact(input=1001 + 3000, output=77) + 2 * USD // 100),
    ("claude-haiku-5-5", "usage_input=100000 usage_output=3", {}, exact("claude-haiku-5-5", input=100_000, output=3)),
    (
        "claude-haiku-5-5",
        "usage_input=100001 usage_output=3",
        {},
        exact("claude-haiku-5-5 long", input=100_001, output=3),
    ),
    (
        "claude-haiku-5-5",
        "usage_input=1 cache_read=99999 cache_write_5m=1 usage_output=3",
        {},
        exact("claude-haiku-5-5 long", input=1, read=99_999, write_5m=1, output=3),
    ),
    (
        "claude-haiku-5-5",
        "usage_input=1 cache_write_5m=1 usage_output=1",
        {},
        exact("claude-haiku-5-5", input=1, write_5m=1, output=1),
    ),
    ("claude-opus-5-5", IN_OUT, {}, exact("claude-opus-5-5", input=1001, output=77)),
    ("claude-opus-5-5", f"{IN_OUT} speed=fast", {}, exact("claude-opus-5-5 fast", input=1001, output=77)),
    (
        "claude-opus-5-5",
        f"{IN_OUT} speed=fast geo=us cache_read=9",
        {},
        exact("claude-opus-5-5 fast", "1.1", input=1001, output=77, read=9),
    ),
    (MODEL, f"{IN_OUT} refusal=5", {}, BASE),
    (MODEL, f"{IN_OUT} unknown_events", {}, BASE),
    (MODEL, f"{IN_OUT} no_usage=start", {}, BASE),
]
"""Model, knobs, further fields, and the price."""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("model", "knobs", "fields", "price"), PRICED)
async def test_every_field_of_a_usage_is_charged_exactly(
    stage: Stage, model: str, knobs: str, fields: dict[str, Any], price: Fraction, *, stream: bool
) -> None:
    if "no_usage" in knobs and not stream:
        knobs = IN_OUT
    status, _ = await stage.ask(stage.alice, f"[[sim {knobs}]]", model=model, stream=stream, **fields)
    row = await books(stage, stage.alice)
    assert status == 200
    assert (row["kind"], row["charged_nanos"], row["shortfall_nanos"]) == ("exact", nanos(price), 0)


def _doubts(stage: Stage) -> list[str]:
    return [event["doubt"] for event in stage.events if event["event"] == "pricing_doubt"]


DOUBTED = [
    (f"{IN_OUT} unknown_usage=17", BASE + exact(output=17), "17 tokens of an unknown class"),
    (f"{IN_OUT} model_answered=claude-nobody-9", BASE, "no price for model 'claude-nobody-9'"),
    (f"{IN_OUT} speed=fast", BASE, "no fast price"),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("knobs", "price", "doubt"), DOUBTED)
async def test_what_has_no_price_of_its_own_is_charged_all_the_same_with_an_alert(
    stage: Stage, knobs: str, price: Fraction, doubt: str, *, stream: bool
) -> None:
    """An unknown class of tokens costs the dearest rate, an unknown model what was asked for: never free."""
    await stage.ask(stage.alice, f"[[sim {knobs}]]", stream=stream)
    row = await books(stage, stage.alice)
    assert row["charged_nanos"] == nanos(price)
    (said,) = _doubts(stage)
    assert doubt in said
    assert stage.gateway.metrics.doubts == 1


async def test_a_plain_answer_raises_no_doubt(stage: Stage) -> None:
    await stage.ask(stage.alice)
    assert _doubts(stage) == []


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_without_output_is_free(stage: Stage, *, stream: bool) -> None:
    status, _ = await stage.ask(stage.alice, "[[sim refusal usage_input=1000]]", stream=stream)
    row = await books(stage, stage.alice)
    assert status == 200
    assert (row["stop_reason"], row["kind"], row["cost_nanos"]) == ("refusal", "exact", 0)


async def test_the_row_keeps_the_counts_by_class_and_the_model_that_answered(stage: Stage) -> None:
    knobs = f"{IN_OUT} cache_write_5m=1 cache_write_1h=2 cache_read=3 model_answered=claude-opus-4-6"
    await stage.ask(stage.alice, f"[[sim {knobs}]]")
    row = await books(stage, stage.alice)
    assert (row["model"], row["asked_model"]) == ("claude-opus-4-6", MODEL)
    classes = ("input_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens", "output_tokens")
    assert [row[name] for name in classes] == [1001, 1, 2, 3, 77]


async def test_an_alias_is_charged_as_its_model(stage: Stage) -> None:
    status, _ = await stage.ask(stage.alice, f"[[sim {IN_OUT}]]", model="claude-haiku-4-5-20251001")
    row = await books(stage, stage.alice)
    assert status == 200
    assert row["charged_nanos"] == 1001 * 400 + 77 * 2000


async def test_cache_writes_that_are_not_split_by_lifetime_are_charged_by_what_was_asked(open_stage: OpenStage) -> None:
    usage = {"input_tokens": 10, "output_tokens": 1, "cache_creation_input_tokens": 100}
    body = json.dumps({"id": "msg_1", "model": MODEL, "usage": usage}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    block = {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    async with script([head, body]) as theirs:  # noqa: SIM117
        async with open_stage(upstreams=upstream("theirs", theirs.port)) as stage:
            await stage.ask(stage.alice)
            short = await books(stage, stage.alice)
            await (await stage.post(stage.alice, message(messages=[{"role": "user", "content": [block]}]))).read(2**20)
            long = await books(stage, stage.alice, calls=2)
            assert short["charged_nanos"] == nanos(exact(input=10, output=1, write_5m=100))
            assert long["charged_nanos"] == nanos(exact(input=10, output=1, write_1h=100))


BAD_USAGE = [
    {"input_tokens": -1, "output_tokens": 5},
    {"input_tokens": "7", "output_tokens": 5},
    {"input_tokens": 1.5, "output_tokens": 5},
    {"input_tokens": True, "output_tokens": 5},
    {"input_tokens": 10**15, "output_tokens": 5},
    {"input_tokens": 1, "output_tokens": 5, "iterations": "many"},
    {"input_tokens": 1, "output_tokens": 5, "cache_creation": [1]},
    {"input_tokens": 1, "output_tokens": 5, "server_tool_use": 3},
    [],
    "none",
    None,
]


@pytest.mark.parametrize("usage", BAD_USAGE)
async def test_a_usage_that_cannot_be_believed_is_an_upstreams_fault_and_free(
    open_stage: OpenStage, usage: Any
) -> None:
    """As JSON it is a 502, and no other try is paid for; in a stream it ends in an error."""
    body = json.dumps({"type": "message", "id": "msg_1", "model": MODEL, "usage": usage}).encode()
    whole = [b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body]
    events = (
        b'event: message_start\ndata: {"message":{"id":"m","model":"x","usage":{"input_tokens":3}}}\n\n'
        b'event: content_block_delta\ndata: {"delta":{"type":"text_delta","text":"Hi"}}\n\n'
        b'event: message_delta\ndata: {"usage":%b}\n\nevent: message_stop\ndata: {}\n\n' % json.dumps(usage).encode()
    )
    streamed = [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n", events]
    async with script(whole, streamed) as theirs:  # noqa: SIM117
        async with open_stage(upstreams=upstream("theirs", theirs.port)) as stage:
            assert (await stage.ask(stage.alice))[0] == 502
            row = await books(stage, stage.alice)
            assert (row["kind"], row["cost_nanos"], row["attempts"]) == ("waived", 0, 1)
            heard = await (await listen(stage, stage.alice)).end()
            row = await books(stage, stage.alice, calls=2)
            assert heard.status == 502 or heard.last[0] == "error"
            assert b"message_stop" not in heard.data
            assert (row["kind"], row["charged_nanos"]) == ("waived", 0)


async def test_what_a_call_is_charged_is_at_most_the_balance_and_the_rest_is_told_as_a_shortfall(stage: Stage) -> None:
    """An upstream may report more than any bound: the balance stays at zero, the operator hears of it."""
    carl = await stage.person("carl@example.com", 0.5)
    status, _ = await stage.ask(carl, "[[sim usage_input=10 usage_output=100000]]")
    row = await books(stage, carl, had=5 * 10**8)
    assert status == 200
    assert (row["charged_nanos"], (await stage.balance(carl))[0]) == (5 * 10**8, 0)
    assert row["shortfall_nanos"] == nanos(exact(input=10, output=100_000)) - 5 * 10**8
    assert [event["nanos"] for event in stage.events if event["event"] == "shortfall"] == [row["shortfall_nanos"]]


async def test_the_list_price_is_kept_beside_the_charge(stage: Stage) -> None:
    await stage.ask(stage.alice, f"[[sim {IN_OUT}]]")
    rows = await stage.rows("SELECT cost_nanos, list_nanos FROM usage")
    assert rows == [(nanos(BASE), 2 * nanos(BASE))]


async def test_parallel_calls_of_one_customer_are_each_charged_once_and_the_sum_is_exact(stage: Stage) -> None:
    answers = await asyncio.gather(
        *(stage.ask(stage.alice, f"[[sim tokens={n}]]", stream=n % 2 == 0) for n in range(1, 41))
    )
    assert {status for status, _ in answers} == {200}
    await books(stage, stage.alice, calls=40)
    rows = await stage.rows("SELECT sum(output_tokens), sum(charged_nanos), sum(input_tokens) FROM usage")
    (output, charged, given), *_ = rows
    assert output == sum(range(1, 41))
    assert charged == nanos(exact(input=given, output=output))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["claude-sonnet-4-6\0", "\0", "m" * 100_000])
async def test_a_finished_answer_is_charged_however_odd_the_names_in_it(
    open_stage: OpenStage, name: str, *, stream: bool
) -> None:
    """PostgreSQL keeps no text with a NUL in it."""
    said: dict[str, Any] = {
        "id": name,
        "model": name,
        "stop_reason": name,
        "usage": {"input_tokens": 7, "output_tokens": 9},
    }
    events: dict[str, dict[str, Any]] = {
        "message_start": {"message": said},
        "message_delta": {"delta": {"stop_reason": name}, "usage": said["usage"]},
        "message_stop": {},
    }
    body, kind = json.dumps(said).encode(), b"application/json"
    if stream:
        lines = (f"event: {type_}\ndata: {json.dumps({'type': type_, **more})}\n\n" for type_, more in events.items())
        body, kind = "".join(lines).encode(), b"text/event-stream"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, len(body))
    async with script([head, body]) as theirs:  # noqa: SIM117
        async with open_stage(upstreams=upstream("theirs", theirs.port)) as stage:
            assert await stage.ask(stage.alice, stream=stream) == (200, body)
            row = await books(stage, stage.alice)
            assert (row["kind"], row["charged_nanos"]) == ("exact", nanos(exact(input=7, output=9)))
            ((longest,),) = await stage.rows("SELECT max(length(model || message_id || stop_reason)) FROM usage")
            assert longest is None or longest <= 600
