"""The long versions of the tests that throw dice, with their progress; `make soak` runs all of them.

python -m tests.soak books --operations 1000000 --store postgresql      the books against the model
python -m tests.soak decisions --decisions 1000000                      PostgreSQL against the fold
python -m tests.soak races --rounds 200000                              two processes for the last cent
python -m tests.soak kill --kills 1000                                  one server over SQLite
python -m tests.soak kill-nodes --kills 1000                            three over PostgreSQL, which is killed as well
python -m tests.soak restarts --restarts 100                            a gateway replaced under load, over both
python -m tests.soak api --examples 2000                                the API as /openapi.json describes it
python -m tests.soak slow --seconds 20                                  thousands that idle, crawl and do not read
python -m tests.soak evm --minutes 10                                   payments on an EVM chain that undoes blocks
python -m tests.soak bitcoin --minutes 10                               payments in Bitcoin, whose blocks are undone
"""

import argparse
import asyncio
import contextlib
import logging
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.books.driver import Driver
from tests.chains import fuzz_bitcoin, fuzz_evm
from tests.cluster import Cluster
from tests.databases import KINDS, Databases
from tests.hostile.crowd import crowd
from tests.kill.harness import Killing
from tests.kill.nodes import nodes_under_load
from tests.races.contest import Contest
from tests.races.decisions import Decisions
from tests.races.node import node, rivals
from tests.web.explore import explore
from tests.workers.gateways import serving
from tests.workers.rolling import roll

_ALL: Final = ("books", "decisions", "races", "kill", "kill-nodes", "restarts", "api", "slow", "evm", "bitcoin")
_ACCOUNTS: Final = 60


def books(kind: str, operations: int, seed: int) -> str:
    """Drive the books against the model."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(_directory())
        databases = Databases(lambda: stack.enter_context(Cluster()))
        driver = Driver(stack.enter_context(databases.fresh(kind, directory)), seed)
        asyncio.run(driver.run(operations, _progress("operations", operations)))
    return f"{kind}: {driver.operations:,} operations without a difference; {dict(driver.model.seen)}"


async def kill(kills: int, seed: int) -> str:
    """Kill the server under load."""
    with _directory() as directory:
        killing = Killing(directory, seed)
        await killing.run(kills, _progress("kills", kills))
        slowest = max(killing.ready_s)
        return f"{kills:,} kills, every promise kept; ready after {slowest:.2f} s at most; {dict(killing.seen)}"


def decisions(count: int, seed: int) -> str:
    """Compare PostgreSQL's decisions with the fold's."""
    with Cluster() as cluster, cluster.database() as url, _directory() as directory:
        deciding = Decisions(url, directory, seed)
        asyncio.run(deciding.run(count, _progress("decisions", count)))
    return f"{deciding.made:,} decisions without a difference; {dict(deciding.seen)}"


def races(rounds: int, seed: int) -> str:
    """Let two processes race for the last cent."""

    async def race(url: str) -> Contest:
        async with node(url, 1) as here, rivals(url, 1) as others:
            contest = Contest(here.store, [here, *others], seed)
            await contest.run(rounds, _ACCOUNTS, _progress("rounds", rounds))
            return contest

    with Cluster() as cluster, cluster.database() as url:
        contest = asyncio.run(race(url))
    return f"{rounds:,} rounds, every answer explained; {dict(contest.seen)}"


async def kill_nodes(kills: int, seed: int) -> str:
    """Kill nodes under load, PostgreSQL in between, pause nodes and cut connections."""
    with Cluster() as cluster, _directory() as directory:
        async with nodes_under_load(directory, cluster, seed) as nodes:
            await nodes.storm(kills, _progress("kills", kills))
            await nodes.end(strays=True)
    slowest = f"slowest call {nodes.slowest_s():.1f} s, money free after {nodes.free_after_s:.1f} s at most"
    return f"{kills:,} kills of nodes, every promise kept; {slowest}; {dict(nodes.seen)}"


async def restarts(kind: str, count: int) -> str:
    """Replace the gateway under load."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(_directory())
        databases = Databases(lambda: stack.enter_context(Cluster()))
        url = stack.enter_context(databases.fresh(kind, directory))
        async with serving(directory, url, workers=1 if kind == "sqlite" else 2) as service:
            tell = _progress("restarts", count)
            customers = await roll(service, streams=200, restarts=count, stream_s=6, tell=tell)
            if customers.failures:
                sys.exit("\n".join([f"{len(customers.failures)} failures, as these:", *customers.failures[:10]]))
            service.process.send_signal(signal.SIGTERM)
            assert await service.process.wait() == 0
        service.check_books(customers.seen["calls"] + customers.seen["streams"])
    slowest = f"slowest call {customers.slowest_s:.2f} s"
    return f"{kind}: {count} restarts, nothing failed, cut or left unsettled; {slowest}; {dict(customers.seen)}"


