"""What a power cut may leave on a disk, worked out from the calls that were recorded.

A file has what was written before its last successful sync began. Of what came after that, until the cut, anything may
be there: all, nothing, a beginning, some of it in any order, some sectors of it. So it is with names in a
directory, which the sync of the directory makes durable. What a sync that failed should have brought to the disk may be
gone for good, since the kernel takes it for clean: later syncs say nothing of it.
"""

import math
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.disk.recording import Event, Recording

SECTOR: Final = 512
WAYS: Final = ("nothing", "all", "beginning", "some", "torn")
"""What may become of that of which the disk has not said that it has it."""


@dataclass
class Change:
    """A write or truncation of a file, or a name put into a directory or taken out of it."""

    began: int
    ended: int
    safe_from: float = math.inf
    """The moment from which it outlives a power cut."""
    given_up: bool = False
    """Its sync failed: the kernel takes it for clean from now on, so that no later one saves it."""
    data: bytes = b""
    offset: int = 0
    length: int | None = None
    """What a file was cut to."""
    name: str = ""
    makes: "File | None" = None
    """The file that the name stands for from now on; none where it is taken away."""
    was: str = ""
    """The name that the file had before, which goes at the same moment."""


@dataclass
class File:
    """A file or directory, with all that was done to it."""

    is_directory: bool = False
    size: int = 0
    """Of its content after all changes."""
    changes: list[Change] = field(default_factory=list)

    def sync(self, event: Event) -> None:
        """Make durable what had been done when the sync began; if it failed, nothing of that ever is.

        Not so of a directory. SQLite does not heed a failure there, and may rely on file systems which bring a name to
        the disk with the first sync of its file.
        """
        for change in self.changes:
            if change.ended < event.began and change.safe_from == math.inf and not change.given_up:
                if event.returned == 0 or self.is_directory:
                    change.safe_from = event.ended
                else:
                    change.given_up = True


class Disk:
    """All that was done to one directory, which is there from the start, and everything in it."""

    def __init__(self, recording: Recording, root: Path) -> None:
        self._root = File(is_directory=True)
        self._length = recording.length
        self._now: dict[str, File] = {str(root): self._root}
        for event in recording.events:
            self._note(event)

    def _note(self, event: Event) -> None:
        there = self._now.get(event.path)
        folder, _, name = event.path.rpartition("/")
        if event.name in {"openat", "mkdir"}:
            if there is None:
                self._now[event.path] = made = File(is_directory=event.name == "mkdir")
                self._now[folder].changes.append(Change(event.began, event.ended, name=name, makes=made))
        elif event.name == "rename":
            self._now[event.to] = self._now.pop(event.path)
            assert event.to.rpartition("/")[0] == folder, "from one directory into another"
            to = event.to.rpartition("/")[2]
            change = Change(event.began, event.ended, name=to, makes=self._now[event.to], was=name)
            self._now[folder].changes.append(change)
        elif event.name == "unlink":
            del self._now[event.path]
            self._now[folder].changes.append(Change(event.began, event.ended, name=name))
        elif there is None:
            return  # a file that has no name any more
        elif event.name in {"fsync", "fdatasync"}:
            there.sync(event)
        elif event.name == "ftruncate":
            there.changes.append(Change(event.began, event.ended, length=event.offset))
            there.size = event.offset or 0
        else:
            at = there.size if event.offset is None else event.offset
            there.changes.append(Change(event.began, event.ended, data=event.data, offset=at))
            there.size = max(there.size, at + len(event.data))

    def cut(self, moment: int, way: str, choices: random.Random, to: Path) -> int:
        """Rebuild what may be there after a cut at a moment; answers how many changes were not safe then."""
        shutil.rmtree(to, ignore_errors=True)
        doubtful = self._count_doubtful(self._root, moment)
        last = choices.uniform(0, moment) if way == "beginning" and doubtful else moment
        keep = _keeper(way, last, choices)
        self._rebuild(self._root, moment, keep, to)
        return doubtful

    def _count_doubtful(self, file: File, moment: int) -> int:
        count = sum(change.began < moment and change.safe_from > moment for change in file.changes)
        made = [change.makes for change in file.changes if change.makes is not None and change.began < moment]
        return count + sum(self._count_doubtful(one, moment) for one in made)

    def _rebuild(self, file: File, moment: int, keep: Callable[[Change], Sequence[Change]], to: Path) -> None:
        kept: list[Change] = []
        for change in file.changes:
            if change.began < moment:
                kept += [change] if change.safe_from <= moment else keep(change)
        if not file.is_directory:
            to.write_bytes(_content(kept))
            return
        to.mkdir()
        names: dict[str, File] = {}
        for change in kept:
            names.pop(change.was, None)
            if change.makes is not None:
                names[change.name] = change.makes
            else:
                names.pop(change.name, None)
        for name, one in names.items():
            self._rebuild(one, moment, keep, to / name)


def _keeper(way: str, last: float, choices: random.Random) -> Callable[[Change], Sequence[Change]]:
    """Choose what is there of a change of which the disk has not said that it is."""
    share = choices.random()

    def keep(change: Change) -> Sequence[Change]:
        if way == "nothing" or (way == "beginning" and change.began > last):
            return ()
        if way in {"some", "torn"} and choices.random() > share:
            return ()
        if way == "torn" and change.data:
            return [part for part in _sectors(change) if choices.random() < share]
        return (change,)

    return keep


def _sectors(change: Change) -> list[Change]:
    parts, at, end = [], change.offset, change.offset + len(change.data)
    while at < end:
        until = min(end, (at // SECTOR + 1) * SECTOR)
        data = change.data[at - change.offset : until - change.offset]
        parts.append(Change(change.began, change.ended, data=data, offset=at))
        at = until
    return parts


def _content(changes: Sequence[Change]) -> bytes:
    content = bytearray()
    for change in changes:
        if change.length is not None:
            del content[change.length :]
            content.extend(bytes(change.length - len(content)))
            continue
        if change.offset > len(content):
            content.extend(bytes(change.offset - len(content)))
        content[change.offset : change.offset + len(change.data)] = change.data
    return bytes(content)
