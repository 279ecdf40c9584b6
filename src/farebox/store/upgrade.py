"""The schema of a database that nobody has open: looked at, and brought to the one known here."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from farebox.clock import steady_clock
from farebox.errors import StoreUnavailable
from farebox.store import postgres_schema, schema, sqlite
from farebox.store.durable import make_directory
from farebox.store.postgres import one_connection
from farebox.store.urls import is_postgres, without_password

Tell = Callable[[int], None]
_NO_LIMIT: Final = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}


async def schema_at(url: str) -> int:
    """Tell which schema a database has, changing nothing; 0 where there are no books yet. Raises StoreUnavailable."""
    if is_postgres(url):
        async with one_connection(url) as connection:
            return await postgres_schema.version_of(connection)
    return await asyncio.to_thread(_version_of_file, sqlite.database_path(url))


async def upgrade(url: str, tell: Tell) -> None:
    """Bring a database to the schema known here, making it where there is none; `tell` hears of each step.

    Each step is one transaction: whatever ends it in the middle leaves the schema of the step before. Of two at once
    one does it, and the other finds nothing to do. Raises StoreUnavailable: also while a farebox serves the database,
    and for a schema that is newer than the one known here.
    """
    version = await schema_at(url)
    if version > schema.VERSION:
        raise StoreUnavailable(str(schema.advice(f"the database {without_password(url)}", version)))
    if version == schema.VERSION:
        return
    if is_postgres(url):
        async with one_connection(url, _NO_LIMIT) as connection:
            await postgres_schema.migrate(connection, tell)
    else:
        await asyncio.to_thread(_upgrade_file, sqlite.database_path(url), tell)


def _version_of_file(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            version = connection.pragma("user_version")
        finally:
            connection.close()
    except apsw.Error as error:
        raise StoreUnavailable(f"the database {path} cannot be read: {error}") from error
    return int(str(version))


def _upgrade_file(path: Path, tell: Tell) -> None:
    make_directory(path.parent)
    held = sqlite.lock(path, alone=False)  # shared with another migration, which waits for its turn in the file itself
    try:
        connection = sqlite.connect(path, steady_clock())
        try:
            sqlite.migrate(connection, tell)
        except apsw.Error as error:
            raise StoreUnavailable(f"the database {path} did not take the step: {error}") from error
        finally:
            connection.close()
    finally:
        os.close(held)
