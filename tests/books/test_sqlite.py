"""Only SQLite: one file, one serving process, one writer thread; a disk that is full, slow or broken."""

import asyncio
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from farebox.billing.ledger import Verdict
from farebox.errors import BrokenInvariant, StoreConflict, StoreUnavailable
from farebox.ids import new_request_id
from farebox.store import sqlite
from farebox.store.sqlite import OLDEST_SQLITE, SqliteStore, database_path, open_store
from tests.books.shop import Shop
from tests.databases import write


@pytest.fixture(scope="module")
def database_kind() -> str:
    return "sqlite"


def store_of(shop: Shop) -> SqliteStore:
    assert isinstance(shop.store, SqliteStore)
    return shop.store


async def test_an_amount_is_a_whole_number(shop: Shop) -> None:
    with pytest.raises(StoreConflict):
        write(shop.url, "UPDATE account SET posted_nanos = 1.5")


async def test_what_is_no_text_spoils_its_command(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 100)
    with pytest.raises(BrokenInvariant):
        await shop.ledger.settle(shop.settlement(request_id, shop.alice, stop_reason={"no": "text"}))


async def test_every_commit_is_synced_and_nothing_is_mapped(shop: Shop) -> None:
    for connection in (store_of(shop)._writer, store_of(shop)._reader):
        assert connection.pragma("journal_mode") == "wal"
        assert connection.pragma("synchronous") == 2  # FULL
        assert connection.pragma("foreign_keys") == 1
        assert connection.pragma("mmap_size") == 0


def test_the_file_is_the_owners_alone_and_the_reader_cannot_write(tmp_path: Path) -> None:
    async def work() -> None:
        store = await open_store(tmp_path / "a.db")
        with pytest.raises(StoreUnavailable, match="readonly"):
            await store.fetch("INSERT INTO run (started_at) VALUES (1)")
        await store.close()

    asyncio.run(work())
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600


async def test_a_second_serving_process_is_refused_and_a_tool_is_not(shop: Shop) -> None:
    with pytest.raises(StoreUnavailable, match="another farebox serves"):
        await open_store(store_of(shop).path, serving=True)
    tool = await open_store(store_of(shop).path)
    assert await tool.is_served()
    await tool.close()


async def test_the_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    program = (
        "import asyncio, os, sys\n"
        "from farebox.store.sqlite import open_store\n"
        "async def main():\n"
        "    await open_store(sys.argv[1], serving=True)\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"open\n"
    tool = await open_store(path)
    assert await tool.is_served()
    with pytest.raises(StoreUnavailable, match="another farebox serves"):
        await open_store(path, serving=True)
    child.kill()
    await child.wait()
    assert not await tool.is_served()
    server = await open_store(path, serving=True)
    assert await tool.is_served()
    await server.close()
    assert not await tool.is_served()
    await tool.close()


async def test_callers_cancelled_at_any_moment_leave_the_books_whole(shop: Shop) -> None:
    """Even twice, and while their commit is on its way to the disk."""
    dice = random.Random(7)

    async def caller() -> None:
        while True:
            match dice.randrange(4):
                case 0:
                    await shop.store.write([("UPDATE account SET plan = 'pro' WHERE id = ?", (shop.bob,))])
                case 1:
                    await shop.store.changed_elsewhere()
                case _:
                    request_id = new_request_id(shop.now_us)
                    await shop.store.apply([shop.admission(shop.alice, 10, request_id=request_id)])
                    await shop.store.apply([shop.settlement(request_id, shop.alice, 1)])

    for _ in range(60):
        tasks = [asyncio.create_task(caller()) for _ in range(10)]
        for task in tasks:
            await asyncio.sleep(dice.random() / 1_000)
            task.cancel()
            if dice.random() < 0.5:
                await asyncio.sleep(0)
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}
    posted, held, count = await shop.balance(shop.alice)
    assert (held, count) == (10 * count, await shop.count("hold"))
    charged = "SELECT coalesce(sum(charged_nanos), 0), count(*) FROM usage"
    assert (10**9 - posted, 10**9 - posted) == (await shop.store.fetch(charged))[0]
    assert (await shop.admit(shop.alice, 10))[1].verdict is Verdict.ADMITTED


