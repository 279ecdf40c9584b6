"""Which upstreams the operator has drained: kept in the database, so that every process does as was said."""

from typing import Final

from farebox.store.protocol import Reading, Statement
from farebox.upstreams.pool import Pool

_DRAIN: Final = "INSERT INTO upstream_switch (name, drained_at) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
_ENABLE: Final = "DELETE FROM upstream_switch WHERE name = ?"


def switch(name: str, now_us: int, *, drained: bool) -> Statement:
    """Make the statement that drains an upstream, or enables it again."""
    return (_DRAIN, (name, now_us)) if drained else (_ENABLE, (name,))


async def drained_names(store: Reading) -> set[str]:
    """Name the upstreams that are drained."""
    return {name for (name,) in await store.fetch("SELECT name FROM upstream_switch")}


class Switches:
    """Brings the operator's word to the pool of this process."""

    def __init__(self, store: Reading, pool: Pool) -> None:
        self._store = store
        self._pool = pool
        self.is_stale = True
        """Whether something may have been switched since this was last looked up."""

    async def follow(self) -> None:
        """Do as the database says. Raises StoreUnavailable; then all stays as it is, and this is stale."""
        self.is_stale = False  # before it is read: what is switched meanwhile makes it stale again
        try:
            names = await drained_names(self._store)
        except BaseException:
            self.is_stale = True
            raise
        self._pool.drain(names)
