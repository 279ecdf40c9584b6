"""News of an account as it happens: one event stream for a browser (HTML standard, "Server-sent events").

The stream says what has changed; pages then ask for the parts of themselves that show it, so that markup is written
once. A hub looks into the store once a second, by one query for all accounts that somebody looks at: whichever process
made a change, everybody hears of it. Nothing is kept for a listener but which news it has not heard yet.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Final

import msgspec

from farebox.accounts.sessions import Session, Sessions
from farebox.books.sums import NEWEST_CALL
from farebox.clock import Clock
from farebox.errors import StoreUnavailable
from farebox.store.protocol import Store

MOST_OF_ACCOUNT: Final = 20
"""Streams of one account: a browser has one, however many tabs are open."""
MOST: Final = 2_000
"""Streams in all."""
_BEAT_S: Final = 15.0
"""A stream that has nothing to tell for so long says so: proxies end silent ones."""
_AGAIN_MS: Final = 2_000
_LOOK: Final = (
    "SELECT a.id, a.posted_nanos, a.held_nanos, a.status, a.verified_at, "  # noqa: S608  fixed texts
    f"{NEWEST_CALL}, "
    "(SELECT max(id) FROM api_key k WHERE k.account_id = a.id AND k.purpose = 'client'), "
    "(SELECT max(changed_at) FROM topup t WHERE t.account_id = a.id) FROM account a WHERE a.id IN ({})"
)


class State(msgspec.Struct, frozen=True):
    """What of an account makes news."""

    posted_nanos: int
    held_nanos: int
    status: str
    verified_at: int | None
    called_at: int | None
    newest_key: int | None
    topup_at: int | None

    def news(self, before: "State") -> list[str]:
        """Name what has changed. A charge is a call, whatever moment its row bears."""
        changes = {
            "balance": self.posted_nanos != before.posted_nanos or self.held_nanos != before.held_nanos,
            "calls": self.called_at != before.called_at or self.posted_nanos != before.posted_nanos,
            "steps": (self.verified_at, self.newest_key) != (before.verified_at, before.newest_key),
            "topup": self.topup_at != before.topup_at,
            "status": self.status != before.status,
        }
        return [name for name, changed in changes.items() if changed]


class Listener:
    """One stream, and the news it has not told yet: each kind once, however often it came."""

    def __init__(self, me: Session) -> None:
        self.account_id = me.account_id
        self.session = me.hash
        self.seen: State | None = None
        self.ended = False
        self._news: dict[str, None] = {}
        self._woken = asyncio.Event()

    def tell(self, news: Iterable[str]) -> None:
        self._news.update(dict.fromkeys(news))
        if self._news:
            self._woken.set()

    def end(self) -> None:
        self.ended = True
        self._woken.set()

    async def told(self) -> AsyncIterator[bytes]:
        """Give the text of the stream, until it ends."""
        yield b"retry: %d\nevent: hello\ndata:\n\n" % _AGAIN_MS
        while not self.ended:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _BEAT_S)
            if self.ended:
                return
            self._woken.clear()
            news, self._news = list(self._news), {}
            yield b"".join(b"event: %b\ndata:\n\n" % name.encode() for name in news) or b":\n\n"


class Hub:
    """All streams of this process."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._sessions = Sessions(store)
        self._clock = clock
        self._listeners: set[Listener] = set()
        self._announced: tuple[int, ...] = ()
        self._closed = False

    def __len__(self) -> int:
        return len(self._listeners)

    def listen(self, me: Session) -> Listener | None:
        """Open a stream; None where there are too many, or the gateway is about to stop."""
        own = sum(listener.account_id == me.account_id for listener in self._listeners)
        if self._closed or own >= MOST_OF_ACCOUNT or len(self._listeners) >= MOST:
            return None
        listener = Listener(me)
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def close(self) -> None:
        """End all streams, and open no more."""
        self._closed = True
        for listener in self._listeners:
            listener.end()

    async def look(self, announced: Iterable[int] = ()) -> None:
        """Tell everybody what has changed. Called about once a second; while the books are away nothing is told."""
        if not self._listeners:
            return
        with contextlib.suppress(StoreUnavailable):
            await self._end_signed_out()
            await self._tell_changes()
        shown = tuple(announced)
        if shown != self._announced:
            self._announced = shown
            for listener in self._listeners:
                listener.tell(("announcements",))

    async def _end_signed_out(self) -> None:
        asked = {listener.session for listener in self._listeners}
        alive = await self._sessions.alive(asked, self._clock())
        for listener in self._listeners:
            if listener.session in asked and listener.session not in alive:
                listener.end()

    async def _tell_changes(self) -> None:
        accounts = {listener.account_id for listener in self._listeners}
        rows = await self._store.fetch(_LOOK.format(", ".join("?" * len(accounts))), tuple(accounts))
        states: dict[int, State] = {row[0]: State(*row[1:]) for row in rows}
        for listener in self._listeners:
            now = states.get(listener.account_id)
            if now is not None and now != listener.seen:
                # what happened between the page and its stream is not known: everything may be new
                listener.tell(now.news(listener.seen) if listener.seen is not None else ("balance", "calls", "steps"))
                listener.seen = now