async def test_a_commit_under_way_keeps_its_turn_however_often_its_caller_is_cancelled(shop: Shop) -> None:
    """Else the next batch would begin on a connection whose last one has not ended."""
    slow_disk = threading.Event()
    store_of(shop)._writing.put(slow_disk.wait)
    task = asyncio.create_task(shop.store.apply([shop.admission(shop.alice, 10)]))
    for _ in range(4):
        await asyncio.sleep(0.01)
        assert store_of(shop)._turn.locked()
        task.cancel()
    slow_disk.set()
    assert (await shop.admit(shop.alice, 10))[1].verdict is Verdict.ADMITTED
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await shop.balance(shop.alice) == (10**9, 20, 2)


async def test_a_full_disk_answers_everybody_and_leaves_nothing_half_done(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 100)
    pages = store_of(shop)._writer.pragma("page_count")
    store_of(shop)._writer.pragma("max_page_count", pages)
    results: list[Any] = []
    for _ in range(200):
        results += await asyncio.gather(*(shop.admit(shop.alice, 1) for _ in range(20)), return_exceptions=True)
        if isinstance(results[-1], StoreUnavailable):
            break
    assert isinstance(results[-1], StoreUnavailable)
    assert all(isinstance(result, tuple | StoreUnavailable) for result in results)
    admitted = sum(isinstance(result, tuple) for result in results)
    assert await shop.count("hold") == admitted + 1
    assert await shop.balance(shop.alice) == (10**9, admitted + 100, admitted + 1)
    store_of(shop)._writer.pragma("max_page_count", 2**30)
    assert (await shop.ledger.settle(shop.settlement(request_id, shop.alice, 7))).now
    assert await shop.balance(shop.alice) == (10**9 - 7, admitted, admitted)


async def test_a_commit_that_fails_is_as_if_it_had_never_begun(shop: Shop) -> None:
    """The cache of balances must not keep what the disk does not have."""
    await shop.admit(shop.alice, 100)
    writer = store_of(shop)._writer
    real = store_of(shop).books._connection

    class Failing:
        """The same connection, whose COMMIT fails."""

        def execute(self, sql: str, *more: Any) -> Any:
            if sql == "COMMIT":
                raise apsw.IOError("disk I/O error")
            return real.execute(sql, *more)

        def __getattr__(self, name: str) -> Any:
            return getattr(writer, name)

    store_of(shop).books._connection = Failing()  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable):
        await shop.admit(shop.alice, 10**9 - 100)
    store_of(shop).books._connection = real
    assert await shop.balance(shop.alice) == (10**9, 100, 1)
    assert (await shop.admit(shop.alice, 10**9 - 100))[1].verdict is Verdict.ADMITTED


async def test_a_lock_held_for_too_long_is_an_answer_and_not_a_wait_for_ever(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_MS", 50)
    intruder = apsw.Connection(str(store_of(shop).path))
    intruder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"busy|locked"):
        await shop.admit(shop.alice, 1)
    intruder.execute("ROLLBACK")
    assert (await shop.admit(shop.alice, 1))[1].verdict is Verdict.ADMITTED


async def test_a_schema_of_a_newer_farebox_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await (await open_store(path)).close()
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 99)
    connection.close()
    with pytest.raises(StoreUnavailable, match="upgrade"):
        await open_store(path)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await open_store(path)


async def test_a_database_that_is_not_there_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="there is no database"):
        await open_store(tmp_path / "a.db", create=False)


def test_sqlite_has_the_fix_for_its_wal() -> None:
    assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= OLDEST_SQLITE


async def test_an_sqlite_that_can_corrupt_its_wal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "OLDEST_SQLITE", (99, 0, 0))
    with pytest.raises(StoreUnavailable, match=r"99\.0\.0"):
        await open_store(tmp_path / "a.db")


@pytest.mark.parametrize(
    ("url", "path"),
    [("sqlite:///farebox.db", "farebox.db"), ("sqlite:////var/lib/f.db", "/var/lib/f.db"), ("a/b.db", "a/b.db")],
)
def test_a_database_is_named_by_url_or_path(url: str, path: str) -> None:
    assert database_path(url) == Path(path)
