"""Keeps processes: starts them, waits for them, and starts again those that die. It serves nothing itself.

It has one thread and never runs an event loop, so it may fork at any time: a restart is the same as a start.
"""

import contextlib
import math
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from farebox.errors import FareboxError
from farebox.logs import Logger
from farebox.workers.process import GO, HURRY, RETIRE, STOP, TOLD_BY, Line, Process, start
from farebox.workers.succession import Succession

_PAUSES_S: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before each restart in a row of a process that does not live long."""
_LIVED_S: Final = 30.0
"""One that lived for so long starts the row anew."""
_LAST_S: Final = 5.0
"""How long those beside the workers get to end, after them."""


def _nothing() -> None:
    pass


class Role(msgspec.Struct, frozen=True):
    """A process to keep: its name in the log, and what it runs; that answers the exit code, or raises."""

    name: str
    run: Callable[[Line], int]
    beginning: Callable[[], object] = _nothing
    """Called by the supervisor before each start."""
    ended: Callable[[], None] = _nothing
    """Called by the supervisor after each end."""


class _Place:
    """A role with the process that fills it at the moment, if any."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.process: Process | None = None
        self.started_s = 0.0
        self.due_s: float | None = None
        self.deaths = 0


class Supervisor:
    """Keeps `workers`, and `beside` them what outlives them when all is ended.

    By a `line` it obeys the first generation; with a `succession` it is that itself, and stays after it has retired.
    """

    def __init__(
        self,
        workers: Sequence[Role],
        beside: Sequence[Role] = (),
        *,
        log: Logger,
        stop_s: float,
        stopping: Callable[[], None] = _nothing,
        line: Line | None = None,
    ) -> None:
        self._workers = [_Place(role) for role in workers]
        self._beside = [_Place(role) for role in beside]
        self._places = [*self._beside, *self._workers]
        self._unproven = set(self._places)
        """Those that have never been ready."""
        self._log = log
        self._stop_s = stop_s
        self._stopping = stopping
        self._line = line
        self.succession: Succession | None = None
        self._signals = 0
        self._is_stopping = False
        self._is_retiring = False
        self._has_let_go = False
        self._beside_is_told = False
        self._deadline_s = math.inf
        self._failure: FareboxError | None = None
        self._exit_code = 0

    def run(self) -> int:
        """Keep all of them until SIGTERM or SIGINT, then let them end; a second signal hurries them.

        Those that take longer than `stop_s` are killed. `stopping` is called as soon as they have been told. Answers 0,
        or 1 when one did not end in order. Raises FareboxError, after all have ended, when one told that it failed
        before each had been ready once: that is no accident, and will not pass by itself.
        """
        with _signals(reloads=self.succession is not None) as (told, teller):

            def shut() -> None:
                """In a process that is being started: close what is the supervisor's alone."""
                told.close()
                teller.close()
                if self._line is not None:
                    self._line.close()
                if self.succession is not None:
                    self.succession.close_inherited()
                for place in self._places:
                    if place.process is not None:
                        place.process.let_go()

            for place in self._places:
                if not self._is_stopping:
                    self._start(place, shut)
            while self._has_work():
                self._step(told, shut)
        if self._failure is not None:
            raise self._failure
        return self._exit_code or (self.succession.exit_code if self.succession is not None else 0)

    def retire(self) -> None:
        """Have all of them end the calls under way, and end; others take over."""
        self._is_retiring = True
        for place in self._places:
            place.due_s = None
        self._order(self._places, RETIRE)
        if not self._beside:
            self._let_go()

    def _has_work(self) -> bool:
        if any(place.process or place.due_s is not None for place in self._places):
            return True
        others = self.succession
        return others is not None and bool(others.generations or (others.has_retired and not self._is_stopping))

    def _step(self, told: socket.socket, shut: Callable[[], None]) -> None:
        """Wait for news or for the next thing that is due, and act on it."""
        news = self._wait(told)
        if told.fileno() in news:
            self._obey_signals(told.recv(4096))
        if self._line is not None and self._line.fileno() in news:
            self._obey(self._line.orders())
        if self.succession is not None:
            self._follow(self.succession, news)
        for place in self._places:
            if place.process is not None and place.process.fileno() in news:
                self._hear(place, place.process)
        now_s = time.monotonic()
        for place in self._places:
            if place.due_s is not None and place.due_s <= now_s:
                self._start(place, shut)
        ends = self._is_stopping or self._is_retiring
        if ends and not self._beside_is_told and not any(place.process for place in self._workers):
            self._beside_is_told = True
            self._deadline_s = now_s + _LAST_S
            self._order(self._beside, STOP)
        if self._is_retiring and self.succession is not None and not any(place.process for place in self._places):
            self.succession.forget_own()
        if self._deadline_s <= now_s:
            self._deadline_s = math.inf
            self._kill()

    def _obey_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                if self.succession is not None:
                    self.succession.begin()
                continue
            self._signals += 1
            if self._signals > 1:
                self._hurry()
            elif not self._is_stopping:
                self._stop()

    def _obey(self, orders: bytes) -> None:
        """Do what the first generation orders; end when it has ended."""
        if not orders:
            self._line = None
        if (not orders or STOP in orders) and not self._is_stopping:
            self._stop()
        if HURRY in orders:
            self._hurry()
        if GO in orders:
            self._order(self._beside, GO)
        if RETIRE in orders:
            self.retire()

    def _follow(self, others: Succession, news: set[int]) -> None:
        """Hear the other generations."""
        for one in list(others.generations):
            if one.fileno() in news:
                others.hear(one)
        if others.due_s is not None:
            others.expire()
        if others.has_failed and not self._is_stopping:
            self._stop()

    def _let_go(self) -> None:
        """Tell that nothing is done here any more that one generation does for all."""
        if self._has_let_go:
            return
        self._has_let_go = True
        if self._line is not None:
            self._line.let_go()
        if self.succession is not None:
            self.succession.let_go()

    def _wait(self, told: socket.socket) -> set[int]:
        """Sleep until somebody has news or something is due; answers the files that have news."""
        poll = select.poll()
        poll.register(told, select.POLLIN)
        for place in self._places:
            if place.process is not None:
                poll.register(place.process, select.POLLIN)
        if self._line is not None:
            poll.register(self._line, select.POLLIN)
        due = [self._deadline_s, *(place.due_s for place in self._places if place.due_s is not None)]
        if self.succession is not None:
            for one in self.succession.generations:
                poll.register(one, select.POLLIN)
            due += [] if self.succession.due_s is None else [self.succession.due_s]
        due_s = min(due)
        pause_ms = None if due_s == math.inf else max(0, math.ceil((due_s - time.monotonic()) * 1000))
        return {file for file, _ in poll.poll(pause_ms)}

    def _start(self, place: _Place, shut: Callable[[], None]) -> None:
        place.due_s = None
        place.started_s = time.monotonic()
        place.role.beginning()
        try:
            place.process = start(place.role.name, place.role.run, shut)
        except OSError as error:  # no memory, no process ids
            place.role.ended()
            self._lost(place, f"cannot be started: {error.strerror}", {})

    def _hear(self, place: _Place, process: Process) -> None:
        lives = process.hear()
        if process.is_ready and place in self._unproven:
            self._unproven.discard(place)
            if not self._unproven and self._line is not None:
                self._line.ready()
        if self._is_retiring and place in self._beside and (process.has_let_go or not lives):
            self._let_go()
        if lives:
            return
        place.process = None
        code = process.bury()
        place.role.ended()
        how = {"pid": process.pid, **({"exit_code": code} if code >= 0 else {"signal": _signal_name(-code)})}
        if not self._is_stopping and not self._is_retiring:
            self._lost(place, process.failure, how)
            return
        ended_while_beginning = code == -signal.SIGTERM and not process.is_ready
        failed_for_the_same = self._failure is not None and process.failure == str(self._failure)
        if code != 0 and not ended_while_beginning and not failed_for_the_same:
            self._exit_code = 1
            self._log.error("worker_died", worker=place.role.name, **how)

    def _lost(self, place: _Place, failure: str, how: dict[str, Any]) -> None:
        """Start a lost process again when its time has come; give all up when it could never have worked."""
        if failure and self._unproven:
            self._failure = FareboxError(failure)
            self._stop()
            return
        now_s = time.monotonic()
        if now_s - place.started_s >= _LIVED_S:
            place.deaths = 0
        pause_s = _PAUSES_S[min(place.deaths, len(_PAUSES_S) - 1)]
        place.deaths += 1
        place.due_s = now_s + pause_s
        told = {"error": failure, **how} if failure else how
        if how.get("exit_code") == 0:
            self._log.info("worker_ended", worker=place.role.name, again_in_s=pause_s, **told)
        else:
            self._log.error("worker_died", worker=place.role.name, again_in_s=pause_s, **told)

    def _hurry(self) -> None:
        """Tell the workers, and other generations, to end their calls at once."""
        self._order(self._workers, HURRY)
        if self.succession is not None:
            self.succession.hurry()

    def _stop(self) -> None:
        """Tell the workers, and other generations, to end."""
        self._is_stopping = True
        self._deadline_s = time.monotonic() + self._stop_s
        for place in self._places:
            place.due_s = None
        self._order(self._workers, STOP)
        self._stopping()
        if self.succession is not None:
            self.succession.stop()

    def _order(self, places: Sequence[_Place], what: bytes) -> None:
        for place in places:
            if place.process is not None:
                place.process.order(what)

    def _kill(self) -> None:
        """End what does not end. Books outlive that: what a dead process held is resolved by another."""
        for place in self._places:
            if place.process is not None and (self._beside_is_told or place in self._workers):
                self._log.error("worker_killed", worker=place.role.name, pid=place.process.pid)
                place.process.kill()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # those between SIGRTMIN and SIGRTMAX
        return str(number)


@contextlib.contextmanager
def _signals(*, reloads: bool) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Turn signals of TOLD_BY, or SIGHUP, into news on the first of two sockets; the second is the handler's."""
    told, teller = socket.socketpair()
    with told, teller:
        teller.setblocking(False)  # noqa: FBT003  the signature of the standard library
        before = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)
        heard = (*TOLD_BY, signal.SIGHUP) if reloads else TOLD_BY
        handlers = [(number, signal.signal(number, lambda *_: None)) for number in heard]
        try:
            yield told, teller
        finally:
            for number, handler in handlers:
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
