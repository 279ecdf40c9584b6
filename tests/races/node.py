"""One of several nodes over the same books: it plays what it is given, all at once, and says what it was answered.

Run as a program it is a process of its own, which reads tasks from standard input and writes what came of them, a line
each, until the input ends. Moments are the machine's monotonic clock's, so those of all processes compare.
"""

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Final, Protocol, Self

import msgspec

from farebox.billing.ledger import (
    Admission,
    Admit,
    Answer,
    Command,
    Expire,
    Expired,
    Posted,
    Resize,
    Resized,
    Settle,
    Settled,
)
from farebox.billing.plans import Plan, Plans
from farebox.books.ledger import Ledger
from farebox.store.open import open_store
from farebox.store.protocol import Store

PLANS: Final = Plans([Plan("open", 10**9, 10**12, 10**6), Plan("ten", 10, 10**12, 10**6)])
_LINE_BYTES: Final = 2**24


class Strand(msgspec.Struct, frozen=True):
    """Commands given one after the other; the first call that is not let in ends it."""

    delay_s: float
    commands: list[Command]


class Event(msgspec.Struct, frozen=True):
    """A command and what it was answered, between two moments. `amount` is what was held, charged, granted or given
    back; `free` is what was free before it, where the answer says so."""

    command: Command
    said: str
    amount: int
    free: int | None
    began_ns: int
    ended_ns: int


class Task(msgspec.Struct, frozen=True):
    number: int
    strands: list[Strand]


class Done(msgspec.Struct, frozen=True):
    number: int
    events: list[Event]


class Player(Protocol):
    async def play(self, strands: list[Strand]) -> list[Event]:
        """Play strands, all at once."""
        ...


class Node:
    """A node inside this process: a store of its own, and a ledger as a gateway has it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ledger = Ledger(store)

    async def play(self, strands: list[Strand]) -> list[Event]:
        played = await asyncio.gather(*map(self._strand, strands))
        return list(itertools.chain.from_iterable(played))

    async def _strand(self, strand: Strand) -> list[Event]:
        events: list[Event] = []
        if strand.delay_s:
            await asyncio.sleep(strand.delay_s)
        for command in strand.commands:
            began_ns = time.monotonic_ns()
            said, amount, free = _said(await self._give(command))
            events.append(Event(command, said, amount, free, began_ns, time.monotonic_ns()))
            if isinstance(command, Admit) and said != "admitted":
                break
        return events

    def _give(self, command: Command) -> Awaitable[Answer]:
        ledger = self.ledger
        match command:
            case Admit():
                return ledger.admit(command)
            case Settle():
                return ledger.settle(command)
            case Resize():
                return ledger.resize(command)
            case Expire():
                return ledger.expire(command)
        return ledger.post(command)


class Rival:
    """A node in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[list[Event]]] = {}
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, url: str, run_id: int) -> Self:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, url, str(run_id)),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
        )
        return cls(process)

    async def play(self, strands: list[Strand]) -> list[Event]:
        assert self._process.stdin is not None
        task = Task(next(self._numbers), strands)
        waiting: asyncio.Future[list[Event]] = asyncio.get_running_loop().create_future()
        self._waiting[task.number] = waiting
        self._process.stdin.write(msgspec.json.encode(task) + b"\n")
        return await waiting

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._reader
        assert await self._process.wait() == 0

    async def _read(self) -> None:
        assert self._process.stdout is not None
        done = msgspec.json.Decoder(Done)
        while line := await self._process.stdout.readline():
            what = done.decode(line)
            waiting = self._waiting.pop(what.number)
            if not waiting.cancelled():
                waiting.set_result(what.events)
        for waiting in self._waiting.values():
            if not waiting.cancelled():
                waiting.set_exception(AssertionError("the other process is gone"))


@contextlib.asynccontextmanager
async def node(url: str, run_id: int) -> AsyncIterator[Node]:
    """Open a node in this process."""
    store = await open_store(url, plans=PLANS, serving=True)
    try:
        store.run_id = run_id
        yield Node(store)
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def rivals(url: str, count: int) -> AsyncIterator[list[Rival]]:
    """Start nodes in processes of their own, and wait until each has its connections."""
    started = [await Rival.start(url, 100 + number) for number in range(count)]
    try:
        await asyncio.gather(*(rival.play([]) for rival in started))
        yield started
    finally:
        await asyncio.gather(*(rival.end() for rival in started))


def _said(answer: Answer) -> tuple[str, int, int | None]:
    match answer:
        case Admission():
            return answer.verdict.value, answer.held_nanos, answer.free_nanos
        case Settled():
            return "settled" if answer.now else "settled before", answer.charged_nanos, None
        case Resized():
            return "gone" if answer.gone else "resized", answer.amount_nanos, None
        case Expired():
            return "expired" if answer.now else "not held", answer.released_nanos, None
        case Posted():
            return "refused" if answer.refused else "posted" if answer.now else "posted before", 0, None


async def _serve(url: str, run_id: int) -> None:
    """Play the tasks on standard input, each as soon as it is there."""
    tasks = asyncio.StreamReader(limit=_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(tasks), sys.stdin)
    decoder = msgspec.json.Decoder(Task)

    async def play(task: Task) -> None:
        done = Done(task.number, await here.play(task.strands))
        sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")
        sys.stdout.buffer.flush()

    async with node(url, run_id) as here, asyncio.TaskGroup() as playing:
        while line := await tasks.readline():
            playing.create_task(play(decoder.decode(line)))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
