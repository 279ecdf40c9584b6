"""The spool: settles that the database could not take, kept on disk until it can.

A settle that is in the spool is as good as booked: the call's last bytes may be delivered (promise 1). Each process has
a file of its own in the spool's directory, a line a settle, synced before `put` answers, and locked while the process
lives; the file of a dead one is taken over by whoever finds it. Delivering a line twice changes nothing.
"""

import asyncio
import contextlib
import fcntl
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from farebox.billing.ledger import Settle, Settled
from farebox.books.ledger import Ledger
from farebox.errors import FareboxError, StoreUnavailable

MOST: Final = 10_000
_SUFFIX: Final = ".spool"
_settle: Final = msgspec.json.Decoder(Settle)
Log = Callable[..., Any]


class Spool:
    """The settles that wait, and the file they wait in. The file is made when it is first needed."""

    def __init__(self, directory: Path, *, alert: Log, most: int = MOST) -> None:
        self._directory = directory
        self._alert = alert
        self._most = most
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._turn = asyncio.Lock()
        self.waiting: dict[bytes, Settle] = {}

    async def put(self, settle: Settle) -> bool:
        """Keep a settle. True once it is on disk; False when it cannot be kept, and nothing may be delivered."""
        if len(self.waiting) >= self._most:
            self._alert("spool_full", most=self._most)
            return False
        async with self._turn:
            try:
                await asyncio.to_thread(self._append, settle)
            except OSError as error:
                self._alert("spool_not_durable", directory=str(self._directory), error=str(error))
                return False
            self.waiting[settle.request_id] = settle
        return True

    async def deliver(self, ledger: Ledger) -> list[tuple[Settle, Settled]]:
        """Hand what waits to the ledger, files of dead processes included; answers what has been booked now.

        Raises StoreUnavailable while the books cannot be written; what waits goes on waiting.
        """
        booked = await self._hand_in(ledger, list(self.waiting.values()))
        async with self._turn:
            if not self.waiting and self._descriptor is not None:
                await asyncio.to_thread(os.ftruncate, self._descriptor, 0)
        for path in self._left_behind():
            booked += await self._adopt(ledger, path)
        return booked

    def close(self) -> None:
        """Let go of the file, and take it away if nothing waits in it."""
        if self._descriptor is None or self._path is None:
            return
        if not self.waiting:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def _append(self, settle: Settle) -> None:
        if self._descriptor is None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path = self._directory / f"{os.getpid()}-{settle.request_id.hex()}{_SUFFIX}"
            self._descriptor = _make(self._path)
        size = os.fstat(self._descriptor).st_size
        try:
            line = msgspec.json.encode(settle)
            data = b"%08x %s\n" % (zlib.crc32(line), line)
            if os.write(self._descriptor, data) != len(data):
                raise OSError("the disk is full")
            os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    async def _hand_in(self, ledger: Ledger, settles: list[Settle]) -> list[tuple[Settle, Settled]]:
        answers = await asyncio.gather(*(ledger.settle(settle) for settle in settles), return_exceptions=True)
        booked: list[tuple[Settle, Settled]] = []
        unavailable: StoreUnavailable | None = None
        for settle, answer in zip(settles, answers, strict=True):
            if isinstance(answer, StoreUnavailable):
                unavailable = answer
                continue
            self.waiting.pop(settle.request_id, None)
            if isinstance(answer, Settled):
                if answer.now:
                    booked.append((settle, answer))
                elif answer.recovered:
                    self._alert("spooled_too_late", request_id=settle.request_id.hex(), cost_nanos=settle.cost_nanos)
            elif isinstance(answer, FareboxError):
                self._alert("settlement_refused", request_id=settle.request_id.hex(), error=str(answer))
            else:
                raise answer
        if unavailable is not None:
            raise unavailable
        return booked

    def _left_behind(self) -> list[Path]:
        return [path for path in _files_in(self._directory) if path != self._path]

    async def _adopt(self, ledger: Ledger, path: Path) -> list[tuple[Settle, Settled]]:
        """Deliver the file of a process that is gone, then take it away. One that lives keeps its file."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            booked = await self._hand_in(ledger, self._read(path))
            await asyncio.to_thread(path.unlink, missing_ok=True)
        except BlockingIOError:
            return []
        finally:
            os.close(descriptor)
        return booked

    def _read(self, path: Path) -> list[Settle]:
        """Read a file's whole lines. Only its last one can be torn, and that one was never answered for."""
        settles = []
        for line in path.read_bytes().splitlines():
            crc, _, data = line.partition(b" ")
            try:
                if int(crc, 16) != zlib.crc32(data):
                    raise ValueError("the checksum is another")
                settles.append(_settle.decode(data))
            except (ValueError, msgspec.MsgspecError) as error:
                self._alert("spool_line_unreadable", path=str(path), error=str(error))
        return settles


def _make(path: Path) -> int:
    """Make a file, locked before it has the name by which others would find and take it; the name is durable, too."""
    unnamed = path.with_suffix(".new")
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def waiting_in(directory: Path) -> int:
    """Count the settles in a spool's directory, whoever's they are, without touching them."""
    return sum(path.read_bytes().count(b"\n") for path in _files_in(directory))


def copy_spool(directory: Path, to: Path) -> int:
    """Copy a spool's files, durably, beside processes that write them; answers how many settles they have.

    A line that is being written may come torn, which whoever reads it knows. A file that vanishes was delivered.
    """
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    count = 0
    for path in _files_in(directory):
        with contextlib.suppress(FileNotFoundError):
            data = path.read_bytes()
            count += data.count(b"\n")
            descriptor = os.open(to / path.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    return count


def _files_in(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{_SUFFIX}")) if directory.is_dir() else []
