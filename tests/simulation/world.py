"""A world on one seed: an event loop whose clock jumps to the next thing that happens, chance that can be repeated, and
nodes that die between any two steps.

Time passes only when nobody has anything to do, so an idle hour takes no time at all. What code of the product asks the
system for (the time, entropy, threads) is answered from here while `World.rules` is entered.
"""

import asyncio
import contextvars
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final, TypeVar
from unittest import mock

T = TypeVar("T")

_EPOCH_NS: Final = 1_795_000_000 * 10**9
"""When the world begins: in November 2026."""
_PID: Final = 4_000
_LATE_S: Final = 10.0


class Deadlock(AssertionError):
    """Nothing is due, ever, and somebody still waits."""


class Node:
    """A process: its tasks, and what dies with it. The world itself, with its customers, is one that lives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.tasks: list[asyncio.Task[Any]] = []
        """Kept, also when it is dead: a coroutine that is let go of would run its `finally`."""
        self.on_death: list[Callable[[], None]] = []

    def die(self) -> None:
        """Stop in the middle of whatever it does, as after kill -9."""
        self.dead = True
        for release in reversed(self.on_death):
            release()
        self.on_death.clear()

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Begin a task of this node; what it calls, and who answers it, are of this node too."""
        context = contextvars.copy_context()
        context.run(_NODE.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)


_NODE: contextvars.ContextVar[Node] = contextvars.ContextVar("node")


def here() -> Node:
    """Give the node whose code runs."""
    return _NODE.get()


class _Handle(asyncio.Handle):
    """A step. One of a dead node is not taken."""

    __slots__ = ()

    def _run(self) -> None:
        if not self._context.get(_NODE).dead:  # type: ignore[attr-defined]
            super()._run()


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        if not self._context.get(_NODE).dead:  # type: ignore[attr-defined]
            super()._run()


class _Selector:
    """In the place of epoll: waits for nothing, and passes the time."""

    def __init__(self, world: "World") -> None:
        self.now_s = 1_000.0
        self._world = world

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock("nothing is due any more, and somebody still waits")
        if timeout > 0 and self._world.is_idle():
            timeout = max(timeout, min(_LATE_S, self._world.next_of_root_s() - self.now_s))
        self.now_s += timeout
        return []

    def close(self) -> None: ...


class World(asyncio.BaseEventLoop):
    """The loop, with the chance and the trace of one life."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.random = random.Random(seed)
        self._entropy = random.Random(seed ^ 0x5EED)
        self._trace = blake2b(digest_size=16)
        self.steps = 0
        self.wall_offset_ns = 0
        """How far the wall clock has been set: changed by whoever sets it."""
        self._selector = _Selector(self)
        self.is_idle: Callable[[], bool] = lambda: False
        """Whether nobody wants anything. Then timers of nodes may be up to 10 s late: hours of ticks cost too much."""
        self.root = Node("world")
        self._context = contextvars.copy_context()
        self._context.run(_NODE.set, self.root)
        self.set_task_factory(self._make_task)
        self.pid = _PID

    # asyncio's side

    def time(self) -> float:
        return self._selector.now_s

    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        made = super().call_at(when, callback, *args, context=context)
        made.__class__ = _TimerHandle
        return made

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, context: Any = None) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
        node = (context or contextvars.copy_context()).get(_NODE)
        if node is not None:
            node.tasks.append(task)
            if len(node.tasks) > 2_000 and not node.dead:
                node.tasks = [one for one in node.tasks if not one.done()]
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> "asyncio.Future[T]":  # type: ignore[override]  # noqa: ARG002
        return self.elsewhere(lambda: func(*args), self.random.uniform(0.000_05, 0.002))

    # the world's side

    def next_of_root_s(self) -> float:
        """Give when the world itself, or one of its customers, does something next."""
        return min(
            (
                timer.when()
                for timer in self._scheduled  # type: ignore[attr-defined]
                if timer._context.get(_NODE) is self.root and not timer.cancelled()
            ),
            default=self._selector.now_s,
        )

    def elsewhere(self, work: Callable[[], T], seconds: float) -> "asyncio.Future[T]":
        """Do what a thread would do, at the begin or at the end of so many seconds, and answer after them.

        A node that dies meanwhile has done it, or has not; nobody was told in either case.
        """
        answer: asyncio.Future[T] = self.create_future()
        node = here()
        done: list[tuple[T | None, BaseException | None]] = []

        def do() -> None:
            try:
                done.append((work(), None))
            except Exception as error:  # noqa: BLE001  whatever it is, it is the waiting one's
                done.append((None, error))

        def tell() -> None:
            if not done:
                do()
            result, error = done[0]
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        if self.random.random() < 0.5:
            do()
        if not node.dead:
            self.call_later(seconds, tell)
        return answer

    def note(self, what: str, data: bytes = b"") -> None:
        """Put a step on the trace: two lives of one seed have the same."""
        self.steps += 1
        self._trace.update(f"{self._selector.now_s:.9f} {what} ".encode() + data)

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    def wall_ns(self) -> int:
        return _EPOCH_NS + self.wall_offset_ns + self._monotonic_ns()

    def _wall_s(self) -> float:
        return self.wall_ns() / 10**9

    def _getpid(self) -> int:
        return self.pid

    def _monotonic_ns(self) -> int:
        return int(self._selector.now_s * 10**9)

    def _urandom(self, size: int) -> bytes:
        return self._entropy.randbytes(size)

    @contextmanager
    def rules(self) -> Iterator[None]:
        """Answer for the system: time, entropy, process ids."""
        kept = random.getstate()
        random.seed(self.seed)
        patches: list[Any] = [
            mock.patch.object(time, "time", self._wall_s),
            mock.patch.object(time, "time_ns", self.wall_ns),
            mock.patch.object(time, "monotonic", self.time),
            mock.patch.object(time, "monotonic_ns", self._monotonic_ns),
            mock.patch.object(time, "perf_counter", self.time),
            mock.patch.object(os, "urandom", self._urandom),
            mock.patch.object(random, "_urandom", self._urandom),
            mock.patch.object(os, "getpid", self._getpid),
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in reversed(patches):
                patch.stop()
            random.setstate(kept)

    def live(self, life: Awaitable[T]) -> T:
        """Run a life to its end, by these rules."""
        asyncio.set_event_loop(self)
        with self.rules():
            return self._context.run(self.run_until_complete, life)
