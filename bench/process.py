"""Processes pinned to a core, what their whole tree costs, and an end that is certain.

Only processes started here are ever signalled.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

GATEWAY_CORE = "0"
LOAD_CORE = "1"
EVERY_CORE = f"{GATEWAY_CORE},{LOAD_CORE}"

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    argv: Sequence[str],
    *,
    cores: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `argv` on some cores, its output in `log`, and end it and its children on the way out."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["taskset", "-c", cores, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def tree(root: int) -> list[int]:
    """Return `root` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(after_name[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def cpu_ns(pids: Sequence[int]) -> int:
    """Return user + system time of all living threads of `pids`, to the nanosecond, from schedstat."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[0])
    return total


def ended_ns(pid: int) -> int:
    """Return user + system time of the children of `pid` that have ended, by the kernel's coarser clock."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[13:15])) * 1_000_000_000 // _TICKS_PER_S


def rss_bytes(pids: Sequence[int]) -> int:
    """Return the resident memory of `pids`: what each has to itself, and what they share once."""
    private, shared = 0, 0
    for pid in pids:
        with contextlib.suppress(OSError):
            sizes = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            kib = {name: int(size) for name, size, *_ in sizes}
            private += kib["Private_Clean:"] + kib["Private_Dirty:"]
            shared = max(shared, kib["Shared_Clean:"] + kib["Shared_Dirty:"])
    return (private + shared) * 1024


def core_busy_s(core: str) -> float:
    """Return how long a core has been busy since boot, to see load that is not ours."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S
    raise RuntimeError(f"core {core} is not in /proc/stat: the benchmark needs two cores")
