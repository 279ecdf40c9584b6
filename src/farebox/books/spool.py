"""The spool: settles that the database could not take, kept on disk until it can.

A settle that is in the spool is as good as booked: the call's last bytes may be delivered (promise 1). Each process has
a file of its own in the spool's directory, a line a settle, synced before `put` answers, and locked while the process
lives; the file of a dead one is taken over by whoever finds it. Delivering a line twice changes nothing. Of several
lines about a call the last one counts: its end may not have been delivered after all.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from farebox.billing.ledger import Settle, Settled
from farebox.books.ledger import Ledger
from farebox.errors import FareboxError, StoreUnavailable
from farebox.ids import show_request_id
from farebox.store.durable import make_directory, sync

MOST: Final = 10_000
_PORTION: Final = 200
"""So many are handed to the ledger at once: while it cannot take them, others should not wait behind them all."""
_SUFFIX: Final = ".spool"
_REJECTED: Final = ".rejected"
"""What a dead process's file is called once all that could be booked of it is, and something could not."""
_settle: Final = msgspec.json.Decoder(Settle)
Log = Callable[..., Any]
Note = Callable[[Settle, Settled], None]


class Spool:
    """The settles that wait, and the file they wait in."""

    def __init__(self, directory: Path, *, alert: Log, most: int = MOST) -> None:
        self._directory = directory
        self._alert = alert
        self._most = most
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._is_torn = False
        self._turn = asyncio.Lock()
        self._unwritten: list[tuple[Settle, asyncio.Future[bool]]] = []
        self._being_written = 0
        self.waiting: dict[bytes, Settle] = {}

    async def open(self) -> None:
        """Make the file now rather than when it is first needed, and tell if that cannot be."""
        try:
            await asyncio.to_thread(self._open)
        except OSError as error:
            self._tell_not_durable(error)

    async def put(self, settle: Settle) -> bool:
        """Keep a settle. True once it is on disk; False when it cannot be kept, and nothing may be delivered.

        Those that come while the disk is busy are synced together. Must not be cancelled.
        """
        if len(self.waiting) + len(self._unwritten) + self._being_written >= self._most:
            self._alert("spool_full", most=self._most)
            return False
        kept: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._unwritten.append((settle, kept))
        async with self._turn:
            if not kept.done():
                await self._write()
        return kept.result()

    async def deliver(self, ledger: Ledger, note: Note) -> bool:
        """Hand what waits to the ledger, files of dead processes included; `note` hears what has been booked now.

        What is to be free and had been charged is given back. Answers whether all files could be read. Raises
        StoreUnavailable while the books cannot be written; what waits goes on waiting.
        """
        await self._hand_in(ledger, list(self.waiting.values()), note)
        async with self._turn:
            if not self.waiting and self._descriptor is not None:
                await asyncio.to_thread(os.ftruncate, self._descriptor, 0)
        readable = True
        for path in _files_in(self._directory):
            try:
                if path != self._path:
                    await self._adopt(ledger, path, note)
            except OSError as error:
                self._alert("spool_file_unreadable", path=str(path), error=str(error))
                readable = False
        return readable

    def close(self) -> None:
        """Let go of the file, and take it away if nothing waits in it."""
        if self._descriptor is None or self._path is None:
            return
        if not self.waiting:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    async def _write(self) -> None:
        """Bring all that has gathered to the disk."""
        batch, self._unwritten = self._unwritten, []
        self._being_written = len(batch)
        durable = False
        try:
            await asyncio.to_thread(self._append, [settle for settle, _ in batch])
            durable = True
        except OSError as error:
            self._tell_not_durable(error)
        finally:
            if durable and not self.waiting:
                self._alert("settles_spooled", directory=str(self._directory))
            for settle, kept in batch:
                if durable:
                    self.waiting[settle.request_id] = settle
                kept.set_result(durable)
            self._being_written = 0

    def _open(self) -> None:
        if self._descriptor is None:
            make_directory(self._directory, 0o700)
            path = self._directory / f"{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
            self._descriptor, self._path = _make(path), path

    def _append(self, settles: Sequence[Settle]) -> None:
        """Write lines and sync them, or leave the file as it was."""
        self._open()
        assert self._descriptor is not None
        size = os.fstat(self._descriptor).st_size
        data = (b"\n" if self._is_torn else b"") + b"".join(map(_line, settles))
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError("the disk is full")
            os.fdatasync(self._descriptor)
            self._is_torn = False
        except OSError:
            self._is_torn = True  # unless it can be cut back, what comes next has to begin on a line of its own
            os.ftruncate(self._descriptor, size)
            self._is_torn = False
            raise

    async def _hand_in(self, ledger: Ledger, settles: list[Settle], note: Note) -> bool:
        """Hand settles to the ledger. Answers whether it refused none. Raises StoreUnavailable."""
        refused = 0
        for begin in range(0, len(settles), _PORTION):
            portion = settles[begin : begin + _PORTION]
            answers = await asyncio.gather(*map(ledger.settle, portion), return_exceptions=True)
            for settle, answer in zip(portion, answers, strict=True):
                if isinstance(answer, StoreUnavailable):
                    continue
                if not isinstance(answer, Settled | FareboxError):
                    raise answer
                if isinstance(answer, Settled) and (owed := await ledger.give_back(settle, answer)):
                    self._alert("charge_refunded", request_id=show_request_id(settle.request_id), nanos=owed)
                self.waiting.pop(settle.request_id, None)
                refused += isinstance(answer, FareboxError)
                self._tell(settle, answer, note)
            for answer in answers:
                if isinstance(answer, StoreUnavailable):
                    raise answer
        return not refused

    def _tell(self, settle: Settle, answer: Settled | FareboxError, note: Note) -> None:
        facts = {"request_id": show_request_id(settle.request_id), "cost_nanos": settle.cost_nanos}
        if isinstance(answer, FareboxError):
            self._alert("settlement_refused", **facts, error=str(answer))
        elif answer.now:
            note(settle, answer)
        elif answer.recovered and not settle.waive:
            self._alert("settled_too_late", **facts)

    def _tell_not_durable(self, error: OSError) -> None:
        self._alert("spool_not_durable", directory=str(self._directory), error=str(error))

    async def _adopt(self, ledger: Ledger, path: Path, note: Note) -> None:
        """Deliver the file of a process that is gone, then take it away. One that lives keeps its file.

        A file of which something cannot be booked is kept, under a name that nobody reads. Raises OSError.
        """
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # delivered by another; its process lives
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                settles, sound = await asyncio.to_thread(self._read, path)
                taken = await self._hand_in(ledger, settles, note)
                await asyncio.to_thread(_put_away, path, sound=taken and sound)
            finally:
                os.close(descriptor)

    def _read(self, path: Path) -> tuple[list[Settle], bool]:
        """Read a file's whole lines, and tell whether they all were what they should be.

        A last one without an end was being written when its process died: nobody was told that it is safe.
        """
        settles: dict[bytes, Settle] = {}
        sound = True
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            crc, _, data = line.partition(b" ")
            try:
                if line and int(crc, 16) != zlib.crc32(data):
                    raise ValueError("its checksum is another")
                if line:
                    settle = _settle.decode(data)
                    settles[settle.request_id] = settle
            except (ValueError, msgspec.MsgspecError) as error:
                self._alert("spool_line_unreadable", path=str(path), line=number, error=str(error))
                sound = False
        return list(settles.values()), sound


