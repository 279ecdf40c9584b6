"""What goes wrong with batches, and who pays: cancelled, run out of time, refused, lost, given up half made."""

import json

import pytest

from farebox.gateway.batches.records import Records
from tests.gateway.batches.bench import FAST, OWN, PATH, books_agree, call, ended, items, make, results
from tests.gateway.play import eventually
from tests.stage import OpenStage

LATE = "UPDATE batch SET expires_at = 1"


async def test_a_cancelled_batch_of_our_own_sends_nothing_more_and_charges_what_was_answered(
    open_stage: OpenStage,
) -> None:
    async with open_stage(f"{OWN}at_once = 1\n") as stage:
        made = await make(stage, stage.alice, items(*["[[sim delay=100]]"] * 8))

        async def one_answered() -> bool:
            return bool(await stage.rows("SELECT 1 FROM usage"))

        await eventually(one_answered)
        await call(stage, stage.alice, "POST", f"{PATH}/{made['id']}/cancel")
        batch = await ended(stage, stage.alice, made["id"])
        counts = batch["request_counts"]
        assert counts["succeeded"] >= 1
        assert counts["canceled"] >= 5
        assert counts["succeeded"] + counts["canceled"] == 8
        assert batch["cancel_initiated_at"] is not None
        found = await results(stage, stage.alice, batch)
        assert [result["type"] for result in found.values()].count("canceled") == counts["canceled"]
        assert await books_agree(stage, stage.alice) > 0


async def test_of_our_own_what_is_not_sent_in_time_expires_for_free(open_stage: OpenStage) -> None:
    async with open_stage(f"{OWN}at_once = 1\n") as stage:
        await make(stage, stage.alice, items(*["[[sim delay=200]]"] * 4))
        alice = stage.alice
    async with open_stage(OWN) as stage:
        await stage.gateway.store.write([(LATE, ())])
        over = "SELECT succeeded, expired FROM batch WHERE state = 'ended'"

        async def has_ended() -> bool:
            return bool(await stage.rows(over))

        await eventually(has_ended, 15)  # without its key, and without being asked for it
        succeeded, expired = (await stage.rows(over))[0]
        assert (succeeded + expired, expired >= 3) == (4, True)
        await books_agree(stage, alice)


