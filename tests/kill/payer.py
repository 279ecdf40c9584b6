"""A process that credits payments and takes them back, made to be killed: `python -m tests.kill.payer URL`.

For each line it reads, a number, it forks one that does so until somebody kills it, and writes its process id. What is
forked has everything imported, so that it is killed at its work and not while it starts.
"""

import asyncio
import os
import random
import sys
import time
from typing import Final

from farebox.payments.rails import Sighting
from farebox.payments.records import Topup, select_topups
from farebox.store.open import open_store
from tests.payments.desk import PLANS, Desk

PAYMENTS: Final = 40
_LIVES_S: Final = 20


def units_of(number: int) -> int:
    """Say how much a payment is of; each pair of accounts has other sums."""
    return 10_000 + 7 * number


def sighting(desk: Desk, topups: list[Topup], number: int, confirmations: int) -> Sighting:
    """See one of the payments."""
    return desk.sees(topups[number % len(topups)], units_of(number), confirmations, f"p{number}")


async def work(url: str, seed: str) -> None:
    """Tell of payments that come and go at random."""
    choose, ends = random.Random(seed), time.monotonic() + _LIVES_S
    store = await open_store(url, plans=PLANS)
    desk = Desk(url, store)
    topups = await select_topups(store, "ORDER BY id", ())
    while time.monotonic() < ends:
        desk.now_us = time.time_ns() // 1000
        some = choose.sample(range(PAYMENTS), 3)
        await desk.tell(*(sighting(desk, topups, number, choose.choice((-1, 0, 9, 9))) for number in some))


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(work(sys.argv[1], line.strip()))
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    main()
