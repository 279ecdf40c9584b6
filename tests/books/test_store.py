"""The SQLite store: what the database itself refuses, durability, one server, other processes, a full disk."""

import asyncio
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from farebox.billing.ledger import Settled, Verdict
from farebox.books.ledger import Ledger, credit
from farebox.errors import BrokenInvariant, StoreConflict, StoreUnavailable
from farebox.ids import new_request_id
from farebox.store import sqlite
from farebox.store.sqlite import OLDEST_SQLITE, database_path, open_store
from tests.books.shop import NOON_US, PLANS, Shop


def raw(shop: Shop) -> apsw.Connection:
    """Somebody with a SQL prompt."""
    connection = apsw.Connection(str(shop.store.path))
    connection.set_busy_timeout(5_000)
    return connection


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE account SET posted_nanos = -1",
        "UPDATE account SET held_nanos = posted_nanos + 1",
        "UPDATE account SET held_nanos = -1",
        "UPDATE account SET open_holds = -1",
        "UPDATE account SET status = 'odd'",
        "UPDATE account SET posted_nanos = 1.5",
        "UPDATE hold SET amount_nanos = -1",
        "INSERT INTO transfer VALUES ('x', 0, 'house:cash', 'customer:1', 0, 'deposit', '', '')",
        "INSERT INTO transfer VALUES ('x', 0, 'house:cash', 'customer:1', -5, 'deposit', '', '')",
        "INSERT INTO transfer VALUES ('x', 0, 'house:cash', 'house:cash', 5, 'deposit', '', '')",
        "INSERT INTO transfer VALUES ('first:alice@example.com', 0, 'house:cash', 'customer:1', 5, '', '', '')",
        "UPDATE usage SET output_tokens = 0",
        "DELETE FROM usage",
        "UPDATE transfer SET amount_nanos = 1",
        "DELETE FROM transfer",
        "UPDATE price_list SET models = '[]'",
        "DELETE FROM price_list",
        "UPDATE day_close SET sha256 = ''",
        "DELETE FROM day_close",
    ],
)
async def test_the_database_itself_refuses_what_must_never_be(shop: Shop, sql: str) -> None:
    await shop.call(shop.alice, 10, 10)
    await shop.admit(shop.alice, 10)
    day = "INSERT INTO day_close VALUES ('2020-01-01', 0, 0, '', '', 0)"
    await shop.store.write([(day, ())])
    with pytest.raises(apsw.ConstraintError):
        raw(shop).execute(sql)


async def test_every_commit_is_synced_and_nothing_is_mapped(shop: Shop) -> None:
    for connection in (shop.store._writer, shop.store._reader):
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
        await open_store(shop.store.path, serving=True)
    tool = await open_store(shop.store.path)
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


async def test_what_another_process_changes_is_seen_by_the_next_call(shop: Shop) -> None:
    tool = await open_store(shop.store.path, plans=PLANS, clock=lambda: shop.now_us)
    await shop.admit(shop.alice, 1)  # alice and her key are cached now
    await tool.write([("UPDATE account SET status = 'suspended' WHERE id = ?", (shop.alice,))])
    assert (await shop.admit(shop.alice, 1))[1].verdict is Verdict.SUSPENDED
    await tool.write([("UPDATE account SET status = 'active' WHERE id = ?", (shop.alice,))])
    assert (await shop.admit(shop.alice, 1))[1].verdict is Verdict.ADMITTED
    assert (await shop.admit(shop.bob, 1))[1].verdict is Verdict.INSUFFICIENT
    await Ledger(tool).post(credit("c", shop.bob, 5, code="credit", actor="test", memo=""))
    assert (await shop.admit(shop.bob, 5))[1].verdict is Verdict.ADMITTED
    await tool.write([("UPDATE api_key SET revoked_at = 1 WHERE account_id = ?", (shop.bob,))])
    assert (await shop.admit(shop.bob, 0))[1].verdict is Verdict.KEY_INVALID
    assert await shop.store.changed_elsewhere()
    assert not await shop.store.changed_elsewhere()
    await tool.close()


