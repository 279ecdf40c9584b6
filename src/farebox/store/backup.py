"""A copy of an SQLite file that is in use: all of one moment, whatever is written meanwhile."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from farebox.errors import StoreUnavailable
from farebox.store.durable import sync

_STEP_PAGES: Final = 512
_BUSY_MS: Final = 10_000


def copy_database(database: Path, to: Path, tell: Callable[[int, int], None]) -> None:
    """Copy a database into a new file, durably, for its owner alone; `tell` hears of pages done and in all.

    One read transaction spans all steps: without it each write of a server would begin the copy anew. The server goes
    on meanwhile; only its WAL grows until the copy is done. Raises StoreUnavailable, and OSError.
    """
    os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            contextlib.closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)) as source,
            contextlib.closing(apsw.Connection(str(to))) as target,
        ):
            source.set_busy_timeout(_BUSY_MS)
            target.execute("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")  # made durable as a whole, below
            source.execute("BEGIN").fetchall()
            source.execute("SELECT count(*) FROM sqlite_master").fetchall()
            with target.backup("main", source, "main") as copying:
                while not copying.done:
                    copying.step(_STEP_PAGES)
                    tell(copying.page_count - copying.remaining, copying.page_count)
    except apsw.Error as error:
        raise StoreUnavailable(f"the database {database} cannot be copied: {error}") from error
    sync(to)
