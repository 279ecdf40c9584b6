"""Calls whose output cannot be seen, or is none: thinking that is left out, and prompts sent only to be cached."""

import json
from typing import Any

from tests.gateway.play import books, exact, listen, nanos
from tests.stage import Stage

HIDDEN: dict[str, Any] = {"thinking": {"type": "adaptive", "display": "omitted"}, "max_tokens": 60_000}
WARM: dict[str, Any] = {
    "system": [{"type": "text", "text": "x" * 6_000, "cache_control": {"type": "ephemeral"}}],
    "max_tokens": 0,
}


async def test_hidden_thinking_ends_when_the_money_does_though_nothing_of_it_is_seen(stage: Stage) -> None:
    """$0.005 pays for 666 tokens: at up to 250 a second it covers less than three seconds. What was not received is
    not charged."""
    carl = await stage.person("carl@example.com", 0.005)
    heard = await listen(stage, carl, "[[sim hidden_think=50000 rate=240 ttft=0]]", **HIDDEN)
    await heard.end(6)
    row = await books(stage, carl, had=5 * 10**6)
    name, event = heard.last
    assert (name, event["error"]["type"]) == ("error", "insufficient_balance")
    assert not {"message_delta", "message_stop"} & set(heard.names)
    assert (row["kind"], row["outcome"], row["shortfall_nanos"]) == ("estimated", "out_of_money", 0)
    assert heard.visible_bytes == 0
    reported = heard.start_usage["output_tokens"]
    assert row["charged_nanos"] == nanos(exact(input=heard.start_usage["input_tokens"], output=reported))
    assert stage.simulator.requests[-1].outcome == "gone"
    assert stage.simulator.requests[-1].tokens < 666 + 240


async def test_hidden_thinking_that_the_money_covers_is_charged_as_reported(stage: Stage) -> None:
    """However small the hold was to begin with: 1,500 tokens in a second and a half, with a balance for 2,600."""
    carl = await stage.person("carl@example.com", 0.02)
    heard = await listen(stage, carl, "[[sim hidden_think=1500 rate=1000 ttft=0 tokens=10]]", **HIDDEN)
    await heard.end(6)
    row = await books(stage, carl, had=2 * 10**7)
    assert heard.names[-1] == "message_stop"
    assert (row["kind"], row["output_tokens"]) == ("exact", heard.final_usage["output_tokens"])
    assert row["output_tokens"] >= 1510


async def test_a_prompt_sent_only_to_be_cached_is_charged_its_writes_and_no_output(stage: Stage) -> None:
    status, body = await stage.ask(stage.alice, **WARM)
    message = json.loads(body)
    row = await books(stage, stage.alice)
    assert (status, message["content"], message["usage"]["output_tokens"]) == (200, [], 0)
    written = message["usage"]["cache_creation_input_tokens"]
    assert written == row["cache_write_5m_tokens"] >= 1_500
    assert (row["kind"], row["output_tokens"], row["stop_reason"]) == ("exact", 0, "max_tokens")
    assert row["charged_nanos"] == nanos(exact(input=row["input_tokens"], write_5m=written))
    heard = await (await listen(stage, stage.alice, **WARM)).end()
    row = await books(stage, stage.alice, calls=2)
    assert heard.names == ["message_start", "ping", "message_delta", "message_stop"]
    assert (row["kind"], row["output_tokens"], row["cache_write_5m_tokens"]) == ("exact", 0, 0)
    assert row["charged_nanos"] == nanos(exact(input=row["input_tokens"], read=row["cache_read_tokens"]))
    assert row["cache_read_tokens"] == written


async def test_a_prompt_to_be_cached_needs_no_more_money_than_its_writes(stage: Stage) -> None:
    """Not a slice of output, which will never come: what is held is the prompt's bound."""
    carl = await stage.person("carl@example.com", 0.013)
    for stream in (False, True):
        assert (await stage.ask(carl, stream=stream, **WARM))[0] == 200
    await books(stage, carl, had=13 * 10**6, calls=2)
