"""Keeps a server for a session that may be killed at any moment: when standard input ends, so does the server.

A program of its own, started by tests/cluster.py. It removes the server's directory, too.
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

_END_S = 30


def keep(directory: Path, owner: str, command: list[str]) -> None:
    """Obey "start" (answers the process id) and "wait" (answers the exit status), a line each, until the input ends."""
    server: subprocess.Popen[bytes] | None = None
    try:
        for line in iter(sys.stdin.readline, ""):
            if line == "start\n":
                server = _start(directory, owner, command)
                print(server.pid, flush=True)
            elif server is not None:
                print(server.wait(_END_S), flush=True)
    finally:
        if server is not None and server.poll() is None:
            server.send_signal(signal.SIGCONT)
            server.send_signal(signal.SIGQUIT)
            server.wait(_END_S)
        shutil.rmtree(directory)


def _start(directory: Path, owner: str, command: list[str]) -> subprocess.Popen[bytes]:
    """Start the server as its owner, "uid:gid"; as ourselves where that is empty."""
    user, group = map(int, owner.split(":")) if owner else (None, None)
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=user,
            group=group,
            extra_groups=[] if owner else None,
        )


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
