"""A program that supervises workers which act as they are told: for the tests of the supervisor.

Its argument is JSON: the acts of each worker, one for each of its lives, the last one again and again; and `stop_s`.
"""

import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from farebox.errors import ConfigError, FareboxError
from farebox.http.doors import close_doors, open_doors
from farebox.logs import make_logger
from farebox.workers.process import HURRY, Line
from farebox.workers.supervisor import Role, Supervisor

Door = socket.socket


def serve(line: Line, door: Door) -> int:
    """Answer each connection with this process's id, until told to end."""
    line.ready()
    while True:
        news = [file for file, _ in _poll(line, door)]
        if line.fileno() in news:
            return 0
        try:
            caller, _ = door.accept()
        except BlockingIOError:  # another worker was faster
            continue
        with caller:
            caller.sendall(b"%d" % os.getpid())


def resign(line: Line, door: Door) -> int:
    """Answer one connection, then end in order."""
    line.ready()
    door.settimeout(None)
    caller, _ = door.accept()
    with caller:
        caller.sendall(b"%d" % os.getpid())
    return 0


def dawdle(line: Line, door: Door) -> int:
    """Accept nobody any more when told to end, but end only when hurried."""
    line.ready()
    while HURRY not in line.orders():
        door.close()
    return 0


def idle(line: Line, _: Door) -> int:
    """Never be ready."""
    line.orders()
    return 0


def be_stuck(line: Line, _: Door) -> int:
    """Never end, whatever is told."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    line.ready()
    while True:
        signal.pause()


def die(_: Line, __: Door) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def fail(_: Line, __: Door) -> int:
    raise ConfigError("farebox.toml:7: is wrong; say what is right")


def starve(_: Line, __: Door) -> int:
    """Be what cannot be started for want of file descriptors."""
    raise AssertionError("it has been started")


def err(_: Line, __: Door) -> int:
    raise ZeroDivisionError("a bug")


ACTS: Final[Mapping[str, Callable[[Line, Door], int]]] = {
    act.__name__: act for act in (serve, resign, dawdle, idle, be_stuck, die, fail, starve, err)
}


def main(acts: Mapping[str, list[str]], stop_s: float) -> int:
    (door,) = open_doors("127.0.0.1", 0)
    log = make_logger("info", "json")
    lives = dict.fromkeys(acts, -1)

    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)

    def act(name: str) -> str:
        return acts[name][min(lives[name], len(acts[name]) - 1)]

    def begin(name: str) -> None:
        lives[name] += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (3 if act(name) == "starve" else files, most_files))

    def play(name: str, line: Line) -> int:
        return ACTS[act(name)](line, door)

    roles = [Role(name, partial(play, name), partial(begin, name)) for name in acts]
    log.info("open", port=door.getsockname()[1])
    try:
        return Supervisor(roles, log=log, stop_s=stop_s, stopping=partial(close_doors, [door])).run()
    except FareboxError as error:
        log.info("failed", words=str(error))
        return 1


def _poll(line: Line, door: Door) -> list[tuple[int, int]]:
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(door, select.POLLIN)
    return poll.poll()


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
