"""What either store promises: what the database itself refuses, durability, other processes, commands that spoil."""

import asyncio
import random
from typing import Any

import pytest

from farebox.billing.ledger import Posted, Settled, Verdict
from farebox.books.ledger import Ledger, credit
from farebox.errors import BrokenInvariant, StoreConflict, StoreUnavailable
from farebox.store.open import open_store
from tests.books.shop import NOON_US, PLANS, Shop
from tests.cluster import Cluster
from tests.databases import on_postgresql, write


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE account SET posted_nanos = -1",
        "UPDATE account SET held_nanos = posted_nanos + 1",
        "UPDATE account SET held_nanos = -1",
        "UPDATE account SET open_holds = -1",
        "UPDATE account SET status = 'odd'",
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
    with pytest.raises(StoreConflict):
        write(shop.url, sql)


@on_postgresql
@pytest.mark.parametrize("table", ["usage", "transfer", "price_list", "day_close"])
async def test_no_table_of_entries_is_emptied(shop: Shop, table: str) -> None:
    with pytest.raises(StoreConflict):
        write(shop.url, f"TRUNCATE {table}")


async def test_what_another_process_changes_is_seen_by_the_next_call(shop: Shop) -> None:
    tool = await open_store(shop.url, plans=PLANS, clock=lambda: shop.now_us)
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
    tool = await open_store(shop.url, plans=PLANS, clock=lambda: shop.now_us)
    ledgers = (shop.ledger, Ledger(tool))
    deposits = [credit(f"c{n}", shop.bob, 1, code="credit", actor="test", memo="") for n in range(300)]

    async def deliver(ledger: Ledger, number: int) -> None:
        for deposit in deposits[number::3] + deposits[::-7]:
            await ledger.post(deposit)

    await asyncio.gather(*(deliver(ledger, number) for number in range(3) for ledger in ledgers))
    assert await shop.balance(shop.bob) == (300, 0, 0)
    await tool.close()


async def test_callers_cancelled_at_any_moment_leave_the_books_whole(shop: Shop) -> None:
    """Even twice, and while their commit is on its way. A hold that nobody could learn of is ended."""
    dice = random.Random(7)

    async def caller() -> None:
        while True:
            match dice.randrange(4):
                case 0:
                    await shop.store.write([("UPDATE account SET plan = 'pro' WHERE id = ?", (shop.bob,))])
                case 1:
                    await shop.store.changed_elsewhere()
                case _:
                    request_id, _ = await shop.admit(shop.alice, 10)
                    await shop.ledger.settle(shop.settlement(request_id, shop.alice, 1))

    for _ in range(30):
        tasks = [asyncio.create_task(caller()) for _ in range(10)]
        for task in tasks:
            await asyncio.sleep(dice.random() / 200)
            task.cancel()
            if dice.random() < 0.5:
                await asyncio.sleep(0)
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}
    await shop.ledger.drained()
    posted, held, count = await shop.balance(shop.alice)
    assert (held, count) == (10 * count, await shop.count("hold"))
    ((charged, settled),) = await shop.store.fetch("SELECT coalesce(sum(charged_nanos), 0), count(*) FROM usage")
    assert 10**9 - posted == charged
    assert settled > 100
    assert (await shop.admit(shop.alice, 10))[1].verdict is Verdict.ADMITTED


async def test_what_was_answered_is_there_after_the_books_are_opened_again(database_url: str) -> None:
    store = await open_store(database_url)
    await store.write([("INSERT INTO run (id, started_at) VALUES (1, ?)", (NOON_US,))])
    await store.close()
    store = await open_store(database_url, create=False)
    assert await store.fetch("SELECT started_at FROM run") == [(NOON_US,)]
    await store.close()


async def test_a_failed_statement_undoes_those_before_it(shop: Shop) -> None:
    insert = "INSERT INTO account (email, plan, created_at) VALUES (?, 'pro', 0)"
    with pytest.raises(StoreConflict):
        await shop.store.write([(insert, ("carol@example.com",)), (insert, ("bob@example.com",))])
    assert await shop.count("account") == 2


@on_postgresql
async def test_a_schema_of_a_newer_farebox_is_refused(database_url: str) -> None:
    write(database_url, "INSERT INTO schema_version (version) VALUES (99)")
    with pytest.raises(StoreUnavailable, match="upgrade"):
        await open_store(database_url)


async def test_a_database_without_tables_is_not_made_by_a_reader(cluster: Cluster) -> None:
    with cluster.database() as url:
        with pytest.raises(StoreUnavailable, match="has no books in it yet"):
            await open_store(url, create=False)
        await (await open_store(url)).close()
        await (await open_store(url, create=False)).close()


async def test_a_database_that_is_not_there_is_told_without_the_password(cluster: Cluster) -> None:
    url = cluster.url("nowhere", role="farebox:secret")
    with pytest.raises(StoreUnavailable, match=f"farebox@127.0.0.1:{cluster.port}/nowhere cannot be reached") as told:
        await open_store(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("odd", [{"kind": "no such kind"}, {"list_nanos": 2**70}, {"message_id": "\ud800"}])
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


@on_postgresql
async def test_an_id_too_long_for_an_index_spoils_its_own_command_alone(shop: Shop) -> None:
    long = "".join(chr(1_000 + number * 7_919 % 50_000) for number in range(4_000))
    posts = [credit(name, shop.bob, 1, code="credit", actor="test", memo="") for name in (long, "short")]
    answers = await asyncio.gather(*map(shop.ledger.post, posts), return_exceptions=True)
    assert isinstance(answers[0], BrokenInvariant)
    assert answers[1] == Posted(now=True)