async def test_a_native_batch_that_its_upstream_never_ends_is_given_up(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        made = await make(stage, stage.alice, items(*["[[sim delay=3600000]]"] * 3))
        await stage.gateway.store.write([(LATE, ())])
        batch = await ended(stage, stage.alice, made["id"])
        assert batch["request_counts"]["expired"] == 3
        assert await books_agree(stage, stage.alice) == 0
        assert "batch_overdue" in {event["event"] for event in stage.events}


async def test_a_native_batch_that_its_upstream_has_lost_is_free(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        made = await make(stage, stage.alice, items(*["[[sim delay=3600000]]"] * 3))
        stage.simulator.batches._batches.clear()
        batch = await ended(stage, stage.alice, made["id"])
        assert batch["request_counts"]["errored"] == 3
        assert await books_agree(stage, stage.alice) == 0
        assert "batch_lost" in {event["event"] for event in stage.events}


@pytest.mark.parametrize(
    ("knobs", "status"), [("error=400", 400), ("error=529", 529), ("error=401", 502), ("close_before", 502)]
)
async def test_what_the_upstream_does_not_take_leaves_nothing_behind(
    open_stage: OpenStage, knobs: str, status: int
) -> None:
    async with open_stage(FAST) as stage:
        stage.simulator.knobs = knobs
        body = json.dumps({"requests": items("one", "two")}).encode()
        got, refusal = await call(stage, stage.alice, "POST", PATH, body)
        assert (got, refusal["type"]) == (status, "error")
        assert await books_agree(stage, stage.alice) == 0
        assert not await stage.rows("SELECT 1 FROM batch")
        assert len(stage.simulator.requests) == 1  # nobody could tell what became of another try


async def test_one_that_was_being_made_when_its_process_died_is_undone(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        made = await make(stage, stage.alice, items(*["[[sim delay=3600000]]"] * 3))
        alice = stage.alice
        undo = "UPDATE batch SET state = 'creating', run_id = 1"
        await stage.gateway.store.write([(undo, ())])
        await stage.gateway.store.write([("UPDATE run SET stopped_at = 1 WHERE id = 1", ())])

        async def undone() -> bool:
            return not await stage.rows("SELECT 1 FROM hold") and not await stage.rows("SELECT 1 FROM batch")

        await eventually(undone, 15)
        assert ("batch_abandoned", "sim") in {(event["event"], event.get("upstream")) for event in stage.events}
        assert (await call(stage, alice, "GET", f"{PATH}/{made['id']}"))[0] == 404
        assert await books_agree(stage, alice) == 0


async def test_an_upstream_that_fails_every_try_ends_an_item_for_free(open_stage: OpenStage) -> None:
    async with open_stage(OWN, limits="retry_budget = 0") as stage:
        made = await make(stage, stage.alice, items("[[sim error=500]]", "[[sim fail_first=2]]", "fine"))
        batch = await ended(stage, stage.alice, made["id"])
        found = await results(stage, stage.alice, batch)
        assert [found[f"i{place}"]["type"] for place in range(3)] == ["errored", "succeeded", "succeeded"]
        assert await books_agree(stage, stage.alice) > 0


async def test_an_upstream_that_turns_out_to_have_no_batches_is_asked_no_more(open_stage: OpenStage) -> None:
    async with open_stage('[batches]\nrun = "any"\npoll_s = 0.05\n') as stage:
        stage.simulator.knobs = "error=404"
        body = json.dumps({"requests": items("one")}).encode()
        got, refusal = await call(stage, stage.alice, "POST", PATH, body)
        assert (got, refusal["error"]["type"]) == (400, "invalid_request_error")
        stage.simulator.knobs = ""
        made = await make(stage, stage.alice, items("one"))
        assert await stage.rows("SELECT way FROM batch") == [("own",)]
        batch = await ended(stage, stage.alice, made["id"])
        assert batch["request_counts"]["succeeded"] == 1
        await books_agree(stage, stage.alice)


async def test_one_that_was_made_upstream_and_could_not_begin_is_cancelled_there(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def too_late(*_: object) -> bool:
        return False

    monkeypatch.setattr(Records, "begin", too_late)
    async with open_stage(FAST) as stage:
        body = json.dumps({"requests": items(*["[[sim delay=3600000]]"] * 2)}).encode()
        got, _ = await call(stage, stage.alice, "POST", PATH, body)
        assert got == 503
        assert [one.cancel_us is not None for one in stage.simulator.batches.newest_first()] == [True]
        assert not await stage.rows("SELECT 1 FROM batch")
        assert await books_agree(stage, stage.alice) == 0


async def test_no_batch_is_made_at_an_upstream_that_is_drained(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        (only,) = stage.parts.pool.upstreams
        only.drained = True
        body = json.dumps({"requests": items("one")}).encode()
        got, refusal = await call(stage, stage.alice, "POST", PATH, body)
        assert (got, refusal["error"]["type"]) == (502, "upstream_error")
        assert "at the moment" in refusal["error"]["message"]
        assert not stage.simulator.requests
        only.drained = False
        await make(stage, stage.alice, items("one"))


@pytest.mark.parametrize(("change", "reads"), [("revoked_at", False), ("expires_at", False), ("revoked_at", True)])
async def test_what_is_left_of_a_batch_is_free_once_no_key_can_read_its_results(
    open_stage: OpenStage, change: str, *, reads: bool
) -> None:
    """Nobody pays for what nobody can have. Where the server itself can open them, another key reads the results."""
    kept = '[server]\nsecret = "a-secret-that-is-long-enough-to-be-one"\n' if reads else ""
    unattended = "unattended = true\n" if reads else ""
    async with open_stage(f"{OWN}at_once = 1\n{unattended}", server=kept.removeprefix("[server]\n")) as stage:
        other = await stage.sibling(stage.alice)
        made = await make(stage, stage.alice, items(*["[[sim delay=400]]"] * (3 if reads else 30)))
        gone = f"UPDATE api_key SET {change} = ? WHERE id = (SELECT key_id FROM batch)"
        await stage.gateway.store.write([(gone, (stage.gateway.clock() - 1,))])
        batch = await ended(stage, other, made["id"])
        counts = batch["request_counts"]
        assert (counts["canceled"] > 0) is not reads
        assert counts["succeeded"] + counts["canceled"] == (3 if reads else 30)
        if reads:
            assert len(await results(stage, other, batch)) == 3
        await books_agree(stage, stage.alice)
