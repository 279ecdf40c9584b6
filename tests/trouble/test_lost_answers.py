"""A commit whose answer is lost has happened: delivered again it changes nothing, and nobody is charged twice."""

import asyncio
from pathlib import Path

import pytest

from farebox.books import runs
from tests.books.nodes import open_node, until
from tests.gateway.play import USD, books, listen
from tests.stage import Stage, open_stage
from tests.trouble.acts import (
    ADMIT,
    RESIZE,
    SETTLE,
    charged_exactly,
    delivered,
    finished,
    hurry,
    logged,
    refused_in_time,
    serves_again,
    settler_of,
    sound,
    spooled,
)
from tests.trouble.proxy import Proxy


@pytest.mark.parametrize("after_bytes", [0, 1, 60, -1])
@pytest.mark.parametrize("lost", [(ADMIT,), (SETTLE,), (ADMIT, SETTLE)], ids=["admit", "settle", "both"])
async def test_a_call_goes_on_when_an_answer_of_the_database_is_lost(
    stage: Stage, proxy: Proxy, lost: tuple[bytes, ...], after_bytes: int
) -> None:
    proxy.lose_answer(*lost, after_bytes=after_bytes)
    status, body = await stage.ask(stage.alice)
    assert status == 200, body
    assert proxy.lost == len(lost)
    await charged_exactly(stage, stage.alice)


@pytest.mark.parametrize("lost", [(ADMIT,), (RESIZE,), (SETTLE,), (ADMIT, RESIZE, SETTLE)])
async def test_a_stream_goes_on_when_an_answer_of_the_database_is_lost(
    stage: Stage, proxy: Proxy, lost: tuple[bytes, ...]
) -> None:
    proxy.lose_answer(*lost)
    heard = await (await listen(stage, stage.alice, "[[sim tokens=3000 rate=20000]]", max_tokens=20_000)).end()
    assert finished(heard)
    assert proxy.lost == len(lost)
    row = await charged_exactly(stage, stage.alice)
    assert row["output_tokens"] == 3000


async def test_of_a_crowd_whose_answers_are_lost_everybody_is_served_once(stage: Stage, proxy: Proxy) -> None:
    proxy.lose_answer(ADMIT, SETTLE, ADMIT, SETTLE)
    answers = await asyncio.gather(*(stage.ask(stage.alice) for _ in range(40)))
    assert {status for status, _ in answers} == {200}
    assert proxy.lost >= 2
    await charged_exactly(stage, stage.alice, calls=40)


