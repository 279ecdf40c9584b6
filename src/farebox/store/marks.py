"""Marks: which processes of this machine serve a SQLite file, and which of them leads, as the kernel knows it.

Locks on single bytes of the lock file (fcntl(2), open file description locks): a process holds the byte that its run's
id names for as long as it lives, and byte 0 while it leads. They go with the process, whatever killed it, and not with
a pause of it; so nobody waits for a lease to lapse. One process serves at a time, but an older one may still be ending
its streams (decision 0021).
"""

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_FLOCK: Final = struct.Struct("@hhqqi4x")
"""struct flock of Linux with 64 bits: type, whence, start, length, process id, which is 0 for these locks."""
_LEAD: Final = 0


class Marks:
    """The marks of one process. They need a file description of their own: what is inherited is held together."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def live(self, run_id: int) -> None:
        """Show that the process of a run is alive, until it ends."""
        if not self._take(run_id):
            raise RuntimeError(f"run {run_id} is another process's")

    def lives(self, run_id: int) -> bool:
        """Tell whether the process of a run is alive; of our own runs it says no, as the kernel does."""
        asked = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, run_id))
        return bool(_FLOCK.unpack(asked)[0] != fcntl.F_UNLCK)

    def lead(self) -> bool:
        """Take the lead if nobody else has it; tells whether it is ours."""
        return self._take(_LEAD)

    def follow(self) -> None:
        """Give the lead away."""
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _lock(fcntl.F_UNLCK, _LEAD))

    def close(self) -> None:
        """Give everything away."""
        os.close(self._descriptor)

    def _take(self, byte: int) -> bool:
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK, byte))
        except BlockingIOError:
            return False
        return True


def _lock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
