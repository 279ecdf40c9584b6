"""Connections to PostgreSQL: made and lent within a time, and thrown away when there is any doubt about them.

Nothing here waits for a server that says nothing: a connection that was given up is cut, not closed in good order.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import asyncpg

SESSION: Final = {
    "application_name": "farebox",
    "jit": "off",
    "idle_in_transaction_session_timeout": "5s",
    "client_min_messages": "error",
    "timezone": "UTC",
    "tcp_keepalives_idle": "60",  # firewalls forget connections on which nothing is said
}
LOST: Final = (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.InternalClientError)
"""What it is called when a connection breaks or is silent for too long (TimeoutError is an OSError)."""
FAILED: Final = (*LOST, asyncpg.PostgresError)
_PASSING: Final = ("08", "53", "57")
"""Classes of SQLSTATE that a server may get over by itself: connection, resources, an operator at work."""
_MEETS_AGAIN: Final = frozenset({"40001", "40P01", "55P03"})
"""Serialization failure, deadlock, lock not available: nothing that speaks against the connection."""


async def connect(url: str, session: dict[str, str], *, timeout_s: float) -> asyncpg.Connection:
    """Make a connection of our own kind. Raises one of FAILED, or ValueError."""
    async with asyncio.timeout(timeout_s):
        connection = await asyncpg.connect(url, server_settings=session)
        try:
            # sums, which PostgreSQL widens to numeric, are read as integers
            await connection.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=int, format="text")
        except BaseException:
            connection.terminate()
            raise
    return connection


async def shut(connection: asyncpg.Connection) -> None:
    """Close a connection in good order, or cut it."""
    with contextlib.suppress(*FAILED):
        await connection.close(timeout=1.0)
    if not connection.is_closed():
        connection.terminate()


def may_pass(error: BaseException) -> bool:
    """Tell whether a server that cannot be connected to may be there soon, without anybody setting something right."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_PASSING)
    return isinstance(error, LOST) and not isinstance(error, ValueError)


def is_still_good(error: asyncpg.PostgresError) -> bool:
    """Tell whether the connection on which a statement failed can be used on.

    One to a server that went down, or that may only be read from, would fail for ever.
    """
    return error.sqlstate in _MEETS_AGAIN or isinstance(error, asyncpg.IntegrityConstraintViolationError)


def words(error: BaseException) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    return str(error).partition("\n")[0] or type(error).__name__


class Pool:
    """At most so many connections, the one used last lent first. One that fails in its work is not used again."""

    def __init__(self, url: str, session: dict[str, str], most: int) -> None:
        self._url = url
        self._session = session
        self._places = asyncio.Semaphore(most)
        self._idle: list[asyncpg.Connection] = []

    @contextlib.asynccontextmanager
    async def lend(self, *, timeout_s: float) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection, for `timeout_s` in all. Raises one of FAILED, those of the work done with it included."""
        async with asyncio.timeout(timeout_s), self._places:
            connection = self._take() or await connect(self._url, self._session, timeout_s=timeout_s)
            try:
                yield connection
            except asyncpg.PostgresError as error:
                if is_still_good(error):
                    self._idle.append(connection)
                else:
                    connection.terminate()
                raise
            except BaseException:
                connection.terminate()
                raise
            self._idle.append(connection)

    def forget(self) -> None:
        """Cut the connections that nobody has: where one was lost, the others mostly are."""
        while self._idle:
            self._idle.pop().terminate()

    async def close(self) -> None:
        """Close the connections, which have all come back."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*map(shut, idle))

    def _take(self) -> asyncpg.Connection | None:
        while self._idle:
            connection: asyncpg.Connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            connection.terminate()
        return None
