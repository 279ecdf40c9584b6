"""Promise 1: the last events of a stream, and a JSON answer as a whole, leave only after the charge is durable."""

import asyncio
import json

import pytest

from farebox.billing.ledger import Admit, Resize, Settle
from farebox.gateway.settling import Settler
from tests.databases import on_postgresql, on_sqlite
from tests.gateway.play import (
    USD,
    books,
    envelope,
    eventually,
    exact,
    listen,
    message,
    nanos,
    script,
    trouble,
    upstream,
)
from tests.stage import MODEL, OpenStage, Stage


def settler_of(stage: Stage, patience_s: float) -> Settler:
    settler = stage.gateway._settler
    assert settler is not None
    settler._patience_s = patience_s
    return settler


def without_a_spool(settler: Settler) -> None:
    """As on a full disk: what the database cannot take, nobody can."""
    settler._spool._most = 0


async def test_the_end_of_a_stream_leaves_only_after_the_usage_row_is_on_disk(stage: Stage) -> None:
    store = trouble(stage)
    store.open.clear()
    heard = await listen(stage, stage.alice, "[[sim tokens=60]]")
    await store.reached.wait()
    await asyncio.sleep(0.1)
    assert heard.names[-1] == "content_block_stop"
    assert not {"message_delta", "message_stop"} & set(heard.names)
    assert not heard.ended
    assert await stage.rows("SELECT 1 FROM usage") == []
    store.open.set()
    await heard.has(b"message_stop")
    assert len(await stage.rows("SELECT 1 FROM usage")) == 1
    await heard.end()
    assert heard.names[-2:] == ["message_delta", "message_stop"]


async def test_of_a_json_answer_no_byte_leaves_before_the_usage_row_is_on_disk(stage: Stage) -> None:
    store = trouble(stage)
    store.open.clear()
    asking = asyncio.create_task(stage.ask(stage.alice))
    await store.reached.wait()
    await asyncio.sleep(0.1)
    assert not asking.done()
    assert await stage.rows("SELECT 1 FROM usage") == []
    store.open.set()
    assert (await asking)[0] == 200
    assert len(await stage.rows("SELECT 1 FROM usage")) == 1


async def test_a_stream_whose_charge_takes_a_while_to_be_written_is_delivered_and_charged_once(stage: Stage) -> None:
    store = trouble(stage)
    store.failing = (Settle,)
    heard = await listen(stage, stage.alice, "[[sim tokens=60]]")
    await asyncio.sleep(0.4)
    assert "message_stop" not in heard.names
    assert store.refused >= 1
    store.failing = ()
    await heard.end()
    assert heard.names[-1] == "message_stop"
    row = await books(stage, stage.alice)
    assert row["charged_nanos"] == nanos(exact(input=row["input_tokens"], output=60))


async def test_a_stream_whose_charge_cannot_be_written_is_not_finished_and_free(stage: Stage) -> None:
    """Its hold is ended later, free of charge, once the books can be written again."""
    store, settler = trouble(stage), settler_of(stage, 0.3)
    without_a_spool(settler)
    store.failing = (Settle,)
    heard = await (await listen(stage, stage.alice, "[[sim tokens=60]]")).end()
    assert (heard.last[0], heard.last[1]["error"]["type"]) == ("error", "api_error")
    assert not {"message_delta", "message_stop"} & set(heard.names)
    assert len(settler.unsettled) == 1
    assert any(event["event"] == "settlement_not_durable" for event in stage.events)
    assert (await stage.balance(stage.alice))[1] > 0
    store.failing = ()
    await settler.retry()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "gateway_broke", 0)
    assert row["waived_nanos"] == nanos(exact(input=row["input_tokens"], output=60))
    assert settler.unsettled == {}


async def test_a_json_answer_whose_charge_cannot_be_written_is_not_delivered_and_free(stage: Stage) -> None:
    store, settler = trouble(stage), settler_of(stage, 0.3)
    without_a_spool(settler)
    store.failing = (Settle,)
    status, body = await stage.ask(stage.alice, "a secret answer")
    assert (status, envelope(body)[0]) == (503, "api_error")
    assert b"secret" not in body
    store.failing = ()
    await settler.retry()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["charged_nanos"]) == ("waived", 0)


async def test_while_the_books_stay_shut_later_retries_change_nothing(stage: Stage) -> None:
    store, settler = trouble(stage), settler_of(stage, 0.1)
    without_a_spool(settler)
    store.failing = (Settle,)
    await stage.ask(stage.alice)
    await settler.retry()
    await settler.retry()
    assert len(settler.unsettled) == 1
    assert await stage.rows("SELECT 1 FROM usage") == []
    store.failing = ()
    await settler.retry()
    await settler.retry()
    await books(stage, stage.alice)


