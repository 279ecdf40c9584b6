"""Claude Code sessions that their account has stopped: which, kept in memory, so that no call has to ask the database.

What another process stops is seen once they are read again.
"""

from urllib.parse import quote

from farebox.errors import PermissionDenied
from farebox.store.protocol import Store


class StoppedSessions:
    """All stopped sessions, by account. `page_url`, with the session's name behind it, is where one is let go on."""

    def __init__(self, store: Store, page_url: str) -> None:
        self._store = store
        self._page_url = page_url
        self._stopped: frozenset[tuple[int, str]] = frozenset()
        self._changes = 0
        self.is_stale = True
        """Whether they have to be read again: set where another process may have changed them."""

    async def stop(self, account_id: int, session: str, now_us: int) -> None:
        """Stop a session; a second time changes nothing. Raises StoreUnavailable."""
        insert = "INSERT INTO stopped_session (account_id, session, stopped_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        await self._store.write([(insert, (account_id, session, now_us))])
        self._stopped |= {(account_id, session)}
        self._changes += 1

    async def resume(self, account_id: int, session: str) -> None:
        """Let a session go on. Raises StoreUnavailable."""
        delete = "DELETE FROM stopped_session WHERE account_id = ? AND session = ?"
        await self._store.write([(delete, (account_id, session))])
        self._stopped -= {(account_id, session)}
        self._changes += 1

    async def refresh(self) -> None:
        """Read them again. Raises StoreUnavailable."""
        changes = self._changes
        self.is_stale = False  # before they are read: what is stopped elsewhere meanwhile makes them stale again
        try:
            rows = await self._store.fetch("SELECT account_id, session FROM stopped_session")
        except BaseException:
            self.is_stale = True
            raise
        if changes == self._changes:
            self._stopped = frozenset(map(tuple, rows))
        else:  # what was read may be older than what was done here: next time
            self.is_stale = True

    def has(self, account_id: int, session: str | None) -> bool:
        return bool(self._stopped) and session is not None and (account_id, session) in self._stopped

    def refusal(self, session: str) -> PermissionDenied:
        """Say who stopped a session, and how it goes on."""
        return PermissionDenied(
            f"Claude Code session {session} was stopped by its account's owner, so its calls are refused; "
            f"let it go on at {self._page_url}/{quote(session)}"
        )