def _line(settle: Settle) -> bytes:
    data = msgspec.json.encode(settle)
    return b"%08x %b\n" % (zlib.crc32(data), data)


def _make(path: Path) -> int:
    """Make a file, locked before it has the name by which others would find and take it; the name is durable, too."""
    unnamed = path.with_suffix(".new")
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(path)
        sync(path.parent)
    except OSError:
        os.close(descriptor)
        unnamed.unlink(missing_ok=True)
        raise
    return descriptor


def _put_away(path: Path, *, sound: bool) -> None:
    if sound:
        path.unlink()
    else:
        path.rename(path.with_suffix(_REJECTED))


def waiting_in(directory: Path) -> int:
    """Count the settles in a spool's directory, whoever's they are, without touching them."""
    return sum(_read_beside(path).count(b"\n") for path in _files_in(directory))


def copy_spool(directory: Path, to: Path) -> int:
    """Copy what waits in a spool, durably, beside processes that write to it; answers how many settles that are.

    A line that is being written may come torn, which whoever reads it knows.
    """
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    count = 0
    for path in _files_in(directory):
        data = _read_beside(path)
        if not data:
            continue
        count += data.count(b"\n")
        descriptor = os.open(to / path.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    return count


def _files_in(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{_SUFFIX}")) if directory.is_dir() else []


def _read_beside(path: Path) -> bytes:
    """Read a file of somebody who may take it away: what was in it has been delivered then."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
