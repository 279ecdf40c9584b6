"""The story through every exit: what the customer sees and what the books say. Faults of upstreams are next door."""

import asyncio
import json
import socket

import msgspec
import pytest

from farebox.billing.ledger import Admit
from tests.databases import read
from tests.gateway.play import (
    asked_upstream,
    books,
    envelope,
    eventually,
    exact,
    listen,
    message,
    nanos,
    trouble,
    usage_rows,
)
from tests.stage import OpenStage, Stage


async def test_a_finished_stream_is_charged_what_its_last_usage_says(stage: Stage) -> None:
    heard = await (await listen(stage, stage.alice, "[[sim tokens=300]]")).end()
    row = await books(stage, stage.alice)
    usage = heard.final_usage
    assert heard.names[0] == "message_start"
    assert heard.names[-2:] == ["message_delta", "message_stop"]
    assert heard.error is None
    assert (row["kind"], row["outcome"], row["status"], row["streamed"]) == ("exact", "finished", 200, 1)
    assert usage["output_tokens"] == 300
    assert row["charged_nanos"] == nanos(exact(input=heard.start_usage["input_tokens"], output=300))
    assert row["message_id"] == heard.events[0][1]["message"]["id"]


async def test_a_finished_json_answer_is_charged_what_its_usage_says(stage: Stage) -> None:
    status, body = await stage.ask(stage.alice, "[[sim tokens=120]]")
    row = await books(stage, stage.alice)
    usage = json.loads(body)["usage"]
    assert status == 200
    assert (row["kind"], row["outcome"], row["status"], row["streamed"]) == ("exact", "finished", 200, 0)
    assert row["charged_nanos"] == nanos(exact(input=usage["input_tokens"], output=120))


async def test_a_client_that_hangs_up_in_a_stream_is_drained_and_charged_exactly(stage: Stage) -> None:
    heard = await listen(stage, stage.alice, "[[sim tokens=100 rate=400 ttft=0]]")
    await heard.has(b"content_block_delta")
    heard.hang_up()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["output_tokens"]) == ("exact", "client_gone", 100)
    assert row["charged_nanos"] == nanos(exact(input=heard.start_usage["input_tokens"], output=100))
    assert stage.simulator.requests[-1].outcome == "finished"


async def test_without_a_drain_a_cut_stream_is_charged_by_the_published_rule(open_stage: OpenStage) -> None:
    """Exact input, and one token for every four bytes of visible text that had come, marked as estimated."""
    async with open_stage(limits="drain_s = 0\nrecount_s = 0") as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=200 stall_after=30 events_per_chunk=1]]")
        await heard.until(lambda: heard.names.count("content_block_delta") >= 27)
        await asyncio.sleep(0.05)
        heard.hang_up()
        row = await books(stage, stage.alice)
        output = -(-heard.visible_bytes // 4)
        assert output > 40
        assert (row["kind"], row["outcome"], row["output_tokens"]) == ("estimated", "client_gone", output)
        assert row["status"] == 200
        assert row["charged_nanos"] == nanos(exact(input=heard.start_usage["input_tokens"], output=output))
        assert stage.simulator.requests[-1].outcome == "gone"


async def test_a_drain_that_takes_too_long_ends_the_upstream_and_estimates(open_stage: OpenStage) -> None:
    async with open_stage(limits="drain_s = 0.3") as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=2000 rate=200 ttft=0]]")
        await heard.has(b"content_block_delta")
        heard.hang_up()
        row = await books(stage, stage.alice)
        assert (row["kind"], row["outcome"]) == ("estimated", "client_gone")
        assert 40 < row["output_tokens"] < 400
        assert row["charged_nanos"] == nanos(
            exact(input=heard.start_usage["input_tokens"], output=row["output_tokens"])
        )
        assert stage.simulator.requests[0].outcome == "gone"


