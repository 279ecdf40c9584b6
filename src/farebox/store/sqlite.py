"""The books in one SQLite file: one writer, natural group commit, synchronous=FULL.

Each batch is one BEGIN IMMEDIATE transaction: accounts are loaded, commands folded over them in Python, rows written,
the commit synced to disk, and only then are the answers given. Statements take microseconds and run where the caller
is; what waits for the disk or for another process runs on a thread (docs/decisions/0004 has the measurement). Other
processes (the command line) may write to the same file; `PRAGMA data_version` tells when cached rows are stale.
"""

import asyncio
import contextlib
import fcntl
import os
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from farebox.billing.ledger import Answer, Command
from farebox.billing.plans import Plans
from farebox.clock import Clock, steady_clock
from farebox.errors import StoreConflict, StoreUnavailable
from farebox.store import schema
from farebox.store.durable import make_directory
from farebox.store.marks import Marks
from farebox.store.protocol import Row, Statement
from farebox.store.sqlite_books import Books

T = TypeVar("T")
Work = Callable[[], Any]

OLDEST_SQLITE: Final = (3, 51, 3)
"""Before it, resetting the WAL could corrupt the file (sqlite.org/wal.html#walresetbug)."""

_BUSY_MS: Final = 5000
_BATCH_BUSY_MS: Final = 1500
"""How long the batches of a server wait for another process that writes: calls wait for them."""
_GLANCE_S: Final = 0.2
"""Who asks whether a database is served holds its lock for a moment."""
_PRAGMAS: Final = (
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA mmap_size=0",
    "PRAGMA temp_store=MEMORY",
)


async def open_store(
    url: str | Path,
    *,
    plans: Plans | None = None,
    clock: Clock | None = None,
    create: bool = True,
    serving: bool = False,
    inherited_lock: int | None = None,
) -> "SqliteStore":
    """Open the books at a path or sqlite:/// URL, making file and schema when they are not there.

    A serving process takes the one lock there is; a second one is refused, unless it inherits the lock from one that
    hands its calls over. Raises StoreUnavailable.
    """
    path = database_path(url)
    return await asyncio.get_running_loop().run_in_executor(
        None,
        lambda: SqliteStore(
            path, plans, clock or steady_clock(), create=create, serving=serving, inherited_lock=inherited_lock
        ),
    )


def database_path(url: str | Path) -> Path:
    """Give the file behind sqlite:///relative, sqlite:////absolute or a plain path."""
    return Path(str(url).removeprefix("sqlite:///"))


