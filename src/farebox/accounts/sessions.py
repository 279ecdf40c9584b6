"""Sessions: who is signed in, where, since when. The browser's cookie is random; the store keeps its hash."""

import hashlib
import secrets
from typing import Final

import msgspec

from farebox.clock import US_PER_S
from farebox.store.protocol import Store

IDLE_S: Final = 24 * 3600
LONGEST_S: Final = 14 * 24 * 3600
SURE_S: Final = 15 * 60
_SEEN_EVERY_S: Final = 60
_AGENT_CHARS: Final = 200
_COLUMNS: Final = (
    "s.hash, s.account_id, a.email, a.role, a.status, a.verified_at, s.created_at, s.seen_at, s.sure_at, s.agent, "
    "s.address, s.factor_at, s.viewing"
)


class Session(msgspec.Struct, frozen=True):
    """One sign-in of one person in one browser."""

    hash: bytes
    account_id: int
    email: str
    role: str
    status: str
    verified_at: int | None
    created_at_us: int
    seen_at_us: int
    sure_at_us: int
    agent: str
    address: str
    factor_at_us: int | None
    """When a second factor was last given in this session; None: never."""
    viewing: int | None
    """The account that an operator looks at as its owner would, without changing anything."""

    @property
    def name(self) -> str:
        """What one session is called in a list: enough of its hash to tell it from others."""
        return self.hash.hex()[:16]

    def is_sure(self, now_us: int) -> bool:
        """Tell whether the password was given recently enough for changes that matter."""
        return now_us - self.sure_at_us < SURE_S * US_PER_S


class Sessions:
    """All sessions, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin(self, account_id: int, now_us: int, *, agent: str, address: str) -> str:
        """Sign a person in; answers the cookie's value, which is kept nowhere."""
        cookie = secrets.token_urlsafe(32)
        insert = (
            "INSERT INTO session (hash, account_id, created_at, seen_at, ends_at, sure_at, agent, address) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        )
        ends_at = now_us + LONGEST_S * US_PER_S
        values = (_hash(cookie), account_id, now_us, now_us, ends_at, now_us, agent[:_AGENT_CHARS], address)
        await self._store.write([("DELETE FROM session WHERE ends_at < ?", (now_us,)), (insert, values)])
        return cookie

    async def find(self, cookie: str, now_us: int) -> Session | None:
        """Give the session of a cookie, if it has not ended and was not idle for too long."""
        if not 0 < len(cookie) <= 100:
            return None
        rows = await self._store.fetch(
            f"SELECT {_COLUMNS} FROM session s JOIN account a ON a.id = s.account_id "  # noqa: S608  fixed text
            "WHERE s.hash = ? AND s.ends_at > ? AND s.seen_at > ? AND a.status <> 'closed'",
            (_hash(cookie), now_us, now_us - IDLE_S * US_PER_S),
        )
        if not rows:
            return None
        session = Session(*rows[0])
        if now_us - session.seen_at_us > _SEEN_EVERY_S * US_PER_S:
            await self._store.write([("UPDATE session SET seen_at = ? WHERE hash = ?", (now_us, session.hash))])
        return session

    async def all_of(self, account_id: int, now_us: int) -> list[Session]:
        """Give all sessions of a person, the one used last first."""
        rows = await self._store.fetch(
            f"SELECT {_COLUMNS} FROM session s JOIN account a ON a.id = s.account_id "  # noqa: S608  fixed text
            "WHERE s.account_id = ? AND s.ends_at > ? AND s.seen_at > ? ORDER BY s.seen_at DESC",
            (account_id, now_us, now_us - IDLE_S * US_PER_S),
        )
        return [Session(*row) for row in rows]

    async def end(self, session: Session) -> None:
        """Sign out."""
        await self._store.write([("DELETE FROM session WHERE hash = ?", (session.hash,))])

    async def end_named(self, account_id: int, name: str) -> None:
        """End one of a person's own sessions, by the name it has in the list."""
        for session in await self.all_of(account_id, 0):
            if session.name == name:
                await self.end(session)

    async def end_others(self, account_id: int, but: bytes = b"") -> None:
        """End all sessions of a person, but perhaps the present one."""
        await self._store.write([("DELETE FROM session WHERE account_id = ? AND hash <> ?", (account_id, but))])


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