async def test_a_client_that_hangs_up_while_a_json_answer_is_made_pays_the_exact_price(stage: Stage) -> None:
    asking = asyncio.create_task(stage.ask(stage.alice, "[[sim tokens=50 delay=300]]"))
    await asked_upstream(stage)
    asking.cancel()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["output_tokens"]) == ("exact", "client_gone", 50)
    assert row["charged_nanos"] == nanos(exact(input=row["input_tokens"], output=50))


@pytest.mark.parametrize("drain_s", ["0", "0.2"])
async def test_a_json_answer_that_was_not_drained_in_time_is_free(open_stage: OpenStage, drain_s: str) -> None:
    async with open_stage(limits=f"drain_s = {drain_s}") as stage:
        asking = asyncio.create_task(stage.ask(stage.alice, "[[sim delay=5000]]"))
        await asked_upstream(stage)
        asking.cancel()
        row = await books(stage, stage.alice)
        assert (row["kind"], row["outcome"], row["cost_nanos"]) == ("waived", "client_gone", 0)
        await asyncio.sleep(0.02)
        assert stage.simulator.requests[-1].outcome == "gone"


async def test_a_client_gone_before_the_first_byte_of_its_stream_pays_what_the_drain_reads(stage: Stage) -> None:
    asking = asyncio.create_task(stage.post(stage.alice, message("[[sim tokens=40 delay=300]]", stream=True)))
    await asked_upstream(stage)
    asking.cancel()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["output_tokens"]) == ("exact", "client_gone", 40)


async def test_a_client_gone_before_the_first_byte_is_not_charged_for_an_upstream_that_then_breaks(
    stage: Stage,
) -> None:
    asking = asyncio.create_task(stage.post(stage.alice, message("[[sim delay=300 cut_after=5]]", stream=True)))
    await asked_upstream(stage)
    asking.cancel()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "upstream_broke", 0)


async def test_a_client_that_goes_before_its_body_has_come_leaves_no_trace(stage: Stage) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
    writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: " + stage.alice.key.encode())
    writer.write(b"\r\ncontent-length: 1000\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await asyncio.sleep(0.05)
    assert await reader.read() == b""
    assert await stage.rows("SELECT 1 FROM usage UNION ALL SELECT 1 FROM hold") == []
    assert len(stage.simulator.requests) == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancelled_task_ends_its_hold_free_of_charge(stage: Stage, *, stream: bool) -> None:
    knobs = "[[sim tokens=200 stall_after=30]]" if stream else "[[sim delay=5000]]"
    asking = asyncio.create_task(stage.post(stage.alice, message(knobs, stream=stream)))
    await asked_upstream(stage)
    await asyncio.sleep(0.1)
    server = stage.gateway._server
    assert server is not None
    (task,) = server.tasks
    task.cancel()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "gateway_broke", 0)
    assert (row["waived_nanos"] > 0) is stream
    asking.cancel()


async def test_cancelling_a_task_while_it_settles_does_not_undo_the_settlement(stage: Stage) -> None:
    store = trouble(stage)
    store.open.clear()
    asking = asyncio.create_task(stage.ask(stage.alice, "[[sim tokens=40]]"))
    await store.reached.wait()
    server = stage.gateway._server
    assert server is not None
    (task,) = server.tasks
    task.cancel()
    await asyncio.sleep(0.02)
    store.open.set()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["output_tokens"]) == ("exact", "finished", 40)
    asking.cancel()


async def _stop_soon(stage: Stage) -> None:
    config = stage.gateway.config
    stage.gateway.config = msgspec.structs.replace(
        config, server=msgspec.structs.replace(config.server, shutdown_s=0.2)
    )
    await stage.gateway.stop()


async def test_a_stream_that_a_shutdown_cuts_is_free_and_says_so(open_stage: OpenStage, database_url: str) -> None:
    async with open_stage() as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=200 stall_after=30]]")
        await heard.has(b"content_block_delta")
        await _stop_soon(stage)
        await heard.end()
        name, event = heard.last
        assert (name, event["error"]["type"]) == ("error", "overloaded_error")
        assert "message_stop" not in heard.names
    _free_after_shutdown(database_url)


