"""Which upstreams the operator has drained: kept in the database, so that every process does as was said."""

from farebox.store.protocol import Reading
from farebox.upstreams.pool import Pool


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
            rows = await self._store.fetch("SELECT name FROM upstream_switch")
        except BaseException:
            self.is_stale = True
            raise
        self._pool.drain({name for (name,) in rows})