async def api(examples: int, seed: int) -> str:
    """Send whatever fits /openapi.json, and whatever does not."""
    with _directory() as directory:
        explored = await explore(directory, examples, seed)
    if explored.code:
        sys.exit(explored.out)
    return explored.out.strip().splitlines()[-1]


async def slow(seconds: float) -> str:
    """Crowd a gateway with connections that want nothing, crawl, or do not read."""
    with _directory() as directory:
        url = f"sqlite:///{directory}/books.db"
        return await crowd(directory, url, idle=9_500, crawlers=300, readers=20, seconds=seconds)


def chain(what: str, kind: str, minutes: float, seed: int) -> str:
    """Live one random life of a chain after the other, until the time is over."""
    live = {"evm": fuzz_evm.live, "bitcoin": fuzz_bitcoin.live}[what]
    began, seen, lives = time.monotonic(), Counter[str](), 0
    tell = _progress("seconds", round(minutes * 60))
    with contextlib.ExitStack() as stack:
        databases = Databases(lambda: stack.enter_context(Cluster()))
        while (spent_s := time.monotonic() - began) < minutes * 60:
            tell(round(spent_s) + 1)
            with _directory() as directory, databases.fresh(kind, directory) as url:
                try:
                    seen += asyncio.run(live(url, directory, seed + lives, 150))
                except BaseException:
                    print(f"in the life with seed {seed + lives}", file=sys.stderr, flush=True)
                    raise
            lives += 1
    return f"{kind}: {lives} lives of {what}, credited is what each chain held; {dict(seen)}"


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="farebox-soak-") as directory:
        yield Path(directory)


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
    parser.add_argument("what", nargs="?", choices=(*_ALL, "all"), default="all")
    parser.add_argument("--store", choices=(*KINDS, "both"), default="both", help="whose books to drive")
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--examples", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=20, help="how long each crowd is measured")
    parser.add_argument("--minutes", type=float, default=10, help="how long chains live")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    chosen = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each write to a server that was killed
    print(f"seed {chosen.seed}", flush=True)
    for what in _ALL if chosen.what == "all" else (chosen.what,):
        if what == "books":
            for kind in KINDS if chosen.store == "both" else (chosen.store,):
                print(books(kind, chosen.operations, chosen.seed), flush=True)
        elif what == "kill":
            print(asyncio.run(kill(chosen.kills, chosen.seed)), flush=True)
        elif what == "kill-nodes":
            print(asyncio.run(kill_nodes(chosen.kills, chosen.seed)), flush=True)
        elif what == "restarts":
            for kind in KINDS if chosen.store == "both" else (chosen.store,):
                print(asyncio.run(restarts(kind, chosen.restarts)), flush=True)
        elif what == "api":
            print(asyncio.run(api(chosen.examples, chosen.seed)), flush=True)
        elif what == "slow":
            print(asyncio.run(slow(chosen.seconds)), flush=True)
        elif what in {"evm", "bitcoin"}:
            for kind in KINDS if chosen.store == "both" else (chosen.store,):
                print(chain(what, kind, chosen.minutes / (2 if chosen.store == "both" else 1), chosen.seed), flush=True)
        elif what == "decisions":
            print(decisions(chosen.decisions, chosen.seed), flush=True)
        else:
            print(races(chosen.rounds, chosen.seed), flush=True)


if __name__ == "__main__":
    main()
