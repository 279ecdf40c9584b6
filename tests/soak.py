"""The long versions of the tests that throw dice, with their progress; `make soak` runs all of them.

Each is a row of legs. What a leg showed is kept in .soak/: ended in the middle and begun again, a run goes on with the
next leg; --afresh forgets what is there. A run's seed is told at its begin, and repeats its choices.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.books.driver import Driver
from tests.chains import fuzz_bitcoin, fuzz_evm
from tests.cluster import Cluster
from tests.databases import KINDS, Databases
from tests.disk.power import Power, SpoolPower
from tests.disk.syscalls import CASES_EACH, Syscalls, any_fault
from tests.hostile.crowd import crowd
from tests.kill.harness import Killing
from tests.kill.nodes import Nodes, nodes_under_load
from tests.legs import KEPT, Journey, Leg, Seen
from tests.races.contest import Contest
from tests.races.decisions import Decisions
from tests.races.node import node, rivals
from tests.simulation.life import MUST_SEE
from tests.simulation.lives import live
from tests.web.explore import explore
from tests.workers.gateways import serving
from tests.workers.rolling import roll

_ACCOUNTS: Final = 60
_LIVES: Final = 4
"""Of each process in a leg."""


def books(leg: Leg) -> Seen:
    """Drive the books against the model."""
    with _books(leg) as (url, _):
        driver = Driver(url, leg.seed)
        asyncio.run(driver.run(leg.size, leg.tell))
    return Seen(Counter({"operations": driver.operations}) + driver.model.seen)


def decisions(leg: Leg) -> Seen:
    """Compare PostgreSQL's decisions with the fold's."""
    with Cluster() as cluster, cluster.database() as url, _directory() as directory:
        deciding = Decisions(url, directory, leg.seed)
        asyncio.run(deciding.run(leg.size, leg.tell))
    return Seen(Counter({"decisions": deciding.made}) + deciding.seen)


def races(leg: Leg) -> Seen:
    """Let two processes race for the last cent."""

    async def race(url: str) -> Contest:
        async with node(url, 1) as here, rivals(url, 1) as others:
            contest = Contest(here.store, [here, *others], leg.seed)
            await contest.run(leg.size, _ACCOUNTS, leg.tell)
            return contest

    with Cluster() as cluster, cluster.database() as url:
        return Seen(Counter({"rounds": leg.size}) + asyncio.run(race(url)).seen)


def kill(leg: Leg) -> Seen:
    """Kill the server under load."""
    with _directory() as directory:
        killing = Killing(directory, leg.seed)
        asyncio.run(killing.run(leg.size, leg.tell))
        return Seen(Counter({"kills": leg.size}) + killing.seen, {"seconds until ready": max(killing.ready_s)})


def kill_nodes(leg: Leg) -> Seen:
    """Kill nodes under load, PostgreSQL in between, pause nodes and cut connections."""
    return _to_nodes(leg, "kills of nodes", lambda nodes: nodes.storm(leg.size, leg.tell))


def kill_database(leg: Leg) -> Seen:
    """Kill PostgreSQL under three nodes with load."""
    return _to_nodes(leg, "kills of PostgreSQL", lambda nodes: nodes.kill_database(leg.size, leg.tell))


def pauses(leg: Leg) -> Seen:
    """Stop nodes over PostgreSQL for more than twice their lease, and let them go on."""
    return _to_nodes(leg, "pauses", lambda nodes: nodes.pause_nodes(leg.size, leg.tell))


def _to_nodes(leg: Leg, what: str, befall: Callable[[Nodes], Awaitable[None]]) -> Seen:
    """Let something befall three nodes over PostgreSQL."""

    async def run() -> Seen:
        with Cluster() as cluster, _directory() as directory:
            async with nodes_under_load(directory, cluster, leg.seed) as nodes:
                await befall(nodes)
                await nodes.end(strays=True)
            most = {"seconds of a call": nodes.slowest_s(), "seconds until money is free": nodes.free_after_s}
            return Seen(Counter({what: leg.size}) + nodes.seen, most)

    return asyncio.run(run())


def power(leg: Leg) -> Seen:
    """Cut the power of recorded lives of SQLite books, or of a spool."""
    cutting = SpoolPower(leg.seed) if leg.kind == "spool" else Power(leg.seed)
    asyncio.run(cutting.run(leg.size, leg.tell))
    return Seen(Counter({"power cuts": leg.size, "recordings": cutting.recordings}) + cutting.seen)


def syscalls(leg: Leg) -> Seen:
    """Let calls of the kernel fail that a server makes."""
    seen = Counter[str]()
    for begin in range(0, leg.size, CASES_EACH):
        with _directory() as directory:
            trying = Syscalls(directory, leg.seed + begin)
            faults = [any_fault(trying.random) for _ in range(min(CASES_EACH, leg.size - begin))]
            asyncio.run(trying.run(faults, lambda number, begin=begin: leg.tell(begin + number)))  # type: ignore[misc]
        seen += trying.seen
    return Seen(seen)


def restarts(leg: Leg) -> Seen:
    """Replace the gateway under load."""

    async def rolling(url: str, directory: Path) -> Seen:
        async with serving(directory, url, workers=1 if leg.kind == "sqlite" else 2) as service:
            customers = await roll(service, streams=200, restarts=leg.size, stream_s=6, tell=leg.tell)
            if customers.failures:
                sys.exit("\n".join([f"{len(customers.failures)} failures, as these:", *customers.failures[:10]]))
            service.process.send_signal(signal.SIGTERM)
            assert await service.process.wait() == 0
        service.check_books(customers.seen["calls"] + customers.seen["streams"])
        return Seen(Counter({"restarts": leg.size}) + customers.seen, {"seconds of a call": customers.slowest_s})

    with _books(leg) as (url, directory):
        return asyncio.run(rolling(url, directory))


def api(leg: Leg) -> Seen:
    """Send whatever fits /openapi.json, and whatever does not."""
    with _directory() as directory:
        explored = asyncio.run(explore(directory, leg.size, leg.seed))
    if explored.code:
        sys.exit(explored.out)
    print(explored.out.strip().splitlines()[-1])
    return Seen(Counter({"examples of each operation": leg.size}))


def slow(leg: Leg) -> Seen:
    """Crowd a gateway with connections that want nothing, crawl, or do not read."""
    with _directory() as directory:
        url = f"sqlite:///{directory}/books.db"
        print(asyncio.run(crowd(directory, url, idle=9_500, crawlers=300, readers=20, seconds=leg.size)))
    return Seen(Counter({"seconds with each crowd": leg.size}))


def simulation(leg: Leg) -> Seen:
    """Live whole lives of a gateway on a virtual clock, in which everything goes wrong."""

    async def together() -> Counter[str]:
        processes = os.cpu_count() or 1
        each = leg.size / processes / _LIVES
        seeds = [leg.seed + at * _LIVES for at in range(processes)]
        lived = await asyncio.gather(*(live(seed, _LIVES, each) for seed in seeds))
        return sum((seen for _, seen in lived), Counter[str]())

    seen = asyncio.run(together())
    missing = [what for what in MUST_SEE if not seen[what]]
    if missing:
        sys.exit(f"these lives were too easy: never seen {missing} in {dict(seen)}")
    return Seen(Counter({"hours": leg.size}) + seen)


def evm(leg: Leg) -> Seen:
    """Pay on an EVM chain that undoes blocks."""
    return _lives(leg, fuzz_evm.live)


def bitcoin(leg: Leg) -> Seen:
    """Pay in Bitcoin, whose blocks are undone."""
    return _lives(leg, fuzz_bitcoin.live)


def _lives(leg: Leg, live: Callable[..., object]) -> Seen:
    """Live one random life of a chain after the other, until the time is over."""
    began, seen, lives = time.monotonic(), Counter[str](), 0
    with contextlib.ExitStack() as stack:
        databases = Databases(lambda: stack.enter_context(Cluster()))
        while (spent_s := time.monotonic() - began) < leg.size * 60:
            leg.tell(int(spent_s / 60))
            with _directory() as directory, databases.fresh(leg.kind, directory) as url:
                try:
                    seen += asyncio.run(live(url, directory, leg.seed + lives, 150))  # type: ignore[arg-type]
                except BaseException:
                    print(f"in the life with seed {leg.seed + lives}", file=sys.stderr, flush=True)
                    raise
            lives += 1
    return Seen(Counter({"lives": lives}) + seen)


class Soak(NamedTuple):
    """A long run: how long it is, and in which legs."""

    run: Callable[[Leg], Seen]
    noun: str
    total: int
    leg: int
    kinds: tuple[str, ...] = ("",)


_SOAKS: Final = {
    "books": Soak(books, "operations", 1_000_000, 100_000, KINDS),
    "decisions": Soak(decisions, "decisions", 1_000_000, 250_000),
    "races": Soak(races, "rounds", 200_000, 50_000),
    "kill": Soak(kill, "kills", 1_000, 200),
    "kill-nodes": Soak(kill_nodes, "kills", 1_000, 100),
    "pauses": Soak(pauses, "pauses", 100, 25),
    "kill-database": Soak(kill_database, "kills", 100, 25),
    "power": Soak(power, "cuts", 600, 150, ("", "spool")),
    "syscalls": Soak(syscalls, "cases", 200, 40),
    "simulation": Soak(simulation, "hours", 10_000, 200),
    "restarts": Soak(restarts, "restarts", 100, 50, KINDS),
    "api": Soak(api, "examples", 1_000, 1_000),
    "slow": Soak(slow, "seconds", 20, 20),
    "evm": Soak(evm, "minutes", 10, 5, KINDS),
    "bitcoin": Soak(bitcoin, "minutes", 10, 5, KINDS),
}


@contextlib.contextmanager
def _books(leg: Leg) -> Iterator[tuple[str, Path]]:
    """Make new books of the leg's kind; gives their URL, and a directory beside them."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(_directory())
        databases = Databases(lambda: stack.enter_context(Cluster()))
        yield stack.enter_context(databases.fresh(leg.kind, directory)), directory


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="farebox-soak-") as directory:
        yield Path(directory)