async def test_a_charge_that_the_database_cannot_take_is_delivered_from_the_spool_later_once(stage: Stage) -> None:
    """On disk in the spool is durable: the client gets its last bytes, and pays as if nothing had been."""
    store, settler = trouble(stage), settler_of(stage, 0.1)
    store.failing = (Settle,)
    heard = await (await listen(stage, stage.alice, "[[sim tokens=60]]")).end()
    assert heard.names[-2:] == ["message_delta", "message_stop"]
    assert len(settler._spool.waiting) == 1
    assert await stage.rows("SELECT 1 FROM usage") == []
    await settler.retry()
    assert len(settler._spool.waiting) == 1
    store.failing = ()
    await settler.retry()
    await settler.retry()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"]) == ("exact", "finished")
    assert row["charged_nanos"] == nanos(exact(input=row["input_tokens"], output=60))
    assert settler._spool.waiting == {}


async def test_a_settlement_delivered_again_after_it_was_written_charges_once(stage: Stage) -> None:
    """As after a commit whose answer was lost."""
    status, body = await stage.ask(stage.alice, "[[sim tokens=60]]")
    ledger = stage.gateway.ledger
    assert status == 200
    (request_id, cost), *_ = await stage.rows("SELECT request_id, cost_nanos FROM usage")
    again = Settle(
        request_id=request_id,
        account_id=stage.alice.account_id,
        kind="exact",
        model="x",
        outcome="finished",
        status=200,
        cost_nanos=5,
    )
    settled = await ledger.settle(again)
    assert (settled.now, settled.charged_nanos) == (False, cost)
    await books(stage, stage.alice)
    assert json.loads(body)["usage"]["output_tokens"] == 60


async def test_when_no_hold_can_be_written_the_call_is_refused_and_nothing_is_sent(stage: Stage) -> None:
    store = trouble(stage)
    store.failing = (Admit,)
    status, body = await stage.ask(stage.alice)
    assert (status, envelope(body)[0]) == (503, "api_error")
    assert len(stage.simulator.requests) == 0
    assert await stage.balance(stage.alice) == (100 * USD, 0)


async def test_a_stream_goes_on_within_its_hold_while_an_extension_cannot_be_written(stage: Stage) -> None:
    store = trouble(stage)
    store.failing = (Resize,)
    heard = await listen(stage, stage.alice, "[[sim tokens=6000 rate=20000 ttft=0]]", max_tokens=20_000)
    await heard.until(lambda: heard.visible_bytes > 1000)
    await asyncio.sleep(0.3)
    assert not heard.ended
    store.failing = ()
    await heard.end()
    row = await books(stage, stage.alice)
    assert (heard.names[-1], row["kind"], row["output_tokens"]) == ("message_stop", "exact", 6000)


async def test_a_stream_whose_hold_can_no_longer_be_extended_ends_free_of_charge(stage: Stage) -> None:
    store, streams = trouble(stage), stage.gateway._streams
    assert streams is not None
    streams._patience_s = 0.1
    store.failing = (Resize,)
    heard = await (await listen(stage, stage.alice, "[[sim tokens=6000 rate=4000 ttft=0]]", max_tokens=20_000)).end()
    row = await books(stage, stage.alice)
    assert heard.last[0] == "error"
    assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "gateway_broke", 0)


