"""Sessions: who is signed in, where, since when. The browser's cookie is random; the store keeps its hash."""

import hashlib
import secrets
from collections.abc import Collection
from typing import Final

import msgspec

from farebox.clock import US_PER_S
from farebox.store.protocol import Store

IDLE_S: Final = 24 * 3600
LONGEST_S: Final = 14 * 24 * 3600
ADMIN_IDLE_S: Final = 30 * 60
ADMIN_LONGEST_S: Final = 12 * 3600
SURE_S: Final = 15 * 60
_SEEN_EVERY_S: Final = 60
_AGENT_CHARS: Final = 200
_COLUMNS: Final = (
    "s.hash, s.account_id, a.email, a.role, a.status, a.verified_at, s.created_at, s.seen_at, s.sure_at, s.agent, "
    "s.address, s.factor_at, s.viewing, a.posted_nanos, a.held_nanos"
)
_LIVES: Final = (
    f"s.ends_at > ? AND s.seen_at > ? - CASE a.role WHEN 'admin' THEN {ADMIN_IDLE_S * US_PER_S} "
    f"ELSE {IDLE_S * US_PER_S} END"
)
_ENDS: Final = f"? + CASE role WHEN 'admin' THEN {ADMIN_LONGEST_S * US_PER_S} ELSE {LONGEST_S * US_PER_S} END"


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
    posted_nanos: int
    held_nanos: int
    operator: str = ""
    """Who really looks, where this is the session of a customer as an operator sees it."""

    @property
    def name(self) -> str:
        """What one session is called in a list: enough of its hash to tell it from others."""
        return self.hash.hex()[:16]

    @property
    def free_nanos(self) -> int:
        """What the account can spend now."""
        return self.posted_nanos - self.held_nanos

    def is_sure(self, now_us: int) -> bool:
        """Tell whether the person has proved who they are recently enough for changes that matter."""
        return now_us - self.sure_at_us < SURE_S * US_PER_S


class Sessions:
    """All sessions, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin(
        self, account_id: int, now_us: int, *, agent: str, address: str, factor_at_us: int | None = None
    ) -> str:
        """Sign a person in; answers the cookie's value, which is kept nowhere.

        `factor_at_us`: when they gave a second factor, if they did. Operators are signed in for a shorter time.
        """
        cookie = secrets.token_urlsafe(32)
        insert = (
            "INSERT INTO session (hash, account_id, created_at, seen_at, ends_at, sure_at, factor_at, agent, "  # noqa: S608
            f"address) SELECT ?, id, ?, ?, {_ENDS}, ?, ?, ?, ? FROM account WHERE id = ?"
        )
        moments = (now_us, now_us, now_us, now_us, factor_at_us)
        values = (_hash(cookie), *moments, agent[:_AGENT_CHARS], address, account_id)
        await self._store.write([("DELETE FROM session WHERE ends_at < ?", (now_us,)), (insert, values)])
        return cookie

    async def renew(self, session: Session, now_us: int, *, factor_at_us: int | None = None) -> str | None:
        """Give a session whose person has just proved who they are another cookie; the present one works no longer.

        Answers the cookie's value; None when the session has ended meanwhile. It ends no later than it would have.
        """
        cookie = secrets.token_urlsafe(32)
        renew = (
            "UPDATE session SET hash = ?, seen_at = ?, sure_at = ?, factor_at = coalesce(?, factor_at) WHERE hash = ?"
        )
        changed = await self._store.write([(renew, (_hash(cookie), now_us, now_us, factor_at_us, session.hash))])
        return cookie if changed[0] else None

    async def find(self, cookie: str, now_us: int, *, idle: bool = False) -> Session | None:
        """Give the session of a cookie, if it has not ended and was not idle for too long.

        `idle`: a page asks by itself, which is no sign of a person.
        """
        if not 0 < len(cookie) <= 100:
            return None
        rows = await self._store.fetch(
            f"SELECT {_COLUMNS} FROM session s JOIN account a ON a.id = s.account_id "  # noqa: S608  fixed text
            f"WHERE s.hash = ? AND {_LIVES} AND a.status <> 'closed'",
            (_hash(cookie), now_us, now_us),
        )
        if not rows:
            return None
        session = Session(*rows[0])
        if not idle and now_us - session.seen_at_us > _SEEN_EVERY_S * US_PER_S:
            await self._store.write([("UPDATE session SET seen_at = ? WHERE hash = ?", (now_us, session.hash))])
        return session

    async def as_seen_by_operator(self, session: Session) -> Session | None:
        """Give the session of the customer whom an operator looks at; None where nobody is looked at."""
        if session.viewing is None or session.role != "admin" or session.status != "active":
            return None
        rows = await self._store.fetch(
            "SELECT id, email, status, verified_at, posted_nanos, held_nanos FROM account WHERE id = ?",
            (session.viewing,),
        )
        if not rows:
            return None
        account_id, email, status, verified_at, posted, held = rows[0]
        return msgspec.structs.replace(
            session,
            account_id=account_id,
            email=email,
            role="customer",
            status=status,
            verified_at=verified_at,
            posted_nanos=posted,
            held_nanos=held,
            factor_at_us=None,
            operator=session.email,
        )

    async def alive(self, hashes: Collection[bytes], now_us: int) -> set[bytes]:
        """Tell which of these sessions have not ended."""
        rows = await self._store.fetch(
            "SELECT s.hash FROM session s JOIN account a ON a.id = s.account_id "  # noqa: S608  fixed text
            f"WHERE s.hash IN ({', '.join('?' * len(hashes))}) AND {_LIVES} AND a.status <> 'closed'",
            (*hashes, now_us, now_us),
        )
        return {bytes(row[0]) for row in rows}

    async def all_of(self, account_id: int, now_us: int) -> list[Session]:
        """Give all sessions of a person, the one used last first."""
        rows = await self._store.fetch(
            f"SELECT {_COLUMNS} FROM session s JOIN account a ON a.id = s.account_id "  # noqa: S608  fixed text
            f"WHERE s.account_id = ? AND {_LIVES} ORDER BY s.seen_at DESC",
            (account_id, now_us, now_us),
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
