"""Calls of the kernel that fail, fall short, take long or are the last one: the real `farebox serve` under strace.

Each case is one life of a server with one fault, under load; what it leaves is taken up by the next one, faults and
all. After some cases comes a server without any, and then the oracle (tests/kill/oracle.py).
"""

import asyncio
import json
import random
import resource
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farebox.config import load_config
from farebox.store.sqlite import SqliteStore, open_store
from farebox.upstreams.simulator import Simulator
from tests.kill.crowd import Crowd
from tests.kill.harness import Server
from tests.kill.oracle import check_books

CASES_EACH: Final = 8
"""Cases over the same books."""
_CUSTOMERS: Final = 5
_PAUSE_S: Final = 0.1
_DEPOSIT_PAUSE_S: Final = 0.3
_FIRES_S: Final = 2.5
_TOLD_S: Final = 5.0
_PATIENCE_S: Final = 30.0
_ENDS_S: Final = 25.0
"""A server that is told to end lets calls end for 10 s, settles wait for 10 s, and then leaves what is left."""
_WAYS: Final = {
    "EIO": "error=EIO",
    "ENOSPC": "error=ENOSPC",
    "killed": "signal=SIGKILL",
    "slow": "delay_enter=400000",
}
_SHORT: Final = "short"
_CALLS: Final = {"fdatasync": 40, "pwrite64": 60, "ftruncate": 1, "openat": 6}
"""Which calls, and about how many of them a thread of a server makes while it is watched."""
_OF_BOOKS_ONLY: Final = frozenset({"ftruncate", "openat"})
"""Calls that are counted only where they concern the books: Python makes a thousand others."""
_ENDS: Final = ("", "-wal", "-shm", "-journal", ".lock")


@dataclass(frozen=True)
class Fault:
    """What befalls a call of the kernel: the n-th of each thread, or every one from then on."""

    call: str
    way: str
    number: int
    lasting: bool

    def __str__(self) -> str:
        return f"{self.call} {self.way}, {'from the' if self.lasting else 'the'} {self.number}th"


def any_fault(choices: random.Random) -> Fault:
    """Choose a fault. Writes fall short where the file must not grow any further: `number` is then that size."""
    call = choices.choice(list(_CALLS))
    way = choices.choice([*_WAYS, _SHORT] if call == "pwrite64" else list(_WAYS))
    if way == _SHORT:
        return Fault(call, way, choices.randint(20_000, 900_000), lasting=choices.random() < 0.5)
    number = choices.randint(1, choices.choice((4, _CALLS[call])))
    return Fault(call, way, number, lasting=way in {"EIO", "ENOSPC"} and choices.random() < 0.4)


