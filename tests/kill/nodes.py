"""Three `farebox serve` over one PostgreSQL, under load: killed, paused, cut off from their database, or it is killed.

Their lease is the shortest there is. `end` lets the customers finish and then asks the oracle (oracle.py).
"""

import asyncio
import contextlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from farebox.books.audit import audit
from farebox.config import load_config
from farebox.store.open import open_store
from farebox.store.protocol import Store
from farebox.upstreams.simulator import Simulator
from tests.cluster import Cluster
from tests.kill.crowd import Crowd
from tests.kill.harness import Server
from tests.kill.oracle import check_books

LEASE_S: Final = 0.5
FREE_S: Final = 10.0
"""When a dead node's money is free again, at the latest. Lease, grace, a new leader and beats make two seconds; a busy
machine needs time to start nodes."""
_NODES: Final = 3
_CUSTOMERS: Final = 14
_PAUSE_S: Final = 0.04
"""How long a customer waits between two calls, at most: some of the machine must be left for starting nodes."""
_DEPOSITORS: Final = 3
_KILLS_UNTIL_PEACE: Final = 10
_CALLS_TO_SPOOL: Final = 8
_MOST_OUTAGES: Final = 5
_TOLD_S: Final = 2.0
"""How long an answer takes at most to its customer once its settle is spooled."""
_OTHERWISE: Final = 0.25
_PATIENCE_S: Final = 20.0
"""How long we wait for what must come about: a settle is spooled after ten seconds, for one."""
_NEVER_LOGGED: Final = frozenset({
    "settlement_refused", "settlement_not_durable", "settled_too_late", "charge_refunded", "exchange_failed",
    "spool_full", "spool_not_durable", "spool_line_unreadable", "spool_file_unreadable",
})  # fmt: skip
Progress = Callable[[int], None]


@contextlib.asynccontextmanager
async def nodes_under_load(directory: Path, cluster: Cluster, seed: int) -> AsyncIterator["Nodes"]:
    """Start nodes over a fresh database and let customers at them. A failure names the seed."""
    with cluster.database() as url:
        nodes = Nodes(directory, cluster, url, seed)
        try:
            await nodes.begin()
            yield nodes
        except AssertionError as error:
            error.add_note(f"FAREBOX_SEED={seed}")
            raise
        finally:
            await nodes.close()


