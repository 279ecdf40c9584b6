"""Opens the books behind a URL: SQLite for one process, PostgreSQL for many."""

from pathlib import Path

from farebox.billing.plans import Plans
from farebox.clock import Clock
from farebox.store import postgres, sqlite
from farebox.store.protocol import Store
from farebox.store.urls import is_postgres


async def open_store(
    url: str | Path,
    *,
    plans: Plans | None = None,
    clock: Clock | None = None,
    create: bool = True,
    serving: bool = False,
    inherited_lock: int | None = None,
) -> Store:
    """Open the books at sqlite:///path, a plain path, or postgresql://user@host/name.

    An empty database gets its tables, unless `create` forbids it. Raises StoreUnavailable, also for a schema that is
    not the one known here.
    """
    if is_postgres(url):
        return await postgres.open_store(str(url), plans=plans, clock=clock, create=create, serving=serving)
    return await sqlite.open_store(
        url, plans=plans, clock=clock, create=create, serving=serving, inherited_lock=inherited_lock
    )
