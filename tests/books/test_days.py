"""Day digests: each past day closed once, an hour after its end, and nothing gets into it afterwards."""

import hashlib
import json
from pathlib import Path

import asyncpg
import pytest

from farebox.billing.ledger import Verdict
from farebox.books import days
from farebox.books.audit import audit
from farebox.books.days import FIRST, close_days, digest_day
from farebox.books.keeping import open_books
from farebox.books.ledger import credit
from farebox.clock import DAY_US, day_of, day_start_us, steady_clock
from tests.books.nodes import CENT, open_node
from tests.books.shop import NOON_US, PLANS, Shop, open_shop
from tests.cluster import Cluster
from tests.databases import name_of, on_postgresql, on_sqlite

HOUR_US = 3_600 * 10**6
MIDNIGHT_US = day_start_us(day_of(NOON_US)) + DAY_US


async def test_a_day_is_closed_an_hour_after_its_end_and_only_once(shop: Shop) -> None:
    assert await close_days(shop.store, MIDNIGHT_US + HOUR_US - 1) == []
    assert await close_days(shop.store, MIDNIGHT_US + HOUR_US) == [day_of(NOON_US)]
    assert await close_days(shop.store, MIDNIGHT_US + HOUR_US) == []
    assert await shop.count("day_close") == 1


async def test_days_without_entries_are_links_of_the_chain_too(shop: Shop) -> None:
    closed = await close_days(shop.store, NOON_US + 4 * DAY_US)
    assert closed == [day_of(NOON_US + n * DAY_US) for n in range(4)]
    rows = await shop.store.fetch("SELECT previous_sha256, sha256, transfer_rows FROM day_close ORDER BY day")
    assert [row[0] for row in rows] == [FIRST, *(row[1] for row in rows[:-1])]
    assert [row[2] for row in rows] == [1, 0, 0, 0]


async def test_books_without_entries_have_no_days(database_url: str) -> None:
    async with open_shop(database_url, alice_nanos=0) as shop:
        assert await close_days(shop.store, NOON_US + 9 * DAY_US) == []


async def test_a_late_entry_lands_after_the_day_that_was_closed(shop: Shop) -> None:
    """A clock that was set back must not change a digest that somebody has kept."""
    await close_days(shop.store, MIDNIGHT_US + HOUR_US)
    before = await digest_day(shop.store, day_of(NOON_US), FIRST)
    shop.now_us = NOON_US
    await shop.call(shop.alice, 1, 1)
    await shop.ledger.post(credit("late", shop.bob, 5, code="credit", actor="test", memo=""))
    moments = await shop.store.fetch("SELECT at FROM usage UNION ALL SELECT at FROM transfer WHERE id = 'late'")
    assert [row[0] for row in moments] == [MIDNIGHT_US, MIDNIGHT_US]
    assert await digest_day(shop.store, day_of(NOON_US), FIRST) == before


