"""Each knob is documented and does what its row says; unknown ones are refused by name."""

import json
import re
from pathlib import Path
from typing import Any

import anthropic
import pytest

from farebox.upstreams.simulator import Knobs, Simulator
from farebox.upstreams.simulator.knobs import BARE, FAULTS, magic_in, read_knobs, without_magic
from farebox.upstreams.simulator.prose import fits

from .client import OPUS, Ask

DOCS = Path(__file__).parents[2] / "docs" / "simulator.md"
SHORT = {"*": "any", "999999": "the last"}


def _documented() -> dict[str, str]:
    """Give each knob that has a row in the docs, with its `Bare` column."""
    table = DOCS.read_text().partition("\n## Knobs")[2]
    return dict(re.findall(r"^\| `(\w+)[^|]*\| ([^|]*?) ?\|", table, re.MULTILINE))


def test_every_knob_has_its_row_in_the_docs_and_every_row_its_knob() -> None:
    assert set(_documented()) == set(Knobs.__struct_fields__)


def test_the_docs_tell_what_a_bare_knob_means() -> None:
    documented = {name: bare for name, bare in _documented().items() if bare and bare != "true"}
    assert documented == {name: SHORT.get(value, value) for name, value in BARE.items()}


def test_faults_are_knobs() -> None:
    assert set(FAULTS) <= set(Knobs.__struct_fields__)


def test_knobs_are_read_from_header_and_message_and_the_later_wins() -> None:
    knobs = read_knobs("tokens=5; crlf", "tokens=9 cut_after", magic_in("a [[sim tokens=7]] b [[sim tool=x]]"))
    assert (knobs.tokens, knobs.crlf, knobs.cut_after, knobs.tool) == (7, True, 3, "x")
    assert without_magic("a [[sim tokens=7]]") == "a"
    assert magic_in("simply [[nothing]]") == ""


@pytest.mark.parametrize(
    "knobs", ["tokens=-1", "tokens=many", "error=99", "no_usage=some", "rate=0", "sparkle", "chunk=0"]
)
async def test_a_bad_knob_is_refused_by_name(ask: Ask, knobs: str) -> None:
    reply = await ask(knobs=knobs)
    assert reply.status == 400
    assert knobs.partition("=")[0] in reply.json()["error"]["message"]
    if "sparkle" not in knobs:
        assert (await ask(f"[[sim {knobs}]]")).status == 400


async def test_a_magic_line_counts_only_in_the_last_user_message(ask: Ask) -> None:
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "[[sim error=500]]"},
        {"role": "assistant", "content": "Hm."},
        {"role": "user", "content": [{"type": "text", "text": "And now? [[sim tokens=3]]"}]},
    ]
    assert (await ask(messages=said)).json()["usage"]["output_tokens"] == 3


