"""Succession: one generation of processes takes over from another, at the same doors, without a call being lost.

The process that was started stays, whatever comes after it: it holds the doors, starts each next generation as a new
program, with the code and the configuration that are there then, and has the generation before retire once the new one
is ready. One that does not become ready changes nothing (decision 0021).
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from prometheus_client.registry import Collector

from farebox.app import Inheritance
from farebox.config import Config
from farebox.errors import ConfigError
from farebox.logs import Logger
from farebox.workers.board import Board
from farebox.workers.process import FAILED, GO, HURRY, LET_GO, READY, RETIRE, STOP, Line, receive
from farebox.workers.totals import Lineage, Roster, report_to

_VARIABLE: Final = "FAREBOX_HERITAGE"
_GENERATIONS: Final = 32
"""At once: one that serves, and those before it that still end their calls."""
_START_S: Final = 120.0
"""So long a generation may take to become ready; it waits 30 s for a database that is away."""
_LIVED_S: Final = 30.0
"""One that dies sooner is not replaced: the next would die, too."""
OWN: Final = 1
"""The slot of the first generation, for its figures."""


class Heritage(msgspec.Struct, frozen=True):
    """What a generation is given: numbers of open files, and where it posts what it counts."""

    generation: int
    line: int
    doors: list[int]
    metrics_doors: list[int]
    lock: int | None
    figures: int
    slot: int
    life: int
    addresses: list[str]


class Heir:
    """The side of a generation that takes over."""

    def __init__(self, given: Heritage) -> None:
        self._given = given
        self._board = Board(1 + _GENERATIONS, file=given.figures)
        self.line = Line(socket.socket(fileno=given.line))
        self.doors = [socket.socket(fileno=number) for number in given.doors]
        self.metrics_doors = [socket.socket(fileno=number) for number in given.metrics_doors]
        for number in (given.line, *given.doors, *given.metrics_doors, given.figures, given.lock):
            if number is not None:
                os.set_inheritable(number, False)  # noqa: FBT003  the signature of the standard library

    def check(self, config: Config) -> None:
        """Refuse settings that cannot change while doors and books are handed over. Raises ConfigError."""
        if self._given.addresses != _addresses(config):
            raise ConfigError(
                "server.host, server.port, server.metrics and database.url (its kind) cannot change while another "
                "process hands over; stop that one and start anew"
            )

    def inheritance(self) -> Inheritance:
        return Inheritance(self.doors, self.metrics_doors, self._given.lock, self.add)

    def add(self, own: Collector) -> Collector:
        """Add to what this generation counts what the others have counted."""
        return Lineage(own, self._board, self._given.slot)

    def post(self, own: Collector) -> None:
        """Tell the others what this generation has counted."""
        report_to(self._board, self._given.slot, self._given.life, own)


def find_heritage(environ: MutableMapping[str, str]) -> Heir | None:
    """Tell whether this process has been started to take over, and what it was given for that."""
    told = environ.pop(_VARIABLE, None)
    return Heir(msgspec.json.decode(told, type=Heritage)) if told is not None else None


class Generation:
    """A generation that has been started, as the first one sees it."""

    def __init__(self, number: int, slot: int, pid: int, end: socket.socket) -> None:
        self.number = number
        self.slot = slot
        self.pid = pid
        self.end = end
        self.begun_s = time.monotonic()
        self.ready_s = 0.0
        self.said = b""

    def fileno(self) -> int:
        return self.end.fileno()

    @property
    def is_ready(self) -> bool:
        return self.said.startswith(READY)

    @property
    def has_let_go(self) -> bool:
        return self.said.startswith(READY + LET_GO)

    @property
    def failure(self) -> str:
        return self.said.partition(FAILED)[2].decode(errors="replace")

    def order(self, what: bytes) -> None:
        with suppress(OSError):  # it has just died
            self.end.send(what)


class Succession:
    """The side of the first generation. Calls `retire` once, when it is to retire itself, and is told by `let_go`.

    `changed` is called after each change of who there is to `hear`: whoever waits for files has to look anew.
    """

    def __init__(
        self,
        config: Config,
        doors: Sequence[socket.socket],
        metrics_doors: Sequence[socket.socket],
        lock: int | None,
        *,
        log: Logger,
        retire: Callable[[], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._addresses = _addresses(config)
        self._doors = [os.dup(door.fileno()) for door in doors]
        self._metrics_doors = [os.dup(door.fileno()) for door in metrics_doors]
        self._lock = lock
        self._log = log
        self._retire = retire
        self._changed = changed
        self._figures = os.memfd_create("farebox-figures")
        self._board = Board(1 + _GENERATIONS, file=self._figures)
        self._roster = Roster(self._board, _GENERATIONS)
        self._roster.begin(OWN)
        self._count = 1
        self._again = False
        self._coming: Generation | None = None
        self._serving: Generation | None = None
        self._leaving: Generation | None = None
        self._is_stopping = False
        self._is_forgotten = False
        self.generations: list[Generation] = []
        self.has_retired = False
        """Whether the first generation has been told to retire."""
        self.exit_code = 0
        self.has_failed = False
        """Whether nobody serves any more, and nobody will."""

    def begin(self) -> None:
        """Start the next generation, or one more after the one that is being started. What fails is logged."""
        if self._is_stopping:
            return
        if self._coming is not None:
            self._again = True
            return
        taken = {OWN, *(one.slot for one in self.generations)}
        slot = next((slot for slot in range(OWN + 1, _GENERATIONS + 1) if slot not in taken), None)
        if slot is None:
            self._log.error("reload_failed", error=f"{_GENERATIONS} generations still end their calls; wait for one")
            return
        self._count += 1
        life = self._roster.begin(slot)
        try:
            pid, end = self._spawn(slot, life)
        except OSError as error:
            self._roster.end(slot)
            self._log.error("reload_failed", error=f"{_command()[0]} cannot be started: {error.strerror}")
            self._give_up_without_anybody()
            return
        self._coming = Generation(self._count, slot, pid, end)
        self.generations.append(self._coming)
        self._log.info("reload_begun", generation=self._count, pid=pid)
        self._changed()

    def hear(self, one: Generation) -> None:
        """Take what a generation says, and act on it. Blocks unless there is news."""
        news = receive(one.end)
        one.said += news
        if not news:
            self._ended(one)
            return
        if one is self._coming and one.is_ready:
            self._hand_over(one)
        if one is self._leaving and one.has_let_go:
            self.let_go()

    def let_go(self) -> None:
        """Let the generation that serves do alone what one does for all: the one before does so no more."""
        self._leaving = None
        if self._serving is not None:
            self._serving.order(GO)

    def post(self, own: Collector) -> None:
        """Tell the other generations what the first one has counted."""
        report_to(self._board, OWN, 1, own)

    def forget_own(self) -> None:
        """Note, once, that the first generation has ended its calls: its last figures are kept."""
        if not self._is_forgotten:
            self._is_forgotten = True
            self._roster.end(OWN)
            if self.has_retired:
                self._log.info("retired")

    def stop(self) -> None:
        """Close the doors, and have all of them end."""
        self._is_stopping = True
        self._close_doors()
        self._order(STOP)

    def hurry(self) -> None:
        """Have all of them end their calls at once."""
        self._order(HURRY)

    @property
    def due_s(self) -> float | None:
        """When `expire` is to be called, by the monotonic clock."""
        return self._coming.begun_s + _START_S if self._coming is not None else None

    def expire(self) -> None:
        """Give a generation up that does not become ready."""
        if self._coming is not None and time.monotonic() >= self._coming.begun_s + _START_S:
            self._coming.said += FAILED + b"it was not ready after %d s" % _START_S
            os.kill(self._coming.pid, signal.SIGKILL)

    def close_inherited(self) -> None:
        """Close, in a process forked from this one, what is the first generation's alone."""
        for one in self.generations:
            one.end.close()
        self._close_doors()

    def _close_doors(self) -> None:
        while self._doors or self._metrics_doors:
            os.close((self._doors or self._metrics_doors).pop())

    def _spawn(self, slot: int, life: int) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        heritage = Heritage(
            generation=self._count,
            line=theirs.fileno(),
            doors=self._doors,
            metrics_doors=self._metrics_doors,
            lock=self._lock,
            figures=self._figures,
            slot=slot,
            life=life,
            addresses=self._addresses,
        )
        files = [theirs.fileno(), *self._doors, *self._metrics_doors, self._figures]
        files += [self._lock] if self._lock is not None else []
        environ = {**os.environ, _VARIABLE: json.dumps(msgspec.to_builtins(heritage))}
        try:
            for number in files:
                os.set_inheritable(number, True)  # noqa: FBT003  the signature of the standard library
            command = _command()
            pid = os.posix_spawn(command[0], command, environ, setsigmask=())
        except BaseException:
            ours.close()
            raise
        finally:
            for number in files:
                os.set_inheritable(number, False)  # noqa: FBT003
            theirs.close()
        return pid, ours

    def _hand_over(self, new: Generation) -> None:
        before, self._serving, self._coming = self._serving, new, None
        new.ready_s = time.monotonic()
        self._log.info("handed_over", generation=new.number, pid=new.pid, ms=round((new.ready_s - new.begun_s) * 1000))
        self._leaving = before
        if before is not None:
            before.order(RETIRE)
        elif not self.has_retired:
            self.has_retired = True
            self._retire()
        else:
            self.let_go()
        self._go_again()

    def _go_again(self) -> None:
        if self._again:
            self._again = False
            self.begin()

    def _ended(self, one: Generation) -> None:
        self.generations.remove(one)
        self._changed()
        one.end.close()
        code = os.waitstatus_to_exitcode(os.waitpid(one.pid, 0)[1])
        self._roster.end(one.slot)
        how: dict[str, Any] = {"generation": one.number, "pid": one.pid, "exit_code": code}
        if code != 0 and one.is_ready:
            self._log.error("generation_died", **how)
            self.exit_code = 1 if self._is_stopping else self.exit_code
        elif one.is_ready:
            self._log.info("generation_ended", **how)
        if one is self._leaving:
            self.let_go()
        if one is self._coming:
            self._coming = None
            self._log.error("reload_failed", error=one.failure or f"it ended with exit code {code}", **how)
            self._go_again()
        elif one is self._serving:
            self._serving = None
            if time.monotonic() - one.ready_s >= _LIVED_S:
                self.begin()
        self._give_up_without_anybody()

    def _give_up_without_anybody(self) -> None:
        nobody = self.has_retired and self._serving is None and self._coming is None
        if nobody and not self._is_stopping:
            self.has_failed, self.exit_code = True, 1
            self.stop()
            self._changed()

    def _order(self, what: bytes) -> None:
        for one in self.generations:
            one.order(what)


def _command() -> list[str]:
    """Give the words by which this process was started: by the same names, whatever program is there under them now.

    Of a script that was started as a program the first line names the interpreter, which may be another one by now.
    """
    script = Path(sys.argv[0])
    if script.is_file() and os.access(script, os.X_OK):
        return [str(script), *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


def _addresses(config: Config) -> list[str]:
    kind = config.database.url.partition(":")[0]
    return [f"{config.server.host}:{config.server.port}", config.server.metrics, kind]
