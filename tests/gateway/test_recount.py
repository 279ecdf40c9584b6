"""What was delivered of an answer that was cut off: counted by the upstream, which may lower the rule's figure."""

import asyncio
import time
from typing import Any

import pytest

from farebox.gateway.call import Call
from farebox.gateway.recount import Recount
from farebox.gateway.sse import TEXT_BYTES
from farebox.upstreams.upstream import Upstream
from tests.databases import read
from tests.gateway.play import Heard, asked_upstream, books, exact, listen, nanos
from tests.stage import OpenStage, Stage

CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy. " * 40
"""Letters of two bytes: the rule counts more tokens than there are."""


async def cut(stage: Stage, text: str = CZECH, knobs: str = "echo", deltas: int = 60) -> Heard:
    """Begin a stream that stands still after a while; answers it then."""
    heard = await listen(stage, stage.alice, f"[[sim {knobs} stall_after={deltas} events_per_chunk=1]] {text}")
    await heard.until(lambda: heard.names.count("content_block_delta") >= deltas - 3)
    return heard


def text_of(heard: Heard) -> str:
    return "".join(event["delta"]["text"] for name, event in heard.events if name == "content_block_delta")


def by_rule(heard: Heard) -> int:
    return -(-heard.visible_bytes // 4)


async def charged(stage: Stage, heard: Heard) -> dict[str, Any]:
    row = await books(stage, stage.alice)
    tokens = row["output_tokens"]
    assert row["kind"] == "estimated"
    assert row["charged_nanos"] == nanos(exact(input=heard.start_usage["input_tokens"], output=tokens))
    return row


async def test_a_hang_up_is_charged_the_upstreams_count_where_that_is_lower(open_stage: OpenStage) -> None:
    async with open_stage(limits="drain_s = 0") as stage:
        heard = await cut(stage)
        heard.hang_up()
        row = await charged(stage, heard)
        assert row["outcome"] == "client_gone"
        assert row["output_tokens"] == -(-len(text_of(heard)) // 4) < by_rule(heard)
        counts = [one for one in stage.simulator.requests if one.path.endswith("/count_tokens")]
        assert len(counts) == 2  # what a message costs around its text, and the text


async def test_what_a_message_costs_around_its_text_is_asked_once(open_stage: OpenStage) -> None:
    async with open_stage(limits="drain_s = 0") as stage:
        for calls in (1, 2):
            (await cut(stage)).hang_up()
            await books(stage, stage.alice, calls=calls)
        assert sum(one.path.endswith("/count_tokens") for one in stage.simulator.requests) == 3


async def test_an_answer_that_outlived_the_money_is_charged_what_was_delivered_by_count(open_stage: OpenStage) -> None:
    async with open_stage(alice_usd=0.02, limits="slice_tokens = 64\ndrain_s = 0") as stage:
        heard = await (await listen(stage, stage.alice, f"[[sim echo rate=2000]] {CZECH * 8}", max_tokens=8000)).end()
        assert heard.last[1]["error"]["type"] == "insufficient_balance"
        row = await books(stage, stage.alice, had=20_000_000)
        assert row["outcome"] == "out_of_money"
        assert row["output_tokens"] == -(-len(text_of(heard)) // 4) < by_rule(heard)


@pytest.mark.parametrize("trouble", ["error=500", "error=400", "close_before", "delay=60000"])
async def test_without_a_count_in_time_the_rule_stands(open_stage: OpenStage, trouble: str) -> None:
    async with open_stage(limits="drain_s = 0\nrecount_s = 0.2") as stage:
        heard = await cut(stage)
        stage.simulator.knobs = trouble
        began = time.monotonic()
        heard.hang_up()
        row = await charged(stage, heard)
        assert time.monotonic() - began < 5
        assert row["output_tokens"] == by_rule(heard)


async def test_a_count_never_raises_a_charge(open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farebox.upstreams.simulator.server.count_tokens", lambda fields: 10 * len(str(fields)))
    async with open_stage(limits="drain_s = 0") as stage:
        heard = await cut(stage)
        heard.hang_up()
        assert (await charged(stage, heard))["output_tokens"] == by_rule(heard)


async def test_the_rule_alone_where_the_operator_says_so(open_stage: OpenStage) -> None:
    async with open_stage(limits="drain_s = 0\nrecount_s = 0") as stage:
        heard = await cut(stage)
        heard.hang_up()
        assert (await charged(stage, heard))["output_tokens"] == by_rule(heard)
        assert not any(one.path.endswith("/count_tokens") for one in stage.simulator.requests)


async def test_a_long_answer_is_not_remembered(open_stage: OpenStage) -> None:
    async with open_stage(limits="drain_s = 0") as stage:
        heard = await listen(
            stage, stage.alice, f"[[sim echo delta=10000 stall_after=7]] {CZECH * 100}", max_tokens=64000
        )
        await heard.until(lambda: heard.visible_bytes > TEXT_BYTES)
        await asyncio.sleep(0.05)  # what else has come is on its way
        heard.hang_up()
        assert (await charged(stage, heard))["output_tokens"] == by_rule(heard)


async def test_a_gateway_that_stops_while_it_counts_charges_by_the_rule(
    open_stage: OpenStage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.app._END_S", 0.2)
    async with open_stage(limits="drain_s = 0\nrecount_s = 10") as stage:
        heard = await cut(stage)
        stage.simulator.knobs = "delay=60000"
        heard.hang_up()
        await asked_upstream(stage, 2)
        stage.gateway.hurry()
        await asyncio.wait_for(stage.gateway.stop(), 5)
    row = read(database_url, "SELECT kind, outcome, output_tokens FROM usage")
    assert row == [("estimated", "client_gone", by_rule(heard))]
    assert read(database_url, "SELECT count(*) FROM hold") == [(0,)]


@pytest.mark.parametrize(("probe", "count"), [(10**9, 50), (8, 7), (8, 1)])
async def test_a_count_of_nothing_for_something_is_not_believed(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch, probe: int, count: int
) -> None:
    """Else one wrong answer to the probe made the output of every later one free."""
    asked = Recount._count
    said = [probe, count]

    async def counted(self: Recount, call: Call, upstream: Upstream, text: bytes) -> int:
        return said.pop(0) if said else await asked(self, call, upstream, text)

    monkeypatch.setattr(Recount, "_count", counted)
    async with open_stage(limits="drain_s = 0") as stage:
        heard = await cut(stage)
        heard.hang_up()
        row = await charged(stage, heard)
        assert row["output_tokens"] == by_rule(heard)
        again = await cut(stage)
        again.hang_up()
        row = await books(stage, stage.alice, calls=2)
        assert row["output_tokens"] == -(-len(text_of(again)) // 4)
