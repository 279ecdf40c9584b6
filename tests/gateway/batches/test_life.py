"""The life of a batch, run by the upstream or by Farebox itself: what is held, what is charged, what is delivered."""

import json

import pytest

from farebox.billing.ledger import Admission, Admit
from farebox.books.audit import audit
from farebox.books.ledger import debit
from tests.gateway.batches.bench import FAST, HALF, OWN, PATH, books_agree, call, ended, items, make, price, results
from tests.gateway.play import envelope, eventually
from tests.stage import MODEL, OpenStage

WAYS = pytest.mark.parametrize(("settings", "share"), [(FAST, HALF), (OWN, "1"), (f"{OWN}percent = 70\n", "7/10")])


@WAYS
async def test_each_item_is_charged_its_own_usage_at_the_share_of_its_batch(
    open_stage: OpenStage, settings: str, share: str
) -> None:
    async with open_stage(settings) as stage:
        made = await make(stage, stage.alice, items("one", "two [[sim tokens=30]]", "three [[sim error=400]]"))
        assert made["processing_status"] == "in_progress"
        assert made["request_counts"]["processing"] == 3
        batch = await ended(stage, stage.alice, made["id"])
        assert batch["request_counts"] == {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 0, "expired": 0}
        found = await results(stage, stage.alice, batch)
        assert {name: result["type"] for name, result in found.items()} == {
            "i0": "succeeded", "i1": "succeeded", "i2": "errored",
        }  # fmt: skip
        assert found["i2"]["error"]["type"] == "error"
        paid = sum(price(found[name]["message"]["usage"], share) for name in ("i0", "i1"))
        assert await books_agree(stage, stage.alice) == paid
        rows = await stage.rows("SELECT kind, outcome, charged_nanos > 0 FROM usage ORDER BY outcome")
        assert [tuple(row) for row in rows] == [
            ("exact", "finished", True), ("exact", "finished", True), ("failed", "refused_upstream", False),
        ]  # fmt: skip


@WAYS
async def test_all_of_it_is_held_or_nothing(open_stage: OpenStage, settings: str, share: str) -> None:  # noqa: ARG001
    async with open_stage(settings, alice_usd=0.01) as stage:
        body = json.dumps({"requests": items(*["hi"] * 40, max_tokens=1000)}).encode()
        status, refusal = await call(stage, stage.alice, "POST", PATH, body)
        assert status == 402
        kind, words = envelope(json.dumps(refusal).encode())
        assert kind == "insufficient_balance"
        assert "short" in words
        assert "40 items" in words
        assert not stage.simulator.requests
        assert await books_agree(stage, stage.alice, 10**7) == 0
        assert not await stage.rows("SELECT 1 FROM batch")
        assert not await stage.rows("SELECT 1 FROM usage")