async def test_a_digest_does_not_depend_on_how_it_is_paged(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(11):
        await shop.call(shop.alice, number, 1)
        await shop.ledger.post(credit(f"t{number}", shop.bob, 5, code="credit", actor="test", memo=""))
        shop.now_us += number % 3  # some at the same moment
    whole = await digest_day(shop.store, day_of(NOON_US), FIRST)
    assert (whole.usage_rows, whole.transfer_rows) == (11, 12)
    for page in (1, 2, 3, 5, 11):
        monkeypatch.setattr(days, "_PAGE", page)
        assert await digest_day(shop.store, day_of(NOON_US), FIRST) == whole


async def test_a_digest_can_be_worked_out_with_nothing_but_the_rows(shop: Shop) -> None:
    """As somebody would who trusts neither this code nor this machine: day, digest before, rows as JSON."""
    day = day_of(NOON_US)
    sha = hashlib.sha256(f"{day}\n{FIRST}\n".encode())
    rows = await shop.store.fetch(
        "SELECT at, id, debit_account, credit_account, amount_nanos, code, actor, memo FROM transfer"
    )
    sha.update(json.dumps(list(rows[0]), separators=(",", ":")).encode())
    assert (await digest_day(shop.store, day, FIRST)).sha256 == sha.hexdigest()


@on_sqlite
async def test_a_day_is_read_through_its_index(shop: Shop) -> None:
    """A page in the middle of a busy day must not sort the rest of the day."""
    for query, last in ((days._USAGE, ""), (days._TRANSFERS, "")):
        plan = await shop.store.fetch("EXPLAIN QUERY PLAN " + query, (0, last, 1, 10))
        words = " ".join(row[3] for row in plan)
        assert "_by_time (" in words, words
        assert "USE TEMP B-TREE FOR ORDER BY" not in words, words


@on_postgresql
async def test_a_busy_day_is_read_through_its_index(shop: Shop, cluster: Cluster) -> None:
    request_id, name = await shop.call(shop.alice, 1, 1), name_of(shop.url)
    columns = [row[0] for row in cluster.fetch(_COLUMNS, "usage", database=name)]
    copied = ", ".join({"request_id": "sha256(n::text::bytea)", "at": "at + n"}.get(one, one) for one in columns)
    cluster.execute(
        f"INSERT INTO usage ({', '.join(columns)}) SELECT {copied} FROM usage, generate_series(1, 50000) n "
        f"WHERE request_id = '\\x{request_id.hex()}'; "
        "INSERT INTO transfer SELECT 't' || n, at + n, debit_account, credit_account, 1, code, actor, memo "
        "FROM transfer, generate_series(1, 50000) n; ANALYZE",
        database=name,
    )
    for query, last in ((days._USAGE, b""), (days._TRANSFERS, "")):
        values = (NOON_US + 100, last, NOON_US + 40_000, 100)
        words = "\n".join(row[0] for row in await shop.store.fetch("EXPLAIN " + query, values))
        assert "_by_time on" in words, words
        assert "->  Sort" not in words, words


_COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_name = $1 ORDER BY ordinal_position"


async def test_limits_go_by_the_clock_even_where_days_of_the_future_are_closed(shop: Shop) -> None:
    """A server that once began with its clock days ahead must not be stopped for days when that is put right."""
    await close_days(shop.store, NOON_US + 3 * DAY_US)
    now_us = shop.now_us
    for seconds, per_minute in ((0, 100_000), (30, 50_000)):
        shop.now_us = now_us + seconds * 10**6
        await shop.store.write([("UPDATE account SET requests_full_ns = ?", ((now_us + 60 * 10**6) * 1000,))])
        _, admission = await shop.admit(shop.alice, 1)
        assert admission.requests is not None
        assert admission.verdict is (Verdict.ADMITTED if seconds else Verdict.REQUESTS_LIMITED)
        assert admission.requests.remaining == (per_minute - 1 if seconds else 0)


@on_postgresql
async def test_a_day_is_not_closed_while_an_entry_of_it_waits_to_be_seen(database_url: str) -> None:
    """A commit may wait for hours: for a standby that is away, or in a machine that was frozen."""
    async with open_node(database_url) as node:
        request_id = await node.hold(CENT)
        waiting = await asyncpg.connect(database_url)
        try:
            async with waiting.transaction():
                await waiting.execute("SELECT 1 FROM account WHERE id = $1 FOR NO KEY UPDATE", node.account)
                now_us = node.clock()
                assert await close_days(node.store, now_us + 2 * DAY_US) == []
                await waiting.execute(_ENTRY, now_us)
            assert await node.rows("SELECT id FROM transfer WHERE at = ?", now_us) == [("awaited",)]
        finally:
            await waiting.close()
        await node.ledger.settle(node.settlement(request_id, 5))
        assert day_of(now_us) in await close_days(node.store, now_us + 2 * DAY_US)
        assert all(check.ok for check in await audit(node.store) if check.name == "day digests")


_ENTRY = (
    "INSERT INTO transfer (id, at, debit_account, credit_account, amount_nanos, code, actor, memo) "
    "VALUES ('awaited', $1, 'house:cash', 'house:promotion', 1, 'credit', 'test', '')"
)


@on_postgresql
async def test_days_are_closed_by_the_clock_that_dates_their_entries(database_url: str, tmp_path: Path) -> None:
    """The database's may have been set back since this process first asked for it."""
    async with open_node(database_url):
        pass

    def alarm(event: str, **_: object) -> None:
        raise AssertionError(event)

    books = await open_books(
        database_url, plans=PLANS, clock=steady_clock(), spool=tmp_path, lease_s=30, warn=alarm, alert=alarm
    )
    try:
        await books.beat()
        right = books.clock
        books.clock = lambda: right() + 9 * DAY_US
        assert books.runs.leads
        assert await books.close_days() == []
    finally:
        await books.close()
