"""kill -9 in the middle of credits and their returns: at the end each payment is in the books once, or not at all."""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter

from farebox.books.audit import audit
from tests.kill.payer import PAYMENTS, sighting, units_of
from tests.payments.desk import Desk, open_desk

KILLS = 20


async def test_twenty_kills_credit_nothing_twice_and_lose_nothing(database_url: str) -> None:
    """Set FAREBOX_SEED to repeat the choices of a run; the note at a failure names it."""
    seed = os.environ.get("FAREBOX_SEED") or str(random.SystemRandom().getrandbits(32))
    choose = random.Random(seed)
    async with open_desk(database_url) as desk:
        desk.now_us = time.time_ns() // 1000
        topups = [await desk.ask(100, account=account) for account in (desk.alice, desk.bob)]
        topups.sort(key=lambda one: one.id)
        seen: Counter[str] = Counter()
        payer = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.kill.payer", database_url),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            for number in range(KILLS):
                await kill_one(payer, f"{seed}:{number}", choose.uniform(0.04, 0.16))
                seen.update(one.state for one in await desk.payments())
        finally:
            payer.kill()
            await payer.wait()
        desk.now_us = time.time_ns() // 1000
        there = {number for number in range(PAYMENTS) if choose.random() < 0.6}
        await desk.tell(*(sighting(desk, topups, number, 9 if number in there else -1) for number in range(PAYMENTS)))
        await desk.tend()  # one that was to be credited first goes in a second round
        print(f"seed {seed}: after kills {dict(seen)}")
        await check(desk, there, f"FAREBOX_SEED={seed}")
        assert seen["crediting"] + seen["reversing"] > 0, f"none was killed in the middle: FAREBOX_SEED={seed}"


async def kill_one(payer: asyncio.subprocess.Process, seed: str, after_s: float) -> None:
    assert payer.stdin is not None
    assert payer.stdout is not None
    async with asyncio.timeout(30):
        payer.stdin.write(f"{seed}\n".encode())
        child = int(await payer.stdout.readline())
        await asyncio.sleep(after_s)  # the moment of death is what is tried
        os.kill(child, signal.SIGKILL)
        assert await payer.stdout.readline() == b"gone\n"


async def check(desk: Desk, there: set[int], seed: str) -> None:
    """What is on the chain is in the balances, each entry has been told of once, and every proof holds."""
    states = {one.ident: one.state for one in await desk.payments()}
    assert states == {f"p{number}": "credited" if number in there else "gone" for number in range(PAYMENTS)}, seed
    owed = sum(units_of(number) for number in there) * 10**6
    assert await desk.balance() + await desk.balance(desk.bob) == owed, seed
    kinds = Counter(name.partition(":")[0] for name in await desk.entries())
    mails = Counter(await desk.mails())
    assert kinds["loss"] == 0
    assert mails["Your balance at Farebox was topped up"] == kinds["deposit"] == await desk.hooks(), seed
    assert mails["A payment to your balance at Farebox was undone"] == kinds["reversal"], seed
    assert not [one for one in await audit(desk.store) if not one.ok], seed