async def test_a_hold_whose_answer_is_lost_for_good_is_refused_and_ended_as_a_stray_one(
    stage: Stage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_STRAY_US", 0)
    proxy.lose_answer(ADMIT, stay_away=True)
    await refused_in_time(stage, stage.alice)
    assert proxy.lost == 1
    await proxy.heal()
    assert (await stage.balance(stage.alice))[1] > 0
    assert len(stage.simulator.requests) == 0
    assert stage.gateway.books is not None
    assert await stage.gateway.books.runs.end_strays() == 1
    row = await books(stage, stage.alice)
    assert (row["kind"], row["charged_nanos"]) == ("recovered", 0)
    assert await stage.gateway.books.runs.end_strays() == 0
    await sound(stage)


async def test_a_hold_whose_answer_is_lost_for_good_is_given_back_when_its_process_dies(
    stage: Stage, proxy: Proxy, postgres_url: str
) -> None:
    proxy.lose_answer(ADMIT, stay_away=True)
    await refused_in_time(stage, stage.alice)
    async with open_node(postgres_url) as other:
        assert await other.rows("SELECT 1 FROM hold")
        shorten = "UPDATE run SET lease_until = now_us() WHERE id = ?"
        await other.store.write([(shorten, (stage.gateway.store.run_id,))])

        async def given_back() -> bool:
            await other.beat()
            return (await other.balance())[1:] == (0, 0)

        await until(given_back)


async def test_a_charge_whose_answer_is_lost_for_good_is_delivered_by_way_of_the_spool_and_paid_once(
    stage: Stage, proxy: Proxy
) -> None:
    hurry(stage)
    proxy.lose_answer(SETTLE, stay_away=True)
    heard = await (await listen(stage, stage.alice, "[[sim tokens=60]]")).end()
    assert finished(heard)
    assert (proxy.lost, spooled(stage)) == (1, 1)
    await proxy.heal()
    await charged_exactly(stage, stage.alice)
    await delivered(stage)
    await charged_exactly(stage, stage.alice)


async def test_a_charge_that_nobody_could_tell_of_is_refunded_when_its_answer_was_not_delivered(
    stage: Stage, proxy: Proxy
) -> None:
    """Neither the database nor the spool said that it is safe; the database had it all the same."""
    hurry(stage)
    settler_of(stage)._spool._most = 0
    proxy.lose_answer(SETTLE, stay_away=True)
    heard = await (await listen(stage, stage.alice, "[[sim tokens=60]]")).end()
    assert (heard.last[0], heard.last[1]["error"]["type"]) == ("error", "api_error")
    await proxy.heal()
    ((kind, charged),) = await stage.rows("SELECT kind, charged_nanos FROM usage")
    assert kind == "exact"
    assert await stage.balance(stage.alice) == (100 * USD - charged, 0)
    for _ in range(2):
        await delivered(stage)
        assert await stage.balance(stage.alice) == (100 * USD, 0)
    transfers = await stage.rows("SELECT debit_account, amount_nanos FROM transfer WHERE code = 'refund'")
    assert transfers == [("house:adjustments", charged)]
    assert len(logged(stage, "charge_refunded")) == 1
    await sound(stage)


async def test_a_refund_whose_answer_is_lost_is_made_once(stage: Stage, proxy: Proxy) -> None:
    hurry(stage)
    settler_of(stage)._spool._most = 0
    proxy.lose_answer(SETTLE, stay_away=True)
    await (await listen(stage, stage.alice, "[[sim tokens=60]]")).end()
    await proxy.heal()
    proxy.lose_answer(b'"type":"transfer"', stay_away=True)
    await settler_of(stage).retry()
    assert proxy.lost == 2
    await proxy.heal()
    await delivered(stage)
    assert await stage.balance(stage.alice) == (100 * USD, 0)
    assert len(await stage.rows("SELECT 1 FROM transfer WHERE code = 'refund'")) == 1


async def test_a_call_given_up_as_lost_is_not_charged_and_not_delivered_when_it_ends_after_all(
    tmp_path: Path, postgres_url: str
) -> None:
    """Its process was paused for more than a day. The last bytes stay here, since nobody pays for them."""
    async with open_stage(tmp_path, database_url=postgres_url) as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=60 rate=200]]")
        await heard.has(b"content_block_delta")
        await stage.gateway.store.write([("UPDATE run SET reaped_at = now_us()", ())])
        books_ = stage.gateway.books
        assert books_ is not None
        await books_.runs.recover()
        await stage.gateway.store.write([("UPDATE hold SET expired_at = 1", ())])
        await books_.runs.recover()
        await heard.end()
        assert (heard.last[0], heard.last[1]["error"]["type"]) == ("error", "api_error")
        assert not {"message_delta", "message_stop"} & set(heard.names)
        row = await books(stage, stage.alice)
        assert (row["kind"], row["charged_nanos"]) == ("recovered", 0)
        assert len(logged(stage, "settled_too_late")) == 1


async def test_a_stream_of_a_process_that_was_given_up_for_a_while_is_charged_as_it_ends(
    tmp_path: Path, postgres_url: str
) -> None:
    async with open_stage(tmp_path, database_url=postgres_url) as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=60 rate=200]]")
        await heard.has(b"content_block_delta")
        before = stage.gateway.store.run_id
        await stage.gateway.store.write([("UPDATE run SET reaped_at = now_us()", ())])
        books_ = stage.gateway.books
        assert books_ is not None
        await books_.runs.recover()
        assert (await stage.balance(stage.alice))[1] == 0
        await books_.beat()
        assert stage.gateway.store.run_id != before
        assert finished(await heard.end())
        row = await charged_exactly(stage, stage.alice)
        assert row["kind"] == "late"
        await serves_again(stage, stage.alice)
        assert (await charged_exactly(stage, stage.alice, calls=2))["kind"] == "exact"
