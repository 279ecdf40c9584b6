"""Everything a process does to the files of its books and tells of it, in the order it happened: recorded by strace.

A call of the kernel that another thread's comes between has two moments: when it began and when it ended.
"""

import asyncio
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_CALLS: Final = (
    "openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "mkdir", "rename", "unlink", "fallocate",
    "pwritev", "writev", "linkat", "renameat2", "unlinkat", "creat",
)  # fmt: skip
_KNOWN: Final = frozenset(
    {"openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "mkdir", "rename", "unlink"}
)
_LINE: Final = re.compile(r"(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))")
_RETURNED: Final = re.compile(r"\) += (-?\d+|\?)")
_STRING: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FILE: Final = re.compile(r"^\d+<((?:\\x[0-9a-f]{2})*)>")
_LONGEST: Final = 2**22
LONGEST_S: Final = 120.0


@dataclass
class Event:
    """One call of the kernel, with the bytes of a write and the offset of one, or the length that a file is cut to.

    Without an offset a write goes to the end. `to` is the new name of what is renamed.
    """

    name: str
    path: str
    began: int
    ended: int
    returned: int
    data: bytes = b""
    offset: int | None = None
    to: str = ""


@dataclass
class Recording:
    """The calls that concern the files of the books, and what was told."""

    events: list[Event]
    told: list[tuple[int, dict[str, Any]]]
    """The moment each line was told."""
    length: int


async def record(
    directory: Path, seed: int, *, operations: int, synchronous: str, checkpoint: int, faults: str = ""
) -> Recording:
    """Let a writer (tests.disk.writer) do so many operations under strace. `faults` are strace's, for its fdatasync."""
    books, told = directory / "data" / "books.db", directory / "told"
    paths = [directory, books.parent, told, books, *(books.with_name(books.name + end) for end in ("-wal", "-journal"))]
    only = [word for path in paths for word in ("-P", str(path))]
    writer = ("tests.disk.writer", str(books), str(told), str(seed), str(operations), synchronous, str(checkpoint))
    return await _record(directory, writer, only, faults)


async def record_spool(directory: Path, seed: int, *, settles: int, faults: str = "") -> Recording:
    """Let a process (tests.disk.spooler) spool so many settles under strace."""
    spooler = ("tests.disk.spooler", str(directory / "data" / "spool"), str(directory / "told"), str(seed))
    return await _record(directory, (*spooler, str(settles)), [], faults)


async def _record(directory: Path, module: tuple[str, ...], only: list[str], faults: str) -> Recording:
    """Run a module that tells what it is answered in the file "told"."""
    told, trace = directory / "told", directory / "trace"
    inject = ["-e", f"inject=fdatasync:{faults}"] if faults else []
    process = await asyncio.create_subprocess_exec(
        *("strace", "-f", "--seccomp-bpf", "-qq", "-xx", "-y", "-s", str(_LONGEST), "-o", str(trace)),
        *("-e", "signal=none", "-e", f"trace={','.join(_CALLS)}", *inject),
        *(*only, sys.executable, "-m", *module),
        env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, words = await asyncio.wait_for(process.communicate(), LONGEST_S)
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
    assert process.returncode == 0, words.decode()
    recording = read_trace(trace, str(told), str(directory))
    assert len(recording.told) == told.read_bytes().count(b"\n"), "strace has missed calls"
    return recording


def read_trace(trace: Path, told: str, directory: str) -> Recording:
    """Read what strace wrote. Raises AssertionError at a call that nobody here knows."""
    events: list[Event] = []
    begun: dict[str, tuple[int, str, str]] = {}
    moment = 0
    with trace.open() as lines:
        for moment, line in enumerate(lines):
            if (found := _LINE.match(line)) is None:
                assert "+++" in line, line[:200]
                continue
            thread, name, words, resumed, rest = found.groups()
            began = moment
            if resumed:
                began, name, words = begun.pop(thread)
                words += rest
            elif line.endswith("<unfinished ...>\n"):
                begun[thread] = (moment, name, words.removesuffix("<unfinished ...>"))
                continue
            if (event := _event(name, words, began, moment)) is not None:
                events.append(event)
    assert not begun, f"never ended: {[name for _, name, _ in begun.values()]}"
    of_books = [event for event in events if event.path != told and event.path.startswith(directory)]
    unknown = [event for event in of_books if event.name not in _KNOWN]
    assert not unknown, f"what do these do to the disk? {unknown[:3]}"
    lines_told = [(event.began, json.loads(event.data)) for event in events if event.path == told and event.data]
    return Recording(
        sorted(of_books, key=lambda event: event.began), sorted(lines_told, key=lambda one: one[0]), moment
    )


def _event(name: str, words: str, began: int, ended: int) -> Event | None:
    returned = _RETURNED.search(words)
    assert returned is not None, words[-200:]
    result = -1 if returned[1] == "?" else int(returned[1])
    strings = [_text(found) for found in _STRING.findall(words)]
    in_file = _FILE.match(words)
    path = _text(in_file[1]).decode() if in_file else strings[0].decode()
    event = Event(name, path, began, ended, result)
    if name == "rename":
        event.to = strings[1].decode()
    if name in {"write", "pwrite64"} and result > 0:
        event.data = strings[0][:result]
    if name in {"pwrite64", "ftruncate"}:
        event.offset = int(words[: returned.start()].rpartition(",")[2])
    elif name == "openat" and "O_CREAT" not in words:
        return None
    return event if result >= 0 or name in {"fsync", "fdatasync"} else None


def _text(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))
