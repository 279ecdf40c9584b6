"""Upstreams: how they do is told, a drained one gets no new call in any process, a test costs nobody anything."""

import json

from farebox.store.open import open_store
from tests.gateway.play import eventually, listen, script, upstream, usage_rows
from tests.stage import MODEL, OpenStage, Stage
from tests.web.browse import Page, browser_of, enter
from tests.web.operators import enter_admin, forget_proof

HERE = "/admin/upstreams"
TWO = """
[[upstreams]]
name = "first"
kind = "simulator"
[[upstreams]]
name = "second"
kind = "simulator"
"""


def tags(page: Page) -> list[str]:
    """Give what is said of each upstream beside its name."""
    return ["".join(tag.itertext()) for head in page.find("h2") for tag in head if "tag" in tag.get("class", "")]


async def went_to(stage: Stage) -> list[str]:
    return [row[0] for row in await stage.rows("SELECT upstream FROM usage ORDER BY at")]


async def test_a_drained_upstream_gets_no_new_call_until_it_is_enabled(open_stage: OpenStage) -> None:
    async with open_stage(upstreams=TWO) as stage:
        operator = await enter_admin(stage)
        assert tags(await operator.get(HERE)) == ["up", "up"]
        under_way = await listen(stage, stage.alice, "[[sim tokens=60 rate=60 ttft=0]]")
        for name in ("first", "second"):
            page = await operator.submit(await operator.get(HERE), f"{HERE}/{name}/drain", reason="repairs")
            assert page.path == HERE
            for number in range(8):
                await stage.ask(stage.alice, f"Question {number}")
            await operator.submit(await operator.get(HERE), f"{HERE}/{name}/enable")
        await under_way.end(20)
        (finished,) = [row for row in await usage_rows(stage, stage.alice) if row["streamed"]]
        assert finished["outcome"] == "finished", "it was under way: it ends as it began"
        served = [row["upstream"] for row in await usage_rows(stage, stage.alice) if not row["streamed"]]
        assert sorted(served) == ["first"] * 8 + ["second"] * 8
        lines = await stage.rows(
            "SELECT action, target, reason FROM audit_log WHERE target LIKE 'upstream:%' ORDER BY id"
        )
        assert lines[:2] == [("upstream.drain", "upstream:first", "repairs"), ("upstream.enable", "upstream:first", "")]


async def test_with_every_upstream_drained_calls_are_refused_and_the_status_says_so(stage: Stage) -> None:
    operator = await enter_admin(stage)
    page = await operator.submit(await operator.get(HERE), f"{HERE}/sim/drain")
    assert "Every upstream is drained" in page.words
    assert not page.faults()
    status, body = await stage.ask(stage.alice)
    assert (status, json.loads(body)["error"]["type"]) == (502, "upstream_error")
    assert await stage.balance(stage.alice) == (100 * 10**9, 0)
    assert "No model is served at the moment" in (await browser_of(stage).get("/status")).words


async def test_what_another_process_drains_is_drained_here_and_after_a_start(
    open_stage: OpenStage, database_url: str
) -> None:
    async with open_stage() as stage:
        store = await open_store(database_url)
        try:
            await store.write([("INSERT INTO upstream_switch (name, drained_at) VALUES ('sim', 1)", ())])
        finally:
            await store.close()

        async def refused() -> bool:
            return (await stage.ask(stage.alice))[0] == 502

        await eventually(refused)
    async with open_stage() as stage:
        operator = await enter_admin(stage)
        page = await operator.get(HERE)
        assert tags(page) == ["drained"]


async def test_a_test_asks_the_upstream_and_nobody_pays(stage: Stage) -> None:
    operator = await enter_admin(stage)
    page = await operator.submit(await operator.get(HERE), f"{HERE}/sim/test")
    assert page.status == 200
    assert "It counted the tokens of a word" in page.words
    assert not page.faults()
    assert not await stage.rows("SELECT 1 FROM usage")


async def test_failures_are_told_by_their_class_and_a_failing_test_in_words(open_stage: OpenStage) -> None:
    broken = b'HTTP/1.1 401 X\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n{"who": "<you>"'
    async with script([broken], [broken], [broken], [broken]) as written:
        theirs = upstream("theirs", written.port)
        async with open_stage(upstreams=theirs, limits="attempts = 1") as stage:
            assert (await stage.ask(stage.alice, model=MODEL))[0] == 502
            operator = await enter_admin(stage)
            page = await operator.get(HERE)
            assert "401" in page.words
            assert "1 failed" in page.words
            page = await operator.submit(page, f"{HERE}/theirs/test")
            assert "The test failed" in page.words
            assert '401: {"who": "<you>"' in page.words
            assert not page.faults()


async def test_it_needs_an_operator_and_a_recent_proof(stage: Stage) -> None:
    operator, mallory = await enter_admin(stage), await enter(stage, stage.bob.email)
    assert (await mallory.get(HERE)).status == 404
    for act in ("drain", "enable", "test"):
        assert (await mallory.post(f"{HERE}/sim/{act}")).status == 404
        assert (await operator.post(f"{HERE}/nothing/{act}")).status == 404
    await forget_proof(stage)
    await operator.post(f"{HERE}/sim/drain", follow=False)
    assert not await stage.rows("SELECT 1 FROM upstream_switch")