async def test_two_processes_that_write_at_once_lose_nothing(shop: Shop) -> None:
    tool = await open_store(shop.store.path, plans=PLANS, clock=lambda: shop.now_us)
    ledgers = (shop.ledger, Ledger(tool))
    deposits = [credit(f"c{n}", shop.bob, 1, code="credit", actor="test", memo="") for n in range(300)]

    async def deliver(ledger: Ledger, number: int) -> None:
        for deposit in deposits[number::3] + deposits[::-7]:
            await ledger.post(deposit)

    await asyncio.gather(*(deliver(ledger, number) for number in range(3) for ledger in ledgers))
    assert await shop.balance(shop.bob) == (300, 0, 0)
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
    shop.store._writing.put(slow_disk.wait)
    task = asyncio.create_task(shop.store.apply([shop.admission(shop.alice, 10)]))
    for _ in range(4):
        await asyncio.sleep(0.01)
        assert shop.store._turn.locked()
        task.cancel()
    slow_disk.set()
    assert (await shop.admit(shop.alice, 10))[1].verdict is Verdict.ADMITTED
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await shop.balance(shop.alice) == (10**9, 20, 2)


async def test_a_full_disk_answers_everybody_and_leaves_nothing_half_done(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 100)
    pages = shop.store._writer.pragma("page_count")
    shop.store._writer.pragma("max_page_count", pages)
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
    shop.store._writer.pragma("max_page_count", 2**30)
    assert (await shop.ledger.settle(shop.settlement(request_id, shop.alice, 7))).now
    assert await shop.balance(shop.alice) == (10**9 - 7, admitted, admitted)


async def test_a_commit_that_fails_is_as_if_it_had_never_begun(shop: Shop) -> None:
    """The cache of balances must not keep what the disk does not have."""
    await shop.admit(shop.alice, 100)
    writer = shop.store._writer
    real = shop.store.books._connection

    class Failing:
        """The same connection, whose COMMIT fails."""

        def execute(self, sql: str, *more: Any) -> Any:
            if sql == "COMMIT":
                raise apsw.IOError("disk I/O error")
            return real.execute(sql, *more)

        def __getattr__(self, name: str) -> Any:
            return getattr(writer, name)

    shop.store.books._connection = Failing()  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable):
        await shop.admit(shop.alice, 10**9 - 100)
    shop.store.books._connection = real
    assert await shop.balance(shop.alice) == (10**9, 100, 1)
    assert (await shop.admit(shop.alice, 10**9 - 100))[1].verdict is Verdict.ADMITTED


async def test_a_lock_held_for_too_long_is_an_answer_and_not_a_wait_for_ever(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_MS", 50)
    intruder = raw(shop)
    intruder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"busy|locked"):
        await shop.admit(shop.alice, 1)
    intruder.execute("ROLLBACK")
    assert (await shop.admit(shop.alice, 1))[1].verdict is Verdict.ADMITTED


async def test_what_was_answered_is_there_after_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await open_store(path)
    await store.write([("INSERT INTO run (started_at) VALUES (?)", (NOON_US,))])
    await store.close()
    store = await open_store(path, create=False)
    assert await store.fetch("SELECT started_at FROM run") == [(NOON_US,)]
    await store.close()


async def test_a_failed_statement_undoes_those_before_it(shop: Shop) -> None:
    insert = "INSERT INTO account (email, plan, created_at) VALUES (?, 'pro', 0)"
    with pytest.raises(StoreConflict):
        await shop.store.write([(insert, ("carol@example.com",)), (insert, ("bob@example.com",))])
    assert await shop.count("account") == 2


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


@pytest.mark.parametrize("odd", [{"stop_reason": {"no": "text"}}, {"list_nanos": 2**70}, {"message_id": "\ud800"}])
async def test_a_value_that_fits_no_column_spoils_its_own_command_alone(shop: Shop, odd: dict[str, Any]) -> None:
    first, _ = await shop.admit(shop.alice, 100)
    second, _ = await shop.admit(shop.alice, 100)
    answers = await asyncio.gather(
        shop.ledger.settle(shop.settlement(first, shop.alice, **odd)),
        shop.ledger.settle(shop.settlement(second, shop.alice, 7)),
        return_exceptions=True,
    )
    assert isinstance(answers[0], BrokenInvariant)
    assert answers[1] == Settled(7, 0, now=True)
    assert await shop.store.fetch("SELECT request_id FROM hold") == [(first,)]
