"""Results of native batches as upstreams should not give them, and upstreams that end batches late or out of sight."""

import asyncio
import json
from typing import Any

import pytest

from farebox.errors import InvalidRequest, StoreUnavailable
from farebox.gateway.batches.charges import Charges
from farebox.http.failures import UpstreamError
from farebox.upstreams.simulator.batches import Batches
from tests.gateway.batches.bench import FAST, HALF, PATH, books_agree, call, ended, items, make, price
from tests.gateway.play import eventually
from tests.stage import OpenStage, Person, Stage

RUNNING = "[[sim delay=3600000]]"
BROKE = {"type": "error", "error": {"type": "billing_error", "message": "the card of this organization was declined"}}


def give(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let the simulator give other lines: `change` gets the right ones by custom id."""
    results = Batches.results

    def changed(self: Batches, batch: Any) -> bytes:
        lines = {json.loads(line)["custom_id"]: line for line in results(self, batch).splitlines(keepends=True)}
        return b"".join(change(lines))

    monkeypatch.setattr(Batches, "results", changed)


async def fetch(stage: Stage, person: Person, batch_id: str) -> list[dict[str, Any]]:
    status, data = await call(stage, person, "GET", f"{PATH}/{batch_id}/results")
    assert status == 200
    return [json.loads(line) for line in data.splitlines()]


async def test_each_item_has_one_line_whatever_the_upstream_gives(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wild(lines: dict[str, bytes]) -> list[bytes]:
        other = json.loads(lines["i1"])
        other["result"]["message"]["usage"]["output_tokens"] = 99
        errored = {"custom_id": "i4", "result": {"type": "errored", "error": BROKE}}
        return [
            b"\n", b"no json\n", b'{"custom_id":"nobody","result":{"type":"succeeded"}}\n',
            lines["i0"], lines["i0"], lines["i1"], json.dumps(other).encode() + b"\n", lines["i2"][:-20] + b"\n",
            json.dumps(errored).encode(),
        ]  # fmt: skip

    give(monkeypatch, wild)
    async with open_stage(FAST) as stage:
        made = await make(stage, stage.alice, items("a", "b [[sim tokens=30]]", "broken", "missing", "broke"))
        batch = await ended(stage, stage.alice, made["id"])
        counts = {"processing": 0, "succeeded": 2, "errored": 3, "canceled": 0, "expired": 0}
        assert batch["request_counts"] == counts
        lines = await fetch(stage, stage.alice, made["id"])
        assert sorted(line["custom_id"] for line in lines) == ["i0", "i1", "i2", "i3", "i4"]
        found = {line["custom_id"]: line["result"] for line in lines}
        for name in ("i2", "i3", "i4"):
            assert found[name]["error"]["error"]["type"] == "api_error", name
            assert "declined" not in json.dumps(found[name])
        paid = sum(price(found[name]["message"]["usage"], HALF) for name in ("i0", "i1"))
        assert await books_agree(stage, stage.alice) == paid


async def test_of_what_was_charged_and_is_gone_upstream_nothing_wrong_is_told(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_stage(FAST) as stage:
        made = await make(stage, stage.alice, items("a", "b"))
        await ended(stage, stage.alice, made["id"])
        give(monkeypatch, lambda lines: [lines["i0"]])
        with pytest.raises(UpstreamError):  # cut off: the client tries again
            await fetch(stage, stage.alice, made["id"])


async def test_a_line_that_is_too_long_keeps_nobody_else_from_the_results(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.gateway.batches.lines._LINE_BYTES", 4000)
    async with open_stage(FAST) as stage:
        made = await make(stage, stage.alice, items("a", "b [[sim tokens=5000]]", "c", max_tokens=6000))
        batch = await ended(stage, stage.alice, made["id"])
        assert (batch["request_counts"]["succeeded"], batch["request_counts"]["errored"]) == (2, 1)
        lines = await fetch(stage, stage.alice, made["id"])
        assert sorted((line["custom_id"], line["result"]["type"]) for line in lines) == [
            ("i0", "succeeded"), ("i1", "errored"), ("i2", "succeeded"),
        ]  # fmt: skip
        assert await books_agree(stage, stage.alice) > 0


async def test_made_at_the_same_time_they_are_not_more_than_an_account_may_have(open_stage: OpenStage) -> None:
    async with open_stage(f"{FAST}open_batches = 3\n") as stage:
        body = json.dumps({"requests": items(RUNNING)}).encode()
        answers = await asyncio.gather(*(call(stage, stage.alice, "POST", PATH, body) for _ in range(12)))
        taken = [status for status, _ in answers].count(200)
        assert 3 <= taken <= 5
        assert [status for status, _ in answers].count(429) == 12 - taken
        assert len(await stage.rows("SELECT 1 FROM hold")) == taken


def _end(stage: Stage) -> None:
    """End what the simulator runs, at once."""
    for batch in stage.simulator.batches.newest_first():
        for item in batch.items:
            item.ready_us = 0


@pytest.mark.parametrize("cancelled", [False, True])
async def test_results_that_are_there_count_however_late_or_cancelled_it_is(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch, *, cancelled: bool
) -> None:
    def refused(*_: Any) -> None:
        raise InvalidRequest("a batch that has ended cannot be canceled")

    async with open_stage("[batches]\npoll_s = 0.3\n") as stage:
        made = await make(stage, stage.alice, items(RUNNING, RUNNING))
        monkeypatch.setattr(Batches, "cancel", refused)
        _end(stage)
        change = "state = 'canceling', cancel_at = 1" if cancelled else "expires_at = 1"
        await stage.gateway.store.write([(f"UPDATE batch SET {change}", ())])
        batch = await ended(stage, stage.alice, made["id"])
        assert batch["request_counts"]["succeeded"] == 2
        assert await books_agree(stage, stage.alice) > 0


async def test_what_is_given_up_is_cancelled_upstream(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        made = await make(stage, stage.alice, items(RUNNING))
        await stage.gateway.store.write([("UPDATE batch SET expires_at = 1", ())])
        await ended(stage, stage.alice, made["id"])
        assert [one.cancel_us is not None for one in stage.simulator.batches.newest_first()] == [True]
        assert await books_agree(stage, stage.alice) == 0


async def test_one_that_could_not_be_undone_is_undone_when_the_books_are_back(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    async with open_stage(FAST) as stage:
        stage.simulator.knobs = "error=400"
        with monkeypatch.context() as patch:
            patch.setattr(Charges, "end_free", away)
            await call(stage, stage.alice, "POST", PATH, json.dumps({"requests": items("a", "b")}).encode())
        assert len(await stage.rows("SELECT 1 FROM hold")) == 2

        async def undone() -> bool:
            return not await stage.rows("SELECT 1 FROM hold") and not await stage.rows("SELECT 1 FROM batch")

        await eventually(undone, 15)
        assert await books_agree(stage, stage.alice) == 0


async def test_nobody_waits_while_a_large_batch_is_read(open_stage: OpenStage) -> None:
    async with open_stage(FAST, alice_usd=1000) as stage:
        body = json.dumps({"requests": items(*["é" * 100] * 20_000)}, ensure_ascii=False).encode()
        turns, making = 0, asyncio.create_task(call(stage, stage.alice, "POST", PATH, body[:-1] + b',"x":'))
        while not making.done():
            turns += 1
            await asyncio.sleep(0)
        assert (await making)[0] == 400
        making = asyncio.create_task(call(stage, stage.alice, "POST", PATH, body.replace(b"i19999", b"i19998")))
        before = turns
        while not making.done():
            turns += 1
            await asyncio.sleep(0)
        status, refusal = await making
        assert (status, "is given twice" in refusal["error"]["message"]) == (400, True)
        assert turns - before > 20_000 // 250
