"""The page of batches: how each is, what it came to, and a button that cancels it wherever it runs."""

import pytest

from farebox.money import format_usd
from tests.gateway.batches.bench import FAST, OWN, books_agree, ended, items, make
from tests.gateway.play import eventually
from tests.stage import OpenStage
from tests.web.browse import enter

PATH = "/dashboard/batches"


@pytest.mark.parametrize("settings", [FAST, OWN])
async def test_it_tells_what_each_batch_came_to_and_cancels_one_under_way(open_stage: OpenStage, settings: str) -> None:
    async with open_stage(f"{settings}at_once = 1\n") as stage:
        browser = await enter(stage, stage.alice.email)
        page = await browser.get(PATH)
        assert (page.status, page.faults()) == (200, [])
        assert "No batches" in page.words
        done = await make(stage, stage.alice, items("one", "[[sim error=400]]"))
        await ended(stage, stage.alice, done["id"])
        charged = await books_agree(stage, stage.alice)
        slow = await make(stage, stage.alice, items(*["[[sim delay=1500]]"] * 3))
        page = await browser.get(PATH)
        assert page.faults() == []
        assert page.words.index(slow["id"]) < page.words.index(done["id"])
        assert "1 succeeded, 1 failed" in page.words
        assert format_usd(charged) in page.words
        await browser.submit(page, f"{PATH}/{slow['id']}/cancel")

        async def cancelled() -> bool:
            return bool(await stage.rows("SELECT 1 FROM batch WHERE canceled >= 1 AND state = 'ended'"))

        await eventually(cancelled, 15)
        await books_agree(stage, stage.alice)


async def test_another_accounts_batches_are_neither_shown_nor_cancelled(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        made = await make(stage, stage.alice, items("[[sim delay=3600000]]"))
        browser = await enter(stage, stage.bob.email)
        page = await browser.get(PATH)
        assert made["id"] not in page.words
        await browser.post(f"{PATH}/{made['id']}/cancel")
        assert await stage.rows("SELECT state FROM batch") == [("in_progress",)]
