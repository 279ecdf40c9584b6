"""Three nodes over one PostgreSQL keep every promise about money, whichever of them dies or stands still."""

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.kill.nodes import FREE_S, nodes_under_load

NODE_KILLS = 16
DATABASE_KILLS = 5
PAUSES = 4
CUTS = 40
_PATIENCE_S = 10.0
"""How long a finished call waits for its settle to be written, before it is spooled."""
_BUSY_S = 8.0
"""What a call may take on a busy machine."""


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """A PostgreSQL of our own, since it is killed."""
    with Cluster() as started:
        yield started


@pytest.fixture
def seed() -> int:
    """Set FAREBOX_SEED to repeat the choices of a run; the note at a failure names it."""
    return int(os.environ.get("FAREBOX_SEED") or random.SystemRandom().getrandbits(32))


async def test_sixteen_kills_of_one_of_three_nodes_under_load(tmp_path: Path, server: Cluster, seed: int) -> None:
    """What a dead node held is given back by another, and nothing is lost, charged twice or invented."""
    async with nodes_under_load(tmp_path, server, seed) as nodes:
        await nodes.kill_nodes(NODE_KILLS)
        await nodes.end()
    print(f"seed {seed}: free after {nodes.free_after_s:.2f} s; {dict(nodes.seen)}")
    assert nodes.slowest_s() < _BUSY_S
    _has_seen(nodes.seen, seed, NODE_KILLS // 5, "killed with calls in flight", "answers had in full", "tombstones")
    _has_seen(nodes.seen, seed, 1, "log: run_lost", "log: holds_expired")


async def test_five_kills_of_postgresql_under_load(tmp_path: Path, server: Cluster, seed: int) -> None:
    """It recovers, and so do the nodes; what was answered meanwhile is booked, from the spool if need be."""
    async with nodes_under_load(tmp_path, server, seed) as nodes:
        await nodes.kill_database(DATABASE_KILLS - 2)
        await nodes.lose_answers()
        await nodes.outlast_patience()
        await nodes.end(strays=True)
    print(f"seed {seed}: slowest {nodes.slowest_s():.1f} s, 503 {nodes.slowest_s(503):.1f} s; {dict(nodes.seen)}")
    assert nodes.slowest_s(503) < _BUSY_S
    assert nodes.slowest_s() < _PATIENCE_S + _BUSY_S
    _has_seen(nodes.seen, seed, DATABASE_KILLS // 2, "killed with calls in flight", "answers with 503")
    _has_seen(nodes.seen, seed, 1, "settles spooled", "answers finished without a database", "exact, finished")
    _has_seen(nodes.seen, seed, 1, "log: database_awaited")
    lost = ("deposits that had been posted without an answer", "charges answered for after a recovery")
    assert any(nodes.seen[what] for what in lost), f"no answer of the database's was lost (seed {seed})"


async def test_nodes_that_stand_still_for_twice_their_lease(tmp_path: Path, server: Cluster, seed: int) -> None:
    """They are given up and come back: what they settle late is booked once, against the empty hold."""
    async with nodes_under_load(tmp_path, server, seed) as nodes:
        await nodes.pause_nodes(PAUSES)
        await nodes.end()
    print(f"seed {seed}: slowest {nodes.slowest_s():.1f} s; {dict(nodes.seen)}")
    assert nodes.slowest_s() < FREE_S + _BUSY_S
    _has_seen(nodes.seen, seed, PAUSES, "calls in flight when paused", "log: run_lost", "log: run_given_up")
    _has_seen(nodes.seen, seed, 1, "late, finished", "log: holds_expired")


async def test_connections_to_the_database_are_cut_at_random(tmp_path: Path, server: Cluster, seed: int) -> None:
    async with nodes_under_load(tmp_path, server, seed) as nodes:
        await nodes.cut_connections(CUTS)
        await nodes.end(strays=True)
    print(f"seed {seed}: slowest {nodes.slowest_s():.1f} s; {dict(nodes.seen)}")
    assert nodes.slowest_s() < _BUSY_S
    _has_seen(nodes.seen, seed, CUTS // 2, "connections cut", "answers had in full")


def _has_seen(seen: Counter[str], seed: int, least: int, *names: str) -> None:
    for name in names:
        assert seen[name] >= least, f"{name} was seen {seen[name]} times only (seed {seed})"