@on_sqlite
async def test_a_hold_that_a_dead_process_left_is_ended_free_before_the_doors_open(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        ledger = stage.gateway.ledger
        admit = Admit(bytes(16), stage.alice.account_id, 1, "claude-sonnet-4-6", 5 * USD, 5 * USD, 10, 1)
        assert (await ledger.admit(admit)).held_nanos == 5 * USD
        alice = stage.alice
    async with open_stage() as stage:
        row = await books(stage, alice)
        assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("recovered", "gateway_died", 0)
        assert any(event["event"] == "holds_recovered" for event in stage.events)


@on_postgresql
async def test_a_hold_that_a_dead_process_left_is_given_back_by_a_living_one(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        admit = Admit(bytes(16), stage.alice.account_id, 1, "claude-sonnet-4-6", 5 * USD, 5 * USD, 10, 1)
        assert (await stage.gateway.ledger.admit(admit)).held_nanos == 5 * USD
        alice = stage.alice
    async with open_stage() as stage:
        assert stage.gateway.books is not None
        await stage.gateway.books.beat()
        assert await stage.balance(alice) == (100 * USD, 0)
        assert any(event["event"] == "holds_expired" for event in stage.events)


async def test_a_call_that_is_cancelled_while_its_hold_is_written_gets_it_back_at_once(stage: Stage) -> None:
    """The hold becomes durable though nobody waits for it any more."""
    store, server = trouble(stage), stage.gateway._server
    assert server is not None
    store.held_up = (Admit,)
    store.open.clear()
    asking = asyncio.create_task(stage.ask(stage.alice))
    await store.reached.wait()
    for task in server.tasks:
        task.cancel()
    await asyncio.sleep(0.02)
    store.open.set()

    async def booked() -> bool:
        return bool(await stage.rows("SELECT 1 FROM usage"))

    await eventually(booked)
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "gateway_broke", 0)
    assert len(stage.simulator.requests) == 0
    asking.cancel()


async def test_a_client_that_hangs_up_while_its_hold_is_extended_is_drained(stage: Stage) -> None:
    """The upstream was made to wait for the client; once the client is gone it must not wait any longer."""
    store = trouble(stage)
    store.held_up = (Resize,)
    store.open.clear()
    answer = await stage.post(stage.alice, message("[[sim tokens=60000 delta=200]]", stream=True, max_tokens=100_000))
    answer.pause()
    await store.reached.wait()
    await asyncio.sleep(0.3)
    answer.abandon()
    await asyncio.sleep(0.05)
    store.open.set()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["output_tokens"]) == ("exact", "client_gone", 60_000)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_whose_figures_fit_no_column_ends_its_hold_all_the_same(
    open_stage: OpenStage, *, stream: bool
) -> None:
    step = {"type": "message", "model": MODEL, "input_tokens": 10**12 - 1, "output_tokens": 10**12 - 1}
    usage = {"input_tokens": 1, "output_tokens": 1, "iterations": [step] * 2000}
    whole = json.dumps({"id": "msg_1", "model": MODEL, "content": [], "usage": usage}).encode()
    events = b"".join(
        b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), json.dumps(event).encode())
        for event in (
            {"type": "message_start", "message": {"id": "msg_1", "model": MODEL, "usage": {"input_tokens": 1}}},
            {"type": "message_delta", "delta": {"stop_reason": {"odd": 1}}, "usage": usage},
            {"type": "message_stop"},
        )
    )
    kind, body = (b"text/event-stream", events) if stream else (b"application/json", whole)
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)
    async with (
        script([answer]) as theirs,
        open_stage(upstreams=upstream("theirs", theirs.port)) as stage,
    ):
        status, said = await stage.ask(stage.alice, stream=stream)
        assert status == (200 if stream else 503)
        assert b"the charge could not be written" in said
        assert b"iterations" not in said
        row = await books(stage, stage.alice)
        assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "gateway_broke", 0)


@pytest.mark.parametrize(
    ("text", "kind"), [("[[sim error=400]]", "failed"), ("[[sim tokens=60 cut_after=5]]", "waived")]
)
async def test_a_call_that_is_free_anyway_does_not_wait_for_books_that_cannot_be_written(
    stage: Stage, text: str, kind: str
) -> None:
    """Nobody loses by its end being written later; the client would wait ten seconds for nothing."""
    store, settler = trouble(stage), settler_of(stage, 3600)
    store.failing = (Settle,)
    heard = await (await listen(stage, stage.alice, text)).end(timeout_s=8)
    assert (heard.status, b"error" in heard.data) == (400 if kind == "failed" else 200, True)
    assert len(settler.unsettled) == 1
    assert settler._spool.waiting == {}
    store.failing = ()
    await settler.retry()
    row = await books(stage, stage.alice)
    assert (row["kind"], row["charged_nanos"]) == (kind, 0)


async def test_the_line_of_a_call_that_is_spooled_says_what_it_comes_to(stage: Stage) -> None:
    store, settler = trouble(stage), settler_of(stage, 0.1)
    store.failing = (Settle,)
    assert (await stage.ask(stage.alice, "[[sim tokens=60]]"))[0] == 200
    (line,) = [event for event in stage.events if event["event"] == "call"]
    store.failing = ()
    await settler.retry()
    row = await books(stage, stage.alice)
    assert line["charged_nanos"] == row["charged_nanos"] > 0
    assert len([event for event in stage.events if event["event"] == "call"]) == 1
