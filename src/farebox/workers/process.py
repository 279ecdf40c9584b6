"""A process forked off to do one thing, and the line, a pair of sockets, that joins it to the one that started it.

One end tells "ready" or what failed, the other "stop" or "hurry"; and each learns by the end of the line that the other
is gone, whatever killed it.
"""

import contextlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from farebox.errors import FareboxError

STOP: Final = b"s"
HURRY: Final = b"h"
TOLD_BY: Final = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a process in order."""
RETIRE: Final = b"r"
"""Another takes over: take nothing new, end what is under way, then end."""
GO: Final = b"g"
"""Do alone what one does for all: whoever did so before does no more."""
READY: Final = b"R"
LET_GO: Final = b"D"
FAILED: Final = b"F"
_NAME_CHARS: Final = 15
"""What the kernel keeps of a process's name (proc(5), comm)."""


class Line:
    """The started process's end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        """Give what to wait on for orders."""
        return self._end.fileno()

    def orders(self) -> bytes:
        """Take what has been ordered: STOP, HURRY, or both; nothing at all when the starter is gone. May block."""
        return receive(self._end)

    def close(self) -> None:
        """Close the copy of this end that a process forked later has inherited."""
        self._end.close()

    def ready(self) -> None:
        """Tell that this process does its work from now on."""
        self._tell(READY)

    def let_go(self) -> None:
        """Tell that this process does nothing any more that one does for all."""
        self._tell(LET_GO)

    def failed(self, words: str) -> None:
        """Tell why this process is about to end."""
        self._tell(FAILED + words.encode())

    def _tell(self, what: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody is left who would want to know
            self._end.sendall(what)


class Process:
    """A started process, as its starter sees it."""

    def __init__(self, pid: int, end: socket.socket) -> None:
        self.pid = pid
        self._end = end
        self._said = b""

    @property
    def is_ready(self) -> bool:
        """Whether it has told so."""
        return self._said.startswith(READY)

    @property
    def has_let_go(self) -> bool:
        """Whether it has told that it does nothing any more that one does for all."""
        return self._said.startswith(READY + LET_GO)

    @property
    def failure(self) -> str:
        """What it told about its failure; empty when it told none."""
        said = self._said.removeprefix(READY).removeprefix(LET_GO)
        return said.removeprefix(FAILED).decode(errors="replace") if said.startswith(FAILED) else ""

    def fileno(self) -> int:
        """Give what to wait on for news."""
        return self._end.fileno()

    def hear(self) -> bool:
        """Take what it says; answers whether it lives. Blocks unless there is news."""
        news = receive(self._end)
        self._said += news
        return bool(news)

    def order(self, what: bytes) -> None:
        """Send STOP or HURRY."""
        with contextlib.suppress(OSError):  # it has just died
            self._end.send(what)

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)  # it is a zombie at worst: nobody has waited for it

    def bury(self) -> int:
        """Wait for its end, which must be near; answers its exit code, or the number of a signal, negative."""
        self._end.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def let_go(self) -> None:
        """Close the copy of this end that a process forked later has inherited: a line ends with its last holder."""
        self._end.close()


def start(name: str, run: Callable[[Line], int], shut: Callable[[], None]) -> Process:
    """Fork a process that does `run` and exits with the code it answers. Raises OSError.

    It begins by calling `shut`, to close what it inherited but must not hold open. Signals of TOLD_BY end it until it
    handles them itself; none that comes while it begins is lost.
    """
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, TOLD_BY)
    try:
        pid = os.fork()
        if pid == 0:

            def begin() -> None:
                signal.set_wakeup_fd(-1)
                for number in TOLD_BY:
                    signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                ours.close()
                shut()
                _show_name(name)

            _live(begin, run, Line(theirs))
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
    return Process(pid, ours)


def _live(begin: Callable[[], None], run: Callable[[Line], int], line: Line) -> NoReturn:
    """Be the new process, to its end. What the old one had on its stack is never returned to."""
    code = 1
    try:
        begin()
        code = run(line)
    except (FareboxError, OSError) as error:
        line.failed(str(error))
    except Exception as error:  # noqa: BLE001  the outermost frame of a process
        traceback.print_exc()
        line.failed(f"{type(error).__name__}: {error}")
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def receive(end: socket.socket) -> bytes:
    """Take what has come; nothing when the other end is gone, also before it had read all that was sent."""
    try:
        return end.recv(65_536)
    except ConnectionResetError:
        return b""


def _show_name(name: str) -> None:
    """Name this process for ps and top, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"farebox {name}"[:_NAME_CHARS])
