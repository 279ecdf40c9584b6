"""Two processes over one SQLite file, of which the older ends its calls: holds and the lead are always somebody's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from farebox.books.keeping import Bookkeeping, open_books
from farebox.clock import steady_clock
from farebox.errors import StoreUnavailable
from tests.books.shop import PLANS, Shop, open_shop


@asynccontextmanager
async def two(path: Path) -> AsyncIterator[tuple[Shop, Bookkeeping, Bookkeeping]]:
    """A shop over the books, the process that serves them, and one that takes over from it."""
    url = f"sqlite:///{path}/farebox.db"
    async with open_shop(url) as opened:
        pass
    old = await serve(url, path)
    new = await serve(url, path, old.store.copy_lock())
    shop = Shop(url, new.store)
    shop.alice, shop.keys, shop.catalogue = opened.alice, opened.keys, opened.catalogue
    try:
        yield shop, old, new
    finally:
        await new.close()


async def serve(url: str, path: Path, inherited_lock: int | None = None) -> Bookkeeping:
    return await open_books(
        url,
        plans=PLANS,
        clock=steady_clock(),
        spool=path / "spool",
        lease_s=30,
        warn=lambda *_, **__: None,
        alert=lambda *_, **__: None,
        inherited_lock=inherited_lock,
    )


async def until_looked_back(books: Bookkeeping) -> None:
    async with asyncio.timeout(5):
        while books.runs.predecessors:
            await books.beat()
            await asyncio.sleep(0.05)


async def test_the_lead_is_one_processs_and_passes_at_the_hand_over(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, old, new):
        await new.beat()
        assert (old.runs.leads, new.runs.leads) == (True, False)
        await old.runs.follow()
        await old.beat()
        assert (old.runs.leads, new.runs.leads) == (False, False)
        await new.beat()
        await old.beat()
        assert (old.runs.leads, new.runs.leads) == (False, True)
        await old.close()


async def test_holds_of_the_older_process_are_left_to_it_while_it_lives(tmp_path: Path) -> None:
    async with two(tmp_path) as (shop, old, new):
        request_id = (admission := shop.admission(shop.alice, 10**6)).request_id
        await old.ledger.admit(admission)
        await new.beat()
        await asyncio.sleep(0.6)  # longer than it waits between two looks back
        await new.beat()
        assert await shop.count("hold") == 1
        settled = await old.ledger.settle(shop.settlement(request_id, shop.alice, 1_000))
        assert settled.charged_nanos == 1_000
        await old.close()
        await until_looked_back(new)
        assert await new.store.fetch("SELECT kind FROM usage") == [("exact",)]


async def test_what_the_older_process_left_in_its_spool_is_charged_and_its_other_holds_are_free(tmp_path: Path) -> None:
    async with two(tmp_path) as (shop, old, new):
        spooled, lost = shop.admission(shop.alice, 10**6), shop.admission(shop.alice, 10**6)
        await old.ledger.admit(spooled)
        await old.ledger.admit(lost)
        assert await old.spool.put(shop.settlement(spooled.request_id, shop.alice, 1_000))
        await new.beat()
        assert await shop.count("hold") == 2
        await old.close()
        await until_looked_back(new)
        assert await shop.count("hold") == 0
        rows = await new.store.fetch("SELECT kind, charged_nanos FROM usage ORDER BY kind")
        assert rows == [("exact", 1_000), ("recovered", 0)]


async def test_what_a_dead_process_left_is_ended_although_the_books_could_not_be_written_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by `python -m tests.simulation --seed 20284123 --hours 25`: it was looked for once, and never again."""
    async with two(tmp_path) as (shop, old, new):
        await old.ledger.admit(shop.admission(shop.alice, 10**6))
        await new.beat()
        await old.store.close()  # without a word, as a killed one
        async with asyncio.timeout(5):
            with monkeypatch.context() as locked:
                tried = locked_out(locked, new)
                while not tried:
                    await new.beat()
                    await asyncio.sleep(0.05)
        assert await shop.count("hold") == 1
        await until_looked_back(new)
        assert await shop.count("hold") == 0


def locked_out(patch: pytest.MonkeyPatch, books: Bookkeeping) -> list[object]:
    """Have another process keep the database to itself; gives what could not be written, as it comes."""
    tried: list[object] = []

    async def refuse(statements: object, **_: object) -> None:
        tried.append(statements)
        raise StoreUnavailable("database is locked")

    patch.setattr(books.store, "write", refuse)
    return tried


async def test_a_second_process_is_refused_that_was_given_no_lock_or_that_of_other_books(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, old, new):
        (tmp_path / "other").mkdir()
        with pytest.raises(StoreUnavailable, match="another farebox serves"):
            await serve(f"sqlite:///{tmp_path}/farebox.db", tmp_path)
        with pytest.raises(StoreUnavailable, match="is not the database of the process that hands over"):
            await serve(f"sqlite:///{tmp_path}/other/farebox.db", tmp_path, old.store.copy_lock())
        await old.close()
        with pytest.raises(StoreUnavailable, match="another farebox serves"):
            await serve(f"sqlite:///{tmp_path}/farebox.db", tmp_path)
        assert await new.store.is_served()
