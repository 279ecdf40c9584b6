"""The long versions of the tests that throw dice, with their progress; `make soak` runs both.

python -m tests.soak                              a million random operations on each database, then a thousand kills
python -m tests.soak books --operations 1000000 --store postgresql
python -m tests.soak kill --kills 1000
"""

import argparse
import asyncio
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.books.driver import Driver
from tests.cluster import Cluster
from tests.databases import KINDS, Databases
from tests.kill.harness import Killing


def books(kind: str, operations: int, seed: int) -> str:
    """Drive the books against the model."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farebox-soak-")))
        databases = Databases(lambda: stack.enter_context(Cluster()))
        driver = Driver(stack.enter_context(databases.fresh(kind, directory)), seed)
        asyncio.run(driver.run(operations, _progress("operations", operations)))
    return f"{kind}: {driver.operations:,} operations without a difference; {dict(driver.model.seen)}"


async def kill(kills: int, seed: int) -> str:
    """Kill the server under load."""
    with tempfile.TemporaryDirectory(prefix="farebox-soak-") as directory:
        killing = Killing(Path(directory), seed)
        await killing.run(kills, _progress("kills", kills))
        slowest = max(killing.ready_s)
        return f"{kills:,} kills, every promise kept; ready after {slowest:.2f} s at most; {dict(killing.seen)}"


def _progress(noun: str, total: int) -> Callable[[int], None]:
    began = told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= 5:
            told = now
            left = (now - began) / done * (total - done)
            print(f"  {done:,} of {total:,} {noun}, about {left:.0f} s left", file=sys.stderr, flush=True)

    return tell


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("books", "kill", "all"), default="all")
    parser.add_argument("--store", choices=(*KINDS, "both"), default="both")
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    chosen = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each write to a server that was killed
    print(f"seed {chosen.seed}", flush=True)
    if chosen.what != "kill":
        for kind in KINDS if chosen.store == "both" else (chosen.store,):
            print(books(kind, chosen.operations, chosen.seed), flush=True)
    if chosen.what != "books":
        print(asyncio.run(kill(chosen.kills, chosen.seed)), flush=True)


if __name__ == "__main__":
    main()