def _options() -> argparse.Namespace:
    told = "\n".join(
        f"  {name:<12}{soak.run.__doc__} {soak.total:,} {soak.noun}, {soak.leg:,} a leg"
        for name, soak in _SOAKS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=f"{__doc__}\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=(*_SOAKS, "all"), default="all")
    parser.add_argument(
        "--store", choices=(*KINDS, "both"), default="both", help="whose books, where there is a choice"
    )
    for noun in dict.fromkeys(soak.noun for soak in _SOAKS.values()):
        parser.add_argument(f"--{noun}", type=int, metavar="N", help="in place of what stands above")
    parser.add_argument("--seed", type=int, help="repeat a run's choices")
    parser.add_argument("--afresh", action="store_true", help="begin anew where a run was ended in the middle")
    return parser.parse_args()


def main() -> None:
    chosen = _options()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each write to a server that was killed
    for what in _SOAKS if chosen.what == "all" else (chosen.what,):
        soak = _SOAKS[what]
        for kind in soak.kinds:
            if chosen.store not in {"both", kind, ""} and kind:
                continue
            name = f"{what}-{kind}" if kind else what
            if chosen.afresh:
                (KEPT / f"{name}.json").unlink(missing_ok=True)
            journey = Journey(name, soak.noun, getattr(chosen, soak.noun) or soak.total, chosen.seed)
            print(f"{name}: ", end="", flush=True)
            print(journey.go_on(soak.leg, kind, soak.run), flush=True)


if __name__ == "__main__":
    main()