class Syscalls:
    """One run. `seen` counts what happened, so that a run that has gone soft can be told."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self._directory = directory
        self._simulator = Simulator(speed=0, api_key="literal", keep=2_000_000)
        self._store: SqliteStore
        self._server: Server
        self._crowd: Crowd

    async def run(self, faults: list[Fault], tell: Callable[[int], None] | None = None) -> None:
        """Let one fault after the other befall a server, then none, and check everything. A failure names the seed."""
        told = [str(fault) for fault in faults]
        try:
            await self._open()
            self._crowd.begin(_CUSTOMERS, pause_s=_PAUSE_S, deposit_pause_s=_DEPOSIT_PAUSE_S)
            for number, fault in enumerate(faults, 1):
                await self._suffer(fault)
                if tell:
                    tell(number)
            await self._recover()
        except BaseException as error:
            error.add_note(f"FAREBOX_SEED={self.seed}; {'; '.join(told)}; {self._server.last_words()}")
            raise
        finally:
            await self._close()

    async def _open(self) -> None:
        await self._simulator.listen()
        url = f"sqlite:///{self._directory}/farebox.db"
        self._server = Server(self._directory, "farebox", url, self._simulator.port)
        plans = load_config(self._server.config, {}).plans
        self._store = await open_store(self._directory / "farebox.db", plans=plans)
        self._crowd = Crowd(self._store, self.random, self.seen, lambda: self._server.port)
        await self._crowd.open_accounts()

    async def _suffer(self, fault: Fault) -> None:
        """Start a server that one fault befalls, let it serve, if it does, and end it in order or at once."""
        trace, log = self._directory / "trace", self._server.log
        said = log.stat().st_size if self.seen["cases"] else 0
        self.seen["cases"] += 1
        finished = self._finished()
        self._server.before = self._strace(fault, trace)
        await self._server.launch()
        fired = False
        if await self._comes_up():
            if fault.way == _SHORT:
                self._limit(fault.number)
            refused = self._refused()
            fired = await self._fires(fault, trace)
            await asyncio.sleep(self.random.uniform(0.1, 0.6))
            if self._refused() > refused:
                await self._is_told(fault, said)
            if fault.way == _SHORT and not fault.lasting:
                self._limit(resource.RLIM_INFINITY)
                await asyncio.sleep(0.3)
        fired = await self._end(fault) or fired or _shows(trace)
        self.seen[f"{fault.call} {fault.way}"] += fired
        self.seen["faults that came about"] += fired
        self.seen["cases in which answers were had in full"] += self._finished() > finished
        self._read_log(log.read_bytes()[said:])

    def _strace(self, fault: Fault, trace: Path) -> tuple[str, ...]:
        """Say how a server is started that suffers a fault: it is the child, and strace looks on."""
        trace.write_text("")
        if fault.way == _SHORT:
            return ()
        books = self._directory / "farebox.db"
        only = [word for end in _ENDS for word in ("-P", f"{books}{end}")] if fault.call in _OF_BOOKS_ONLY else []
        when = f"{fault.number}+" if fault.lasting else str(fault.number)
        inject = f"inject={fault.call}:{_WAYS[fault.way]}:when={when}"
        quick = () if fault.way == "killed" else ("--seccomp-bpf",)  # with it strace sends no signals
        options = ("-D", "-f", *quick, "-qq", "-o", str(trace), "-e", f"trace={fault.call}", "-e", inject)
        return ("strace", *options, *only)

    async def _comes_up(self) -> bool:
        """Wait until it takes connections; False when it ends instead."""
        assert self._server.process is not None
        async with asyncio.timeout(_PATIENCE_S):
            while not self._server.is_up:
                if self._server.process.returncode is not None:
                    return False
                await asyncio.sleep(0.02)
        return True

    async def _fires(self, fault: Fault, trace: Path) -> bool:
        """Wait until the fault comes about, or for so long that it hardly will."""
        assert self._server.process is not None
        refused = self._refused()
        until = asyncio.get_running_loop().time() + _FIRES_S
        while asyncio.get_running_loop().time() < until and self._server.process.returncode is None:
            if self._refused() > refused if fault.way == _SHORT else _shows(trace):
                return True
            await asyncio.sleep(0.02)
        return False

    async def _is_told(self, fault: Fault, said: int) -> None:
        """Wait until the log says why calls are refused, unless it ends first."""
        assert self._server.process is not None
        until = asyncio.get_running_loop().time() + _TOLD_S
        while self._server.process.returncode is None:
            if b'"event":"books_' in self._server.log.read_bytes()[said:]:
                return
            assert asyncio.get_running_loop().time() < until, f"{fault}: calls are refused, and the log is silent"
            await asyncio.sleep(0.02)

    def _limit(self, size: int) -> None:
        """Let no file of the server grow beyond a size: the write that would is cut short there, the next one fails."""
        process = self._server.process
        assert process is not None
        if process.returncode is None:
            _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, most))

    async def _end(self, fault: Fault) -> bool:
        """End it, and see that whatever ended it before has been told. Tells whether the fault has killed it."""
        process = self._server.process
        assert process is not None
        if process.returncode is not None:
            self.seen["ended by itself"] += fault.way != "killed"
        elif self.random.random() < 0.5:
            self._server.send(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), _ENDS_S)
            self.seen["ended in order"] += 1
        else:
            await self._server.kill()
            return False
        code = await process.wait()
        killed = code == -signal.SIGKILL and fault.way == "killed"
        assert killed or code in {0, 1}, f"{fault}: it ended with {code}"
        if code == 1:
            assert self._server.last_words().splitlines()[-1].startswith("farebox: "), fault
        return killed

    def _read_log(self, said: bytes) -> None:
        """See that what was said is what operators are told, and nothing that was never meant to be seen."""
        for line in said.decode().splitlines():
            assert not line.startswith("Traceback"), said.decode()
            if line.startswith("{"):
                self.seen[f"log: {json.loads(line)['event']}"] += 1

    async def _recover(self) -> None:
        """Start one that nothing befalls: it makes good what the others left."""
        self._server.before = ()
        await self._server.launch()
        await self._server.answers()
        left = await self._count("SELECT count(*) FROM hold WHERE run_id < (SELECT max(id) FROM run)")
        assert left == 0, f"{left} holds of a dead process after the doors opened"
        had = self._finished()
        async with asyncio.timeout(_PATIENCE_S):
            while self._finished() == had:  # noqa: ASYNC110  it is the customers' doing
                await asyncio.sleep(0.05)
        await self._crowd.end()
        async with asyncio.timeout(_PATIENCE_S):
            while await self._count("SELECT count(*) FROM hold"):  # noqa: ASYNC110  it is the server's doing
                await asyncio.sleep(0.05)
        await self._server.stop()
        await check_books(self._store, self._simulator, self._crowd.answers, self._crowd.deposited, self.seen)
        assert await self._count("SELECT count(*) FROM hold") == 0
        unexplained = Counter(answer.status for answer in self._crowd.answers if not answer.explained)
        assert not unexplained, f"errors outside of the envelope: {unexplained}"
        assert not self.seen["answers with 500"], "a fault of the disk was answered with 500"

    async def _close(self) -> None:
        self._crowd.stop()
        await self._server.close()
        await self._store.close()
        await self._simulator.close()

    def _finished(self) -> int:
        return sum(answer.finished for answer in self._crowd.answers)

    def _refused(self) -> int:
        return sum(answer.status == 503 for answer in self._crowd.answers)

    async def _count(self, sql: str) -> int:
        return int((await self._store.fetch(sql))[0][0])


def _shows(trace: Path) -> bool:
    """Tell whether strace has meddled with a call."""
    calls = trace.read_text()
    return "(INJECTED)" in calls or "(DELAYED)" in calls