class SqliteStore:
    """Store (see store/protocol.py) on one SQLite file."""

    def __init__(
        self,
        path: Path,
        plans: Plans | None,
        clock: Clock,
        *,
        create: bool,
        serving: bool,
        inherited_lock: int | None = None,
    ) -> None:
        _check_version()
        self.path = path
        self.lanes = 1
        self.shared = False
        self._batch_busy_ms = _BATCH_BUSY_MS if serving else _BUSY_MS
        if not create and not path.exists():
            raise StoreUnavailable(f"there is no database at {path}")
        make_directory(path.parent)
        self._lock_fd = _lock_to_serve(path, inherited_lock) if serving else None
        self.marks = Marks(_lock_path(path)) if serving else None
        try:
            self._writer = connect(path, clock)
            self._reader = connect(path, clock)
            self._prepare()
        except BaseException:
            self._unlock()
            raise
        self._reader.execute("PRAGMA query_only=ON")
        self._writer.set_busy_timeout(0)
        self.books = Books(self._writer, plans, clock)
        self._turn = asyncio.Lock()
        self._writing: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._reading: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=_work_off, args=(self._writing,), name="farebox-writer", daemon=True),
            threading.Thread(target=_work_off, args=(self._reading,), name="farebox-reader", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def run_id(self) -> int:
        return self.books.run_id

    @run_id.setter
    def run_id(self, run_id: int) -> None:
        self.books.run_id = run_id

    async def apply(self, batch: Sequence[Command], lane: int = 0) -> list[Answer | Exception]:  # noqa: ARG002  one
        async with self._turn:
            try:
                answers = self.books.begin(batch)
            except Exception:  # noqa: BLE001  busy, or a command that spoils the batch: the thread takes its time over it
                return await self._on_writer(
                    lambda: self._patiently(lambda: self.books.apply(batch), self._batch_busy_ms)
                )
            try:
                if self.books.wrote:
                    await self._on_writer(self.books.commit)
                else:
                    self.books.commit()
            except apsw.Error as error:
                raise StoreUnavailable(f"the database did not take the batch: {error}") from error
            return list(answers)

    async def fetch(
        self,
        sql: str,
        params: tuple[Any, ...] = (),
        *,
        patience_s: float | None = None,  # noqa: ARG002  readers wait for nobody
    ) -> list[Row]:
        return await _hand_in(self._reading, lambda: self._reader.execute(sql, params).fetchall())

    async def write(self, statements: Sequence[Statement], *, patience_s: float | None = None) -> list[int]:
        busy_ms = _BUSY_MS if patience_s is None else round(patience_s * 1000)
        async with self._turn:
            return await self._on_writer(lambda: self._patiently(lambda: self._write(statements), busy_ms))

    async def changed_elsewhere(self) -> bool:
        """Tell whether another process has written since this was last asked (keys, plans, balances may differ)."""
        async with self._turn:
            return self.books.changed_elsewhere()

    async def is_served(self) -> bool:
        return self._lock_fd is not None or self._locked_elsewhere()

    async def check_itself(self) -> list[tuple[str, int, list[str]]]:
        return await find_faults(self.fetch)

    async def _on_writer(self, task: Callable[[], T]) -> T:
        """Run a task on the writer thread; the turn is not given on before it has ended, whatever happens to us."""
        running = _hand_in(self._writing, task)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                with contextlib.suppress(asyncio.CancelledError):  # cancelled once more: that changes nothing
                    await asyncio.wait([running])
            running.exception()  # nobody is left to be told
            raise

    def _patiently(self, task: Callable[[], T], busy_ms: int) -> T:
        """Run a task that may find another process writing, and wait for that one."""
        self._writer.set_busy_timeout(busy_ms)
        try:
            return task()
        finally:
            self._writer.set_busy_timeout(0)

    async def close(self) -> None:
        for work in (self._writing, self._reading):
            work.put(None)
        loop = asyncio.get_running_loop()
        for thread in self._threads:
            await loop.run_in_executor(None, thread.join)
        self._reader.close()
        self._writer.close()
        self._unlock()

    def copy_lock(self) -> int | None:
        """Give a descriptor that holds the lock together with this store, for a process that is to take over."""
        return os.dup(self._lock_fd) if self._lock_fd is not None else None

    def _unlock(self) -> None:
        if self.marks is not None:
            self.marks.close()
            self.marks = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _locked_elsewhere(self) -> bool:
        try:
            descriptor = os.open(_lock_path(self.path), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)  # gives the lock back
        return False

    def _prepare(self) -> None:
        """Make the schema where there is none; refuse another one."""
        try:
            if self._writer.pragma("user_version") == 0:
                migrate(self._writer)
            version = self._writer.pragma("user_version")
        except apsw.Error as error:
            raise StoreUnavailable(f"the database {self.path} cannot be opened: {error}") from error
        wrong = schema.advice(f"the database {self.path}", version)
        if wrong is not None:
            raise StoreUnavailable(wrong)

    def _write(self, statements: Sequence[Statement]) -> list[int]:
        connection = self._writer
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                changed = []
                for sql, params in statements:
                    connection.execute(sql, params)
                    changed.append(connection.changes())
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                self.books.forget()
        except apsw.ConstraintError as error:
            raise StoreConflict(str(error)) from error
        except apsw.Error as error:
            raise StoreUnavailable(f"the database did not take the write: {error}") from error
        return changed


def lock(path: Path, *, alone: bool = True) -> int:
    """Take the one lock there is; answers the descriptor that holds it. Raises StoreUnavailable.

    It is held alone by what serves; those who only keep a server out may share it.
    """
    descriptor = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    give_up_at = time.monotonic() + _GLANCE_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() < give_up_at:
                time.sleep(0.01)
                continue
            os.close(descriptor)
            raise StoreUnavailable(
                f"another farebox serves {path} already, or moves it; SQLite has one serving process. "
                "Stop that one, or give this one a database of its own"
            ) from error
        return descriptor


def _lock_to_serve(path: Path, inherited: int | None) -> int:
    """Take the lock, or take over the one that was inherited. Raises StoreUnavailable."""
    if inherited is None:
        return lock(path)
    try:
        is_ours = os.path.samestat(os.fstat(inherited), _lock_path(path).stat())
    except FileNotFoundError:
        is_ours = False
    if not is_ours:
        raise StoreUnavailable(
            f"{path} is not the database of the process that hands over; stop that one and start anew to change it"
        )
    return inherited


def connect(path: Path, clock: Clock) -> apsw.Connection:
    """Open a file as all of ours are. Raises StoreUnavailable."""
    try:
        connection = apsw.Connection(str(path))
        connection.set_busy_timeout(_BUSY_MS)
        connection.create_scalar_function("now_us", lambda *_: clock(), 0)
        connection.create_scalar_function("unseen_since_us", lambda *_: None, 0)  # one writer, which commits at once
        mode = connection.pragma("journal_mode", "wal")
        if mode != "wal":  # told, and not raised, when the disk fails meanwhile
            raise StoreUnavailable(f"the database {path} cannot be opened: its journal stays in mode {mode!r}")
        for pragma in _PRAGMAS:
            connection.execute(pragma)
    except apsw.Error as error:
        raise StoreUnavailable(f"the database {path} cannot be opened: {error}") from error
    path.chmod(0o600)
    return connection


async def find_faults(fetch: Callable[[str], Awaitable[list[Row]]]) -> list[tuple[str, int, list[str]]]:
    """See that the file, its references and its triggers are whole (Reading.check_itself)."""

    async def ask(sql: str) -> tuple[list[Row], list[str]]:
        try:
            return await fetch(sql), []
        except StoreUnavailable as error:  # pages of the file are broken: the other checks still tell
            return [], [f"could not be checked: {error}"]

    pages, file = await ask("PRAGMA integrity_check(100)")
    file += [str(words) for (words,) in pages if words != "ok"]
    rows, references = await ask("PRAGMA foreign_key_check")
    references += [f"a row of {table} names a row of {parent} that is not there" for table, _, parent, _ in rows]
    rows, triggers = await ask("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    guards, there = schema.triggers("sqlite"), dict(map(tuple, rows))
    triggers += [
        f"{name} {'has been changed' if name in there else 'is gone'}"
        for name, sql in guards.items()
        if " ".join(there.get(name, "").split()) != " ".join(sql.split())
    ]
    return [("file", 0, file), ("references", 0, references), ("triggers", len(guards), triggers)]


def migrate(connection: apsw.Connection, tell: Callable[[int], None] = lambda _: None) -> list[int]:
    """Bring a database to the schema known here, each step in one transaction, a new one all of them in one.

    `tell` hears of each version as it is reached. Answers the versions it went through.
    """
    passed: list[int] = []
    while connection.pragma("user_version") < schema.VERSION:
        connection.execute("BEGIN IMMEDIATE")
        try:
            before = connection.pragma("user_version")  # read again: another process may have been quicker
            last = schema.VERSION if before == 0 else min(before + 1, schema.VERSION)
            for version in range(before + 1, last + 1):
                connection.execute(schema.script(version, "sqlite"))
                connection.pragma("user_version", version)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        for version in range(before + 1, last + 1):
            passed.append(version)
            tell(version)
    return passed


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _check_version() -> None:
    version = apsw.sqlite_lib_version()
    if tuple(map(int, version.split("."))) < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise StoreUnavailable(
            f"SQLite {version} could corrupt the books; {oldest} or newer is needed, which a newer apsw brings"
        )


def _work_off(work: "queue.SimpleQueue[Work | None]") -> None:
    while (task := work.get()) is not None:
        task()


def _hand_in(work: "queue.SimpleQueue[Work | None]", task: Callable[[], T]) -> "asyncio.Future[T]":
    """Run a task on a store thread. The wait for it can be cancelled, the task cannot."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def answer(result: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        failure: Exception | None = None
        try:
            result = task()
        except apsw.Error as error:
            failure = StoreUnavailable(f"the database did not answer: {error}")
        except Exception as error:  # noqa: BLE001  handed to the one who waits
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(answer, result, failure)

    work.put(run)
    return done
