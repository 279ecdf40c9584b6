"""Somebody sets the clock of the machine while the server serves: nothing that counts time counts it wrongly."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import US_PER_S, steady_clock
from tests.clocks.jumping import PER_MINUTE, Jumping

HOUR_S = 3_600
DAY_S = 24 * HOUR_S
BETWEEN_S = 1.05
COIN = "simulated:BTC"
STREAM_S = 5
TO_1970_S = 6 * HOUR_S - round(steady_clock()() / US_PER_S)
TO_2038_S = 2**31 - 1 - round(steady_clock()() / US_PER_S)
"""A second before 32 bits are full, as the tests are collected."""
JUMPS = (-HOUR_S, DAY_S, TO_1970_S, TO_2038_S, 0)


@pytest.fixture
def seed() -> int:
    """Set FAREBOX_SEED to repeat the choices of a run."""
    return int(os.environ.get("FAREBOX_SEED") or random.SystemRandom().getrandbits(32))


LONGEST_WAIT_S = 660
"""A minute's bucket and the deepest debt: no clock makes anybody wait longer (billing.ratelimit)."""


@pytest.fixture
async def jumping(tmp_path: Path, database_url: str, seed: int) -> AsyncIterator[Jumping]:
    run = Jumping(tmp_path, database_url, seed)
    await run.open()
    try:
        yield run
    finally:
        await run.close()


async def test_jumps_under_load_move_no_limit_hold_session_or_deposit(jumping: Jumping) -> None:
    await jumping.serve()
    browser = await jumping.browser()
    topup = await browser.submit(await browser.get("/dashboard/topup"), "/dashboard/topup", amount="25", coin=COIN)
    assert "Waiting for your payment" in topup.words
    jumping.crowd.begin(2, pause_s=0.6, deposit_pause_s=1)
    _, key = await jumping.customer("listener", "all")
    began = time.monotonic()
    stream, knocking = asyncio.create_task(jumping.stream(STREAM_S, key)), asyncio.create_task(jumping.knock())
    for ahead_s in JUMPS:
        jumping.set_wall(ahead_s)
        await asyncio.sleep(BETWEEN_S)
        assert (await browser.get("/dashboard")).path == "/dashboard", "signed out by a jump of the clock"
        assert "Waiting for your payment" in (await browser.get(topup.path)).words
    async with asyncio.timeout(30):
        while jumping.seen["narrow: 429"] < 3:  # noqa: ASYNC110  the server's doing
            await asyncio.sleep(0.1)
    knocking.cancel()
    longest = await stream
    jumping.crowd.answers.append(longest)
    assert longest.finished
    assert longest.took_s > STREAM_S * 0.9
    let_in = PER_MINUTE + (time.monotonic() - began) * PER_MINUTE / 60 + 1
    assert PER_MINUTE <= len(jumping.admitted) <= let_in, (len(jumping.admitted), let_in)
    assert max(jumping.waits_s) <= 60
    jumping.set_wall(DAY_S)
    await browser.post(f"{topup.path}/simulate", {"pay": "all"})
    async with asyncio.timeout(30):
        while "$25.00 were added" not in (await browser.get(topup.path)).words:  # noqa: ASYNC110  the server's doing
            await asyncio.sleep(0.2)
    await jumping.crowd.end()
    await jumping.settled()
    await jumping.check_metrics()
    await jumping.server.stop()
    await jumping.check_money()
    await jumping.check_times()
    assert jumping.seen["answers had in full"] > 10


async def test_a_server_that_starts_by_a_wrong_clock_keeps_money_right_and_lets_nobody_wait_for_ever(
    tmp_path: Path, seed: int
) -> None:
    """SQLite's books know no other clock than the machine's. What a dead server held is free again, too."""
    jumping = Jumping(tmp_path, f"sqlite:///{tmp_path}/farebox.db", seed)
    await jumping.open()
    knocking = asyncio.create_task(jumping.knock())
    try:
        for ahead_s in (DAY_S, -HOUR_S):
            jumping.set_wall(ahead_s)
            jumping.waits_s.clear()
            await jumping.serve()
            _, key = await jumping.customer(f"listener{ahead_s}-{len(jumping.admitted)}", "all")
            streaming = asyncio.create_task(jumping.stream(30, key))
            async with asyncio.timeout(30):
                while len(jumping.waits_s) < 3:  # noqa: ASYNC110  the server's doing
                    await asyncio.sleep(0.05)
            assert max(jumping.waits_s) <= LONGEST_WAIT_S, ahead_s
            await jumping.held()
            await jumping.server.kill()
            jumping.seen["streams cut by a kill"] += not (await streaming).finished
        assert len(jumping.admitted) >= PER_MINUTE
        assert jumping.seen["streams cut by a kill"] == 2
        knocking.cancel()
        await jumping.serve()
        assert (await (await jumping.browser()).get("/")).status == 200
        assert await jumping.store.fetch("SELECT count(*) FROM hold") == [(0,)]
        await jumping.server.stop()
        await jumping.check_money()
    finally:
        knocking.cancel()
        await jumping.close()