async def test_while_it_runs_its_money_is_held_outside_the_limits_of_calls(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        made = await make(stage, stage.alice, items(*["[[sim delay=3600000]]"] * 30))
        posted, held = await stage.balance(stage.alice)
        rows = await stage.rows("SELECT count(*), sum(amount_nanos), min(run_id), max(run_id) FROM hold")
        assert tuple(rows[0]) == (30, held, -1, -1)
        assert held > 0
        assert (await stage.rows("SELECT open_holds FROM account WHERE id = ?", stage.alice.account_id))[0][0] == 0
        status, refusal = await call(stage, stage.alice, "GET", f"{PATH}/{made['id']}/results")
        assert (status, refusal["error"]["type"]) == (404, "not_found_error")
        assert made["results_url"] is None
        status, _ = await stage.ask(stage.alice)
        assert status == 200
        status, batch = await call(stage, stage.alice, "POST", f"{PATH}/{made['id']}/cancel")
        assert (status, batch["processing_status"]) == (200, "canceling")
        batch = await ended(stage, stage.alice, made["id"])
        assert batch["request_counts"]["canceled"] == 30
        charged = await books_agree(stage, stage.alice)
        assert posted - charged > 0


async def test_items_that_expired_or_were_cancelled_upstream_are_free(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        made = await make(
            stage, stage.alice, items("[[sim batch=expired]]", "[[sim batch=canceled]]", "[[sim no_usage]]")
        )
        batch = await ended(stage, stage.alice, made["id"])
        counts = batch["request_counts"]
        assert (counts["expired"], counts["canceled"], counts["errored"]) == (1, 1, 1)
        found = await results(stage, stage.alice, batch)
        assert found["i2"]["type"] == "errored"  # an answer that nobody can price is not delivered
        assert await books_agree(stage, stage.alice) == 0


@pytest.mark.parametrize("settings", [FAST, OWN])
async def test_a_batch_is_its_accounts_alone_and_can_be_deleted_once_it_has_ended(
    open_stage: OpenStage, settings: str
) -> None:
    async with open_stage(settings) as stage:
        made = [await make(stage, stage.alice, items("one")) for _ in range(3)]
        for batch in made:
            await ended(stage, stage.alice, batch["id"])
        mallory = await stage.person("mallory@example.com", 5)
        for method, end in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/results")):
            status, _ = await call(stage, mallory, method, f"{PATH}/{made[0]['id']}{end}")
            assert status == 404, (method, end)
        assert (await call(stage, mallory, "GET", PATH))[1]["data"] == []
        ids = [batch["id"] for batch in reversed(made)]
        _, page = await call(stage, stage.alice, "GET", f"{PATH}?limit=2")
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (ids[:2], True)
        _, page = await call(stage, stage.alice, "GET", f"{PATH}?limit=2&after_id={page['last_id']}")
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (ids[2:], False)
        _, page = await call(stage, stage.alice, "GET", f"{PATH}?limit=1&before_id={ids[2]}")
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (ids[1:2], True)
        status, gone = await call(stage, stage.alice, "DELETE", f"{PATH}/{ids[0]}")
        assert (status, gone) == (200, {"id": ids[0], "type": "message_batch_deleted"})
        assert (await call(stage, stage.alice, "GET", f"{PATH}/{ids[0]}"))[0] == 404
        assert len(await stage.rows("SELECT 1 FROM batch_item")) == 2
        await books_agree(stage, stage.alice)


async def test_where_bytes_are_too_much_for_the_balance_the_upstreams_count_decides(open_stage: OpenStage) -> None:
    async with open_stage(FAST, alice_usd=0.01) as stage:
        made = await make(stage, stage.alice, items(*["word " * 900] * 4, max_tokens=20))
        counted = [one for one in stage.simulator.requests if one.path.endswith("/count_tokens")]
        assert len(counted) == 4
        await ended(stage, stage.alice, made["id"])
        await books_agree(stage, stage.alice, 10**7)


async def test_a_call_that_takes_the_money_in_between_leaves_all_of_it_or_nothing(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        hold = stage.gateway.ledger.hold
        held = 0

        async def poorer(command: Admit, patience_s: float) -> Admission:
            nonlocal held
            held += 1
            if held == 30:
                spent = debit("spent", stage.alice.account_id, 100 * 10**9 - 10**8, actor="test", memo="")
                assert (await stage.gateway.ledger.post(spent)).now
            return await hold(command, patience_s)

        stage.gateway.ledger.hold = poorer  # type: ignore[method-assign]
        body = json.dumps({"requests": items(*["hi"] * 300)}).encode()
        status, refusal = await call(stage, stage.alice, "POST", PATH, body)
        assert (status, refusal["error"]["type"]) == (402, "insufficient_balance")
        posted, on_hold = await stage.balance(stage.alice)
        assert (posted, on_hold) == (10**8, 0)
        assert not await stage.rows("SELECT 1 FROM batch")
        assert not await stage.rows("SELECT 1 FROM usage WHERE charged_nanos > 0")
        assert not stage.simulator.requests
        await books_agree(stage, stage.alice, posted)


async def test_a_standing_hold_of_no_batch_is_found_by_the_audit_and_ended(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        ((key_id,),) = await stage.rows("SELECT id FROM api_key WHERE account_id = ?", stage.alice.account_id)
        stray = Admit(bytes(16), stage.alice.account_id, key_id, MODEL, 10**9, 10**9, 0, 1, standing=True)
        assert (await stage.gateway.ledger.admit(stray)).verdict == "admitted"
        live = next(check for check in await audit(stage.gateway.store) if check.name == "live holds")
        assert not live.ok
        assert "no batch" in live.detail

        async def gone() -> bool:
            return not await stage.rows("SELECT 1 FROM hold")

        await eventually(gone, 15)
        assert await books_agree(stage, stage.alice) == 0
