"""The roster: which upstreams there are, those of the configuration and those that operators have entered.

What is entered, changed or removed while it serves reaches the pool of every process; what cannot be used is told of
and left out, and never keeps a process from serving with the others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from farebox.errors import FareboxError
from farebox.store.protocol import Reading
from farebox.upstreams.checks import problems
from farebox.upstreams.entries import Entry, Opener, list_entries, opened
from farebox.upstreams.fields import said_by
from farebox.upstreams.pool import Pool
from farebox.upstreams.settings import UpstreamSettings
from farebox.upstreams.upstream import Upstream

_LEAVES_S: Final = 5.0
"""How long an upstream that is changed or removed is kept at least: a call that has just chosen it still gets there."""

Source = Literal["file", "admin"]
"""Where an upstream was entered: in the configuration file, or in admin or by command."""

_SHADOWED: Final = "the configuration file has an upstream of that name, which is the one in force: rename one of them"


class Broken(Struct, frozen=True):
    """An upstream that was entered and cannot be used, and why, in words without anything secret."""

    name: str
    kind: str
    words: str


_TUNED: Final = frozenset(
    {
        *("weight", "priority", "concurrency", "organization", "models"),
        *("connections", "connect_s", "first_byte_s", "stall_s"),
    }
)
"""Settings of how much goes there, and how patiently: neither where it is nor who is let in."""


class _Made(Struct, frozen=True):
    """What came of a row: an upstream, or why there is none."""

    entry: Entry
    upstream: Upstream | None
    trouble: str = ""


class Roster:
    """Brings what was entered to the pool of this process. `make` makes an upstream; it may start what that needs."""

    def __init__(
        self,
        store: Reading,
        pool: Pool,
        seals: Opener,
        make: Callable[[UpstreamSettings], Awaitable[Upstream]],
        alert: Callable[..., Any],
    ) -> None:
        self._store = store
        self._pool = pool
        self._configured: Sequence[Upstream] = tuple(pool.upstreams)
        self._seals = seals
        self._make = make
        self._alert = alert
        self._made: dict[str, _Made] = {}
        self._leaving: list[tuple[Upstream, float]] = []
        self._turn = asyncio.Lock()
        self.is_stale = True
        """Whether something may have been entered since this was last looked up."""

    @property
    def broken(self) -> list[Broken]:
        """Tell which were entered and cannot be used."""
        made = self._made.values()
        return [Broken(one.entry.name, kind_of(one.entry), one.trouble) for one in made if one.trouble]

    def source(self, name: str) -> Source:
        """Tell where an upstream was entered."""
        return "file" if self._is_configured(name) else "admin"

    async def follow(self) -> None:
        """Have the upstreams that the database tells of now. Raises StoreUnavailable; then all stays as it is.

        Calls under way at one that has changed end there. What is known of its health stays known, unless it is another
        address or credential: that begins anew.
        """
        async with self._turn:
            self.is_stale = False  # before it is read: what is entered meanwhile makes it stale again
            try:
                entries = await list_entries(self._store)
            except BaseException:
                self.is_stale = True
                raise
            before, self._made = self._made, {}
            for entry in entries:
                known = before.get(entry.name)
                same = known is not None and known.entry == entry
                self._made[entry.name] = known if known and same else await self._look_at(entry, known)
            found = [one.upstream for one in self._made.values() if one.upstream is not None]
            upstreams = [*self._configured, *found]
            gone = [one for one in self._pool.upstreams if one not in upstreams]
            if gone or upstreams != list(self._pool.upstreams):
                self._pool.replace(upstreams)
            self._leaving += [(one, asyncio.get_running_loop().time()) for one in gone]

    async def tend(self) -> None:
        """Close the connections of upstreams that have been changed or removed, once no call is under way there."""
        now = asyncio.get_running_loop().time()
        over = [one for one, since in self._leaving if now - since >= _LEAVES_S and not one.is_used]
        self._leaving = [(one, since) for one, since in self._leaving if one not in over]
        for one in over:
            await _close(one)

    async def close(self) -> None:
        """Close those that are still leaving."""
        leaving, self._leaving = self._leaving, []
        for one, _ in leaving:
            await _close(one)

    def _is_configured(self, name: str) -> bool:
        return any(one.name == name for one in self._configured)

    async def _look_at(self, entry: Entry, before: _Made | None) -> _Made:
        """Make the upstream of a row, as drained as it was before."""
        if self._is_configured(entry.name):
            return self._unusable(entry, _SHADOWED)
        try:
            settings = opened(entry, self._seals)
            for field, problem in problems(settings, said_by(settings)):
                return self._unusable(entry, f"{field} {problem}")
            upstream = await self._make(settings)
        except (FareboxError, ValueError) as error:
            return self._unusable(entry, str(error))
        if before is not None and before.upstream is not None:
            upstream.drained = before.upstream.drained
            if _way_of(before.entry) == _way_of(entry):
                upstream.go_on_from(before.upstream)
        return _Made(entry, upstream)

    def _unusable(self, entry: Entry, words: str) -> _Made:
        self._alert("upstream_unusable", upstream=entry.name, error=words)
        return _Made(entry, None, words)


def _way_of(entry: Entry) -> tuple[object, ...]:
    """Give what makes it the same server and account."""
    return entry.secrets, {name: value for name, value in entry.values.items() if name not in _TUNED}


async def _close(upstream: Upstream) -> None:
    await upstream.client.close()
    await upstream.kind.close()


def kind_of(entry: Entry) -> str:
    """Name the kind of a row, whatever else may be wrong with it."""
    return str(entry.values.get("kind", ""))
