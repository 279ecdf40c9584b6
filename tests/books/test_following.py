"""What is kept in memory and read anew when another process has changed it: nothing said meanwhile is missed."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from farebox.accounts.stopped_sessions import StoppedSessions
from farebox.billing.pricing import Catalogue, PriceList
from farebox.books.prices import Prices
from farebox.errors import StoreUnavailable
from farebox.store.protocol import Row, Store
from farebox.upstreams.pool import Pool
from farebox.upstreams.switches import Switches


class Slow:
    """A database whose answer is as things were when it was asked."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.asked = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def fetch(self, *_: Any) -> list[Row]:
        self.asked.set()
        await self.goes_on.wait()
        return self.rows

    async def fail(self, *_: Any) -> list[Row]:
        raise StoreUnavailable("away")


class NoPool:
    def drain(self, _names: set[str]) -> None:
        pass


def prices(store: Slow) -> Any:
    kept = Prices(cast("Store", store), Catalogue(PriceList(1, ())))
    return kept, kept.follow


def switches(store: Slow) -> Any:
    kept = Switches(cast("Store", store), cast("Pool", NoPool()))
    return kept, kept.follow


def sessions(store: Slow) -> Any:
    kept = StoppedSessions(cast("Store", store), "/")
    return kept, kept.refresh


@pytest.mark.parametrize(("kind", "row"), [(prices, (2, b"[]")), (switches, ("a",)), (sessions, (1, "s"))])
async def test_what_changes_while_it_is_read_is_read_again(kind: Callable[[Slow], Any], row: Row) -> None:
    store = Slow([row])
    kept, follow = kind(store)
    kept.is_stale = True
    reading = asyncio.create_task(follow())
    await store.asked.wait()
    kept.is_stale = True  # as the job does that learns of another process's change
    store.goes_on.set()
    await reading
    assert kept.is_stale
    await follow()
    assert not kept.is_stale
    store.fetch = store.fail  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await follow()
    assert kept.is_stale