async def test_a_json_call_that_a_shutdown_cuts_is_free(
    open_stage: OpenStage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.app._END_S", 0.2)
    async with open_stage() as stage:
        asking = asyncio.create_task(stage.ask(stage.alice, "[[sim delay=5000]]"))
        await asked_upstream(stage)
        await _stop_soon(stage)
        with pytest.raises(Exception, match="upstream"):
            await asking
    _free_after_shutdown(database_url)


def _free_after_shutdown(database_url: str) -> None:
    assert read(database_url, "SELECT count(*) FROM hold") == [(0,)]
    assert read(database_url, "SELECT kind, outcome, charged_nanos FROM usage") == [("waived", "gateway_broke", 0)]
    assert read(database_url, "SELECT posted_nanos, held_nanos FROM account WHERE id = 1") == [(100 * 10**9, 0)]


async def test_a_stream_that_ends_within_the_shutdown_time_is_delivered_and_charged(
    open_stage: OpenStage, database_url: str
) -> None:
    async with open_stage() as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=100 rate=400 ttft=0]]")
        await heard.has(b"content_block_delta")
        await stage.gateway.stop()
        await heard.end()
        assert heard.names[-1] == "message_stop"
    assert read(database_url, "SELECT kind, outcome FROM usage") == [("exact", "finished")]


async def test_a_stream_ends_when_the_money_does_and_the_balance_never_goes_below_zero(open_stage: OpenStage) -> None:
    """What was delivered is charged, and no more is delivered than is charged."""
    async with open_stage(limits="recount_s = 0") as stage:
        await _outlive_the_money(stage)


async def _outlive_the_money(stage: Stage) -> None:
    carl = await stage.person("carl@example.com", 0.01)
    heard = await listen(stage, carl, "[[sim tokens=8000 rate=20000 ttft=0]]", max_tokens=9000)
    await heard.end()
    row = await books(stage, carl, had=10**7)
    name, event = heard.last
    assert (name, event["error"]["type"]) == ("error", "insufficient_balance")
    assert "top up" in event["error"]["message"]
    assert "message_stop" not in heard.names
    assert (row["kind"], row["outcome"], row["shortfall_nanos"]) == ("estimated", "out_of_money", 0)
    output = -(-heard.visible_bytes // 4)
    assert row["output_tokens"] == output
    assert row["charged_nanos"] == nanos(exact(input=heard.start_usage["input_tokens"], output=output))
    assert row["charged_nanos"] > 10**7 // 3
    assert stage.simulator.requests[-1].outcome == "gone"


async def test_a_burst_that_costs_more_than_the_balance_is_never_charged_beyond_it(stage: Stage) -> None:
    """At full speed too: the hold stops the bytes, whatever the upstream has sent by then."""
    carl = await stage.person("carl@example.com", 0.01)
    heard = await (await listen(stage, carl, "[[sim tokens=30000]]", max_tokens=64000)).end()
    row = await books(stage, carl, had=10**7)
    assert heard.last[1]["error"]["type"] == "insufficient_balance"
    assert row["charged_nanos"] <= 10**7
    assert row["shortfall_nanos"] == 0


async def test_a_stream_is_extended_slice_by_slice_when_a_balance_cannot_hold_all_of_max_tokens(stage: Stage) -> None:
    """A customer with $0.20 asks for 64,000 tokens ($0.48) and gets the 10,000 that come."""
    carl = await stage.person("carl@example.com", 0.2)
    heard = await (await listen(stage, carl, "[[sim tokens=10000 rate=40000 ttft=0]]", max_tokens=64000)).end()
    row = await books(stage, carl, had=2 * 10**8)
    assert heard.names[-1] == "message_stop"
    assert (row["kind"], row["output_tokens"]) == ("exact", 10000)


async def test_a_call_without_money_is_refused_before_anything_is_held_or_sent(stage: Stage) -> None:
    status, body = await stage.ask(stage.bob)
    kind, words = envelope(body)
    assert (status, kind) == (402, "insufficient_balance")
    assert "$0.00" in words
    assert "top up" in words
    assert await stage.rows("SELECT 1 FROM usage UNION ALL SELECT 1 FROM hold") == []
    assert len(stage.simulator.requests) == 0


async def test_a_json_call_larger_than_the_balance_says_what_would_fit(stage: Stage) -> None:
    carl = await stage.person("carl@example.com", 0.01)
    status, body = await stage.ask(carl, max_tokens=10_000)
    kind, words = envelope(body)
    assert (status, kind) == (402, "insufficient_balance")
    fits = int(words.rpartition("at most ")[2])
    assert (await stage.ask(carl, max_tokens=fits))[0] == 200


async def test_a_call_that_exceeds_its_time_is_ended_free_of_charge(open_stage: OpenStage) -> None:
    async with open_stage(limits="call_s = 0.3") as stage:
        status, body = await stage.ask(stage.alice, "[[sim delay=5000]]")
        assert (status, envelope(body)[0]) == (503, "api_error")
        heard = await (await listen(stage, stage.alice, "[[sim tokens=200 stall_after=30]]")).end()
        assert heard.last[0] == "error"
        row = await books(stage, stage.alice, calls=2)
        assert (row["kind"], row["charged_nanos"]) == ("waived", 0)


async def test_the_first_events_are_passed_on_though_the_upstream_then_falls_silent(open_stage: OpenStage) -> None:
    """They may come in one piece with the head of the answer: nobody waits for a second piece."""
    async with open_stage(limits="drain_s = 0") as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=200 stall_after=30]]")
        await heard.until(lambda: heard.names.count("content_block_delta") > 20, timeout_s=1)
        heard.hang_up()
        await books(stage, stage.alice)


