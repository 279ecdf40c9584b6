"""What is asked about calls of a month that was let go is answered so, and is no reason for alarm."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from farebox.accounts.keys import create_key
from farebox.bills.drift import days_of
from farebox.books.reports import count_calls
from farebox.books.retention import drop_months, first_kept, kept
from farebox.clock import DAY_US, HOUR_US, day_of
from farebox.errors import InvalidRequest
from farebox.ids import show_request_id
from farebox.store.open import open_store
from tests.growth.books import Size, fill
from tests.growth.measure import FIRST
from tests.stage import MODEL, Stage, open_stage
from tests.web.browse import enter
from tests.web.operators import enter_admin

BILL = '[[bills]]\nname = "ours"\nupstreams = ["anthropic"]\npercent = 1\nleast_usd = 0.000001\n'


@asynccontextmanager
async def let_go(url: str, directory: Path) -> AsyncIterator[tuple[Stage, bytes, int]]:
    """A gateway whose books have let months go; with a call of hers that went, and since when others stay."""
    now_us = time.time_ns() // 1000
    await fill(url, Size(300, 80, 5), now_us, lambda _: None, digests=True)
    store = await open_store(url)
    ((gone,),) = await store.fetch("SELECT request_id FROM usage WHERE account_id = 1 ORDER BY at LIMIT 1")
    assert await drop_months(store, 1, now_us)
    kept_us = await first_kept(store)
    await store.close()
    async with open_stage(directory, BILL, database_url=url) as stage:
        yield stage, gone, kept_us


async def test_what_went_is_told_as_gone_and_not_as_never_made(database_url: str, tmp_path: Path) -> None:
    async with let_go(database_url, tmp_path) as (stage, gone, kept_us):
        shown, since = show_request_id(gone), day_of(kept_us)
        told = f"no longer kept, only those since {since}"
        browser = await enter(stage, FIRST)
        for path in (f"/dashboard/requests/{shown}", f"/dashboard/requests?id={shown}"):
            page = await browser.get(path)
            assert (page.status, told in page.words) == (404, True), path
        young = show_request_id(b"\x7f" + gone[1:])
        for path in (f"/dashboard/requests/{young}", f"/dashboard/requests?id={young}", "/dashboard/requests?id=what"):
            page = await browser.get(path)
            assert (page.status, "refused before they began" in page.words, told in page.words) == (404, True, False)
        operator = await enter_admin(stage)
        page = await operator.get(f"/admin/ledger/entry?id={shown}")
        assert (page.status, told in page.words) == (404, True)
        assert page.faults() == []
        assert told not in (await operator.get(f"/admin/ledger/entry?id={young}")).words
        _, key = await create_key(stage.gateway.store, 1, "asks", "sk-cc-", stage.gateway.clock())
        for path in (f"/v1/requests/{shown}", f"/v1/requests/{shown}/receipt"):
            status, body = await _ask(stage, key, path)
            assert (status, b"are no longer kept, only those since " + since.encode() in body) == (404, True), body
        assert b"refused before they began" in (await _ask(stage, key, f"/v1/requests/{young}"))[1]


async def _ask(stage: Stage, key: str, path: str) -> tuple[int, bytes]:
    answer = await stage.client.request("GET", path, [(b"x-api-key", key.encode())], b"", first_byte_s=30)
    return answer.status, await answer.read(2**20)


async def test_a_bill_of_days_that_went_is_refused_and_raises_no_alarm(database_url: str, tmp_path: Path) -> None:
    async with let_go(database_url, tmp_path) as (stage, _, kept_us):
        watch = stage.parts.bills
        went, stays = day_of(kept_us - DAY_US), day_of(kept_us)
        with pytest.raises(InvalidRequest, match=f"the calls of {went} are no longer kept.*before {stays}"):
            await watch.take("ours", {(went, MODEL): 10**9, (stays, MODEL): 10**9})
        assert await days_of(stage.gateway.store) == []
        (day,) = await watch.take("ours", {(stays, MODEL): 10**9})
        assert day.metered_nanos > 0
        operator = await enter_admin(stage)
        page = await operator.get("/admin/bills")
        page = await operator.submit(page, "/admin/bills/ours/import", csv=f"day,model,cost_usd\n{went},{MODEL},1\n")
        assert (page.status, f"calls of {went} are no longer kept" in page.words) == (422, True)
        await watch.notice(stage.gateway.clock())
        assert {event["day"] for event in stage.events if event["event"] == "bill_drifts"} == {stays}


async def test_calls_are_counted_from_sums_to_the_call(database_url: str, tmp_path: Path) -> None:
    """Since any moment, in the middle of an hour too, with months gone and with none."""
    async with let_go(database_url, tmp_path) as (stage, _, kept_us):
        store, now_us = stage.gateway.store, stage.gateway.clock()
        for account_id in (None, 1, 2, 99):
            owner, whose = (" AND account_id = ?", (account_id,)) if account_id else ("", ())
            for since_us in (0, kept_us - 7, kept_us, kept_us + 3 * HOUR_US // 2, now_us - 2 * DAY_US, now_us):
                count = f"SELECT count(*) FROM usage WHERE at >= ?{owner}"
                ((right,),) = await store.fetch(count, (since_us, *whose))
                assert await count_calls(store, account_id=account_id, since_us=since_us) == right
        found = await kept(store)
        ((right, first_us),) = await store.fetch("SELECT count(*), min(at) FROM usage")
        assert (found.calls, found.first_us) == (right, first_us)