async def _usages(ask: Ask, knobs: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Give the usage of message_start, of the last message_delta and of the JSON answer."""
    events = (await ask(knobs=knobs, stream=True)).events()
    start = dict(events)["message_start"]["message"].get("usage", {})
    return (
        start,
        dict(events)["message_delta"].get("usage", {}),
        (await ask(knobs=knobs)).json().get("usage", {}),
    )


async def test_figures_can_be_forced(ask: Ask) -> None:
    knobs = "usage_input=11; usage_output=22; cache_write_5m=33; cache_write_1h=44; cache_read=55"
    for usage in await _usages(ask, knobs + "; geo=us; tier=batch; speed=fast"):
        assert usage["input_tokens"] == 11
        assert usage["cache_creation_input_tokens"] == 77
        assert usage["cache_read_input_tokens"] == 55
        assert usage["output_tokens"] in {1, 22}
        if "cache_creation" in usage:
            assert usage["cache_creation"] == {
                "ephemeral_5m_input_tokens": 33,
                "ephemeral_1h_input_tokens": 44,
            }
            assert (usage["inference_geo"], usage["service_tier"], usage["speed"]) == ("us", "batch", "fast")


async def test_usage_can_be_missing(ask: Ask) -> None:
    assert await _usages(ask, "no_usage") == ({}, {}, {})
    start, last, _ = await _usages(ask, "no_usage=start")
    assert (bool(start), bool(last)) == (False, True)
    start, last, _ = await _usages(ask, "no_usage=delta")
    assert (bool(start), bool(last)) == (True, False)


async def test_unknown_usage_and_iterations(ask: Ask) -> None:
    for usage in await _usages(ask, "unknown_usage"):
        assert usage["hologram_input_tokens"] == 17
    _, last, whole = await _usages(ask, "iterations")
    assert [hop["type"] for hop in last["iterations"]] == ["message", "compaction", "advisor_message"]
    assert whole["iterations"] == last["iterations"]
    assert last["iterations"][0]["output_tokens"] == last["output_tokens"]


async def test_a_fallback_pays_the_prompt_twice(ask: Ask) -> None:
    start, last, _ = await _usages(ask, "fallback")
    assert last["input_tokens"] == 2 * start["input_tokens"]
    assert last["iterations"][1]["model"] == "claude-sonnet-4-6"
    assert sum(hop["input_tokens"] for hop in last["iterations"]) == last["input_tokens"]
    message = (await ask(knobs="fallback=claude-haiku-4-5")).json()
    assert (message["model"], message["content"][0]["type"]) == (OPUS, "fallback")


async def test_many_deltas_grow_to_the_final_figures(ask: Ask) -> None:
    events = (await ask(knobs="many_deltas=4; tokens=40", stream=True)).events()
    deltas = [data for name, data in events if name == "message_delta"]
    start = dict(events)["message_start"]["message"]["usage"]["input_tokens"]
    assert [delta["usage"]["input_tokens"] - start for delta in deltas] == [0, 100, 200, 300]
    assert [delta["usage"]["output_tokens"] for delta in deltas] == [10, 20, 30, 40]
    assert [delta["delta"]["stop_reason"] for delta in deltas] == [None, None, None, "end_turn"]


async def test_a_refusal_can_be_empty_or_late(ask: Ask) -> None:
    empty = (await ask(knobs="refusal")).json()
    assert (empty["stop_reason"], empty["content"], empty["usage"]["output_tokens"]) == ("refusal", [], 0)
    assert empty["stop_details"]["type"] == "refusal"
    late = (await ask(knobs="refusal=5")).json()
    assert (late["stop_reason"], late["usage"]["output_tokens"]) == ("refusal", 5)


async def test_another_model_can_answer_and_another_tool_be_called(ask: Ask) -> None:
    assert (await ask(knobs="model_answered=claude-next")).json()["model"] == "claude-next"
    tools = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in ("one", "two")]
    assert (await ask(knobs="tool", tools=tools)).json()["content"][-1]["name"] == "one"
    assert (await ask(knobs="tool=two", tools=tools)).json()["content"][-1]["name"] == "two"


async def test_thinking_can_be_asked_for_by_knob(ask: Ask) -> None:
    message = (await ask(knobs="think=10; tokens=5")).json()
    assert len(message["content"][0]["thinking"]) == 40
    assert message["usage"]["output_tokens"] == 15


async def test_one_huge_event(ask: Ask) -> None:
    reply = await ask(knobs="big_event=3000000", stream=True)
    deltas = [data for name, data in reply.events() if name == "content_block_delta"]
    assert [len(delta["delta"]["text"]) for delta in deltas] == [3_000_000]
    assert dict(reply.events())["message_delta"]["usage"]["output_tokens"] == 1000


async def test_pings_are_spread_over_the_stream(ask: Ask) -> None:
    for count in (0, 1, 7):
        names = [name for name, _ in (await ask(knobs=f"pings={count}; tokens=50", stream=True)).events()]
        assert names.count("ping") == count
    assert names.index("ping") == 2


async def test_the_sdk_reads_past_unknown_events(simulator: Simulator, client: anthropic.AsyncAnthropic) -> None:
    async with client.messages.stream(
        model=OPUS,
        max_tokens=99,
        messages=[{"role": "user", "content": "[[sim unknown_events tokens=8 unknown_usage]]"}],
    ) as stream:
        message = await stream.get_final_message()
    assert message.usage.output_tokens == 8
    assert simulator.requests[-1].outcome == "finished"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "minLength": 12}, "simulatedxxx"),
        ({"type": "string", "maxLength": 3}, "sim"),
        ({"type": ["integer", "null"], "minimum": 5}, 5),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": 9}}}, 9),
        ({"properties": {"command": {"type": "string"}}}, {"command": "echo simulated"}),
        ({"enum": ["b", "a"]}, "b"),
        ({"type": "integer", "minimum": 100_000}, 100_000),
        ({"type": []}, "simulated"),
        ({"type": "array", "minItems": 10**9, "items": {"const": 1}}, [1] * 20),
        ({}, "simulated"),
    ],
)
def test_made_up_values_fit_their_schema(schema: Any, value: Any) -> None:
    assert fits(schema) == value


def test_a_schema_that_refers_to_itself_ends() -> None:
    node: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    assert len(json.dumps(fits(node))) < 200