async def test_a_client_gone_before_anything_was_sent_gets_nothing_sent_and_pays_nothing(stage: Stage) -> None:
    store = trouble(stage)
    store.held_up = (Admit,)
    store.open.clear()
    asking = asyncio.create_task(stage.ask(stage.alice))
    await store.reached.wait()
    await stage.client.close()
    await asyncio.sleep(0.1)
    store.open.set()
    await asyncio.wait([asking])

    async def ended() -> bool:
        return bool(await usage_rows(stage, stage.alice))

    await eventually(ended)
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "client_gone", 0)
    assert not stage.simulator.requests


async def test_a_client_that_reads_so_slowly_that_the_time_is_up_pays_for_what_came(open_stage: OpenStage) -> None:
    """Else a stream read slowly up to the longest time a call may take would be free."""
    async with open_stage(limits="call_s = 2") as stage:
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.connect(("127.0.0.1", stage.gateway.port))
        reader, writer = await asyncio.open_connection(sock=small, limit=2**10)
        body = json.dumps(message("[[sim tokens=64000]]", stream=True, max_tokens=64_000)).encode()
        head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {stage.alice.key}\r\ncontent-length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        row = await books(stage, stage.alice)
        assert (row["kind"], row["outcome"]) == ("estimated", "client_gone")
        assert row["charged_nanos"] == nanos(exact(input=row["input_tokens"], output=row["output_tokens"])) > 0
        assert row["output_tokens"] > 1000
        writer.close()


async def test_a_prompt_longer_than_the_context_its_model_is_sold_with_is_held_for_in_full(stage: Stage) -> None:
    """The upstream may take and bill a million tokens of a model that is sold with 200,000."""
    poor = await stage.person("poor@example.com", 0.35, "enterprise")
    assert (await stage.ask(poor, "word " * 640_000, max_tokens=100))[0] == 402
    assert not await usage_rows(stage, poor)


async def test_a_small_pdf_may_have_many_pages_so_they_are_counted_when_the_balance_is_small(stage: Stage) -> None:
    poor = await stage.person("poor@example.com", 0.1)
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "A" * 6000}
    said = [{"role": "user", "content": [{"type": "document", "source": pdf}]}]
    assert (await stage.ask(poor, messages=said, max_tokens=100))[0] == 200
    assert len(stage.simulator.requests) == 2  # the count, and the call
