"""Room for calls to come, and none for those that were let go: what each kind of database does for books that grow."""

from typing import Final

from farebox.store.protocol import Store

_PORTION: Final = 2_000
"""Calls that an SQLite file loses at a time: those that come meanwhile wait a few milliseconds."""
_MONTHS_AHEAD: Final = 3
_PATIENCE_S: Final = 600.0


async def make_room(store: Store) -> None:
    """Make the partitions of this month and the next ones where they are not there; SQLite needs none.

    Calls go into `usage_other` for want of one, and move out of it as it is made. Raises StoreUnavailable, also when
    somebody reads the calls for longer than those who serve may wait: trying again later is all there is to do.
    """
    if store.shared:
        for months in range(_MONTHS_AHEAD + 1):
            await store.fetch("SELECT make_usage_month(month_begin(now_us(), ?::int))", (months,))


async def drop_calls(store: Store, before_us: int) -> None:
    """Let go of all calls before a moment. Their days must be dropped: the database itself refuses any other.

    In PostgreSQL whole partitions go at once; an SQLite file loses a few at a time, and keeps its size: what is free in
    it is used again. Begun anew after whatever ended it. Raises StoreConflict, and StoreUnavailable as above.
    """
    if store.shared:
        await store.fetch("SELECT drop_usage(?)", (before_us,), patience_s=_PATIENCE_S)
        return
    some = "DELETE FROM usage WHERE request_id IN (SELECT request_id FROM usage WHERE at < ? ORDER BY at LIMIT ?)"
    while (await store.write([(some, (before_us, _PORTION))]))[0]:
        pass