class Nodes:
    """One run. `seen` counts what happened, so that a run that has gone soft can be told."""

    def __init__(self, directory: Path, cluster: Cluster, url: str, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.simulator = Simulator(speed=0, api_key="literal", keep=2_000_000)
        self.servers: list[Server] = []
        self.free_after_s = 0.0
        """How long it took at most until no money was held for the dead."""
        self.store: Store
        self.crowd: Crowd
        self._directory = directory
        self._url = url
        self._away: Server | None = None
        self._outages: list[tuple[int, int]] = []

    async def begin(self) -> None:
        await self.simulator.listen()
        for number in range(_NODES):
            database = f'lease_s = {LEASE_S}\nspool = "{self._spool(number)}"'
            self.servers.append(Server(self._directory, f"node{number}", self._url, self.simulator.port, database))
        self.store = await open_store(self._url, plans=load_config(self.servers[0].config, {}).plans)
        self.crowd = Crowd(self.store, self.random, self.seen, self._door)
        await self.crowd.open_accounts()
        await asyncio.gather(*(server.launch() for server in self.servers))
        await asyncio.gather(*(server.answers() for server in self.servers))
        self.crowd.begin(_CUSTOMERS, pause_s=_PAUSE_S, depositors=_DEPOSITORS, deposit_pause_s=0.01)

    async def kill_nodes(self, kills: int, on_progress: Progress | None = None) -> None:
        """Kill one after the other of those that serve, and start each again at once."""
        for number in range(1, kills + 1):
            server = await self._any_server()
            await asyncio.sleep(self.random.uniform(0.05, 0.4))
            self._note_kill(self.crowd.calling[server.port])
            await server.kill()
            await server.launch()
            if number % _KILLS_UNTIL_PEACE == 0:
                await self._recover()
            if on_progress:
                on_progress(number)

    async def kill_database(self, kills: int, on_progress: Progress | None = None) -> None:
        """Kill PostgreSQL with all its processes, again and again, and let it recover; serving goes on each time."""
        for number in range(1, kills + 1):
            await asyncio.sleep(self.random.uniform(0.3, 1.0))
            self._note_kill(self.crowd.calling.total())
            async with self._without_database():
                await asyncio.sleep(self.random.uniform(0, 0.5))
            if on_progress:
                on_progress(number)

    async def lose_answers(self) -> None:
        """Kill the database while all commits wait for a standby that is not there: written down, but not answered.

        Whose commits those are depends on who was calling: again, at most so many times, until a deposit is one.
        """
        lost = "deposits that had been posted without an answer"
        before = self.seen[lost]
        for _ in range(_MOST_OUTAGES):
            await self._lose_answers()
            if self.seen[lost] > before:
                return

    async def _lose_answers(self) -> None:
        await asyncio.to_thread(self.cluster.configure, synchronous_standby_names="nobody")
        until = time.monotonic() + _PATIENCE_S
        while await asyncio.to_thread(self._waiting_commits) < len(self.servers):
            assert time.monotonic() < until, "the nodes' commits do not wait for the standby"
        async with self._without_database(synchronous_standby_names=None):
            self.seen["kills that lost answers"] += 1
        had = len(self.crowd.deposited)
        await self._until(lambda: len(self.crowd.deposited) > had, "no deposit is posted")

    def _waiting_commits(self) -> int:
        """Count the commits that are written down and not answered."""
        waiting = self.cluster.fetch("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        return int(waiting[0][0])

    async def outlast_patience(self) -> None:
        """Keep the database away until settles are spooled; kill a node that has some, and start it too early.

        Who is told of the end of an answer while it is away depends on who was calling: it goes away again until
        somebody is, at most so many times.
        """
        before = self.seen["answers finished without a database"]
        for _ in range(_MOST_OUTAGES):
            await self._outlast_patience()
            if self.seen["answers finished without a database"] > before:
                return

    async def _outlast_patience(self) -> None:
        await self._until(lambda: self.crowd.calling.total() >= _CALLS_TO_SPOOL, "no calls come in")
        async with self._without_database():
            had = self._finished()
            await self._until(
                lambda: bool(self._most_spooled()[0]), "no settle is spooled, though the database is away"
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TOLD_S):
                    while self._finished() == had:  # noqa: ASYNC110  it is the customers' doing
                        await asyncio.sleep(0.05)
            count, number = self._most_spooled()
            self.seen["settles spooled"] += count
            await self.servers[number].kill()
            self.seen["answers finished without a database"] += self._finished() - had
            await self.servers[number].launch()
            await asyncio.sleep(0.5)
        await self.servers[number].answers()

    async def pause_nodes(self, times: int, on_progress: Progress | None = None) -> None:
        """Stop a node in the middle of its calls for more than twice its lease, and let it go on."""
        for number in range(1, times + 1):
            await self._pause(await self._any_server())
            if on_progress:
                on_progress(number)

    async def cut_connections(self, cuts: int) -> None:
        """End connections to the database at random, those of whoever tops up as well."""
        cut = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'farebox' "
            "ORDER BY (state = 'active') DESC, random() LIMIT 1"
        )
        for _ in range(cuts):
            done = await asyncio.to_thread(self.cluster.fetch, cut)
            self.seen["connections cut"] += len(done)
            await asyncio.sleep(self.random.uniform(0.01, 0.15))

    async def storm(self, kills: int, on_progress: Progress) -> None:
        """Kill nodes so often, and let everything else befall them in between."""
        others: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: self.kill_database(1),
            lambda: self.kill_database(1),
            self.lose_answers,
            self.outlast_patience,
            lambda: self.pause_nodes(1),
            lambda: self.pause_nodes(1),
            lambda: self.cut_connections(10),
        )
        for number in range(1, kills + 1):
            await self.kill_nodes(1)
            if number % _KILLS_UNTIL_PEACE == 0:
                await self._recover()
            if self.random.random() < _OTHERWISE:
                await asyncio.gather(*(server.answers() for server in self.servers))
                await self.random.choice(others)()
            on_progress(number)

    async def end(self, *, strays: bool = False) -> None:
        """Let the customers finish, wait until all money is free, and check everything.

        Holds whose admission was never answered may be in the name of a node that lives (`strays`): then all nodes
        are started anew, one after the other, as for an upgrade.
        """
        await asyncio.gather(*(server.answers() for server in self.servers))
        await self.crowd.end()
        for server in self.servers if strays else ():
            await server.stop()
            await server.launch()
            await server.answers()
        await self._all_free("SELECT count(*) FROM hold WHERE expired_at IS NULL")
        await self._until(lambda: not self._most_spooled()[0], "what was spooled is not delivered")
        broken = [check for check in await audit(self.store) if not check.ok]
        assert not broken, broken
        await asyncio.gather(*(server.stop() for server in self.servers))
        await check_books(self.store, self.simulator, self.crowd.answers, self.crowd.deposited, self.seen)
        await self._count_redelivered()
        self._read_logs()

    async def close(self) -> None:
        if hasattr(self, "crowd"):
            self.crowd.stop()
        for server in self.servers:
            await server.close()
        if hasattr(self, "store"):
            await self.store.close()
        await self.simulator.close()

    def slowest_s(self, status: int | None = None) -> float:
        """How long the longest call took, of those that ended with a status, if one is given."""
        answers = self.crowd.answers
        return max((one.took_s for one in answers if status in {None, one.status}), default=0.0)

    def _door(self) -> int:
        """Choose a node as a load balancer would that leaves out those that do not answer."""
        return self.random.choice([server for server in self.servers if server is not self._away]).port

    def _note_kill(self, calls: int) -> None:
        self.seen["killed with calls in flight"] += calls > 0
        self.seen["calls in flight when killed"] += calls

    async def _pause(self, server: Server) -> None:
        given_up = "SELECT count(*) FROM run WHERE reaped_at IS NOT NULL"
        await self._until(lambda: self.crowd.calling[server.port] > 1, "no call comes in")
        before = await self._count(given_up)
        self._away = server
        server.send(signal.SIGSTOP)
        self.seen["calls in flight when paused"] += self.crowd.calling[server.port]
        began = time.monotonic()
        await asyncio.sleep(2.2 * LEASE_S)
        while await self._count(given_up) == before:
            assert time.monotonic() - began < FREE_S, "a paused node is not given up"
            await asyncio.sleep(0.05)
        server.send(signal.SIGCONT)
        self._away = None
        await asyncio.sleep(self.random.uniform(0.3, 0.6))

    @contextlib.asynccontextmanager
    async def _without_database(self, **settings: str | None) -> AsyncIterator[None]:
        """Kill the database; start it afterwards, change settings, and wait until calls are served again."""
        await asyncio.to_thread(self.cluster.kill)
        gone_us = time.time_ns() // 1000
        try:
            yield
        finally:
            self._outages.append((gone_us, time.time_ns() // 1000))
            await asyncio.to_thread(self.cluster.start)
        if settings:
            await asyncio.to_thread(self.cluster.configure, **settings)
        finished = self._finished()
        await self._until(lambda: self._finished() > finished, "no answer is finished after the database is back")

    async def _recover(self) -> None:
        """See that what dead nodes held is given back while others serve."""
        await asyncio.sleep(LEASE_S)
        dead = "SELECT id FROM run WHERE stopped_at IS NULL AND lease_until < now_us()"
        await self._all_free(f"SELECT count(*) FROM hold WHERE expired_at IS NULL AND run_id IN ({dead})")

    async def _all_free(self, count_held: str) -> None:
        began = time.monotonic()
        while await self._count(count_held):
            assert time.monotonic() - began < FREE_S, "money of the dead is held still"
            await asyncio.sleep(0.05)
        self.free_after_s = max(self.free_after_s, time.monotonic() - began)

    async def _any_server(self) -> Server:
        """Choose one of those that serve."""
        await self._until(lambda: any(server.is_up for server in self.servers), "no node comes up")
        return self.random.choice([server for server in self.servers if server.is_up])

    async def _count_redelivered(self) -> None:
        """Count answers that were charged before the database was killed and ended after it was back: the charge's
        own answer had been lost, and asking again did not charge again."""
        booked = dict(map(tuple, await self.store.fetch("SELECT message_id, at FROM usage")))
        for answer in self.crowd.answers:
            at_us = booked.get(answer.message_id, 0) if answer.finished else 0
            self.seen["charges answered for after a recovery"] += any(
                at_us <= gone_us and answer.ended_at_us > back_us for gone_us, back_us in self._outages if at_us
            )

    def _most_spooled(self) -> tuple[int, int]:
        """Give the most settles that a node has in its spool, and which node that is."""
        return max((self._spooled(number), number) for number in range(_NODES))

    async def _until(self, check: Callable[[], bool], otherwise: str) -> None:
        until = time.monotonic() + _PATIENCE_S
        while not check():
            assert time.monotonic() < until, otherwise
            await asyncio.sleep(0.005)

    def _finished(self) -> int:
        return sum(answer.finished for answer in self.crowd.answers)

    def _spool(self, number: int) -> Path:
        return self._directory / f"spool{number}"

    def _spooled(self, number: int) -> int:
        """Count the settles that wait on disk for the database, in files of living processes and of dead ones."""
        lines = 0
        for path in self._spool(number).glob("*.spool"):
            with contextlib.suppress(FileNotFoundError):  # delivered this very moment
                lines += path.read_bytes().count(b"\n")
        return lines

    async def _count(self, sql: str) -> int:
        return int((await self.store.fetch(sql))[0][0])

    def _read_logs(self) -> None:
        """Count what the nodes told their operator, and see that it was nothing that speaks of lost money."""
        for server in self.servers:
            for line in server.log.read_text().splitlines():
                event = json.loads(line)["event"]
                self.seen[f"log: {event}"] += 1
                assert event not in _NEVER_LOGGED, line
