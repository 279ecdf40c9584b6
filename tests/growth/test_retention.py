"""Months of calls are let go only when they are closed, hold and are summed; everything else goes on being right."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from msgspec.structs import replace

from farebox.billing.ledger import Verdict
from farebox.books.audit import audit
from farebox.books.days import close_days, close_hours
from farebox.books.figures import Figures
from farebox.books.ledger import credit
from farebox.books.moving import move
from farebox.books.receipts import month_of
from farebox.books.reports import entries, totals
from farebox.books.retention import drop_months, first_kept, kept, month_begin_us
from farebox.books.statement import whole_statement
from farebox.clock import DAY_US, day_of, day_start_us
from farebox.errors import FareboxError, StoreConflict
from farebox.store.growth import make_room
from farebox.store.open import open_store
from farebox.store.protocol import Store
from tests.books.shop import Shop, open_shop
from tests.books.tampering import broken, tamper_with
from tests.databases import on_postgresql
from tests.growth.books import Size, fill

MONTH_US = day_start_us("2026-07-01")
NOW_US = day_start_us("2026-09-20") + 5_000_000


@asynccontextmanager
async def books(url: str, *, calls: int = 700) -> AsyncIterator[Store]:
    """Calls of eighty days until late in September, every day of them closed by its digest."""
    await fill(url, Size(calls, 80, 5), NOW_US, lambda _: None, digests=True)
    store = await open_store(url, clock=lambda: NOW_US)
    try:
        yield store
    finally:
        await store.close()


async def what_is_told(store: Store) -> list[object]:
    """Everything that must not change as calls go: statements by the day, sums, figures, totals."""
    told: list[object] = [await totals(store)]
    for account_id in (1, 2, 3):
        by_day: dict[str, int] = {}
        async for line in whole_statement(store, account_id, 10_000):
            by_day[day_of(line.mark.at_us)] = by_day.get(day_of(line.mark.at_us), 0) + line.amount_nanos
        balances = [line.balance_nanos async for line in whole_statement(store, account_id, 1)]
        months = [await month_of(store, account_id, name) for name in ("2026-07", "2026-08", "2026-09")]
        figures = await Figures.read(store, account_id, NOW_US)
        days = await figures.by_day(MONTH_US // DAY_US, NOW_US // DAY_US, "key")
        hours = await figures.by_hour(MONTH_US // DAY_US * 24, MONTH_US // DAY_US * 24 + 99, "model")
        told += [by_day, balances, months, days, hours]
    return told


async def test_a_dropped_month_changes_no_figure_and_the_audit_still_proves_the_books(database_url: str) -> None:
    async with books(database_url) as store:
        before = await what_is_told(store)
        august = day_start_us("2026-08-01")
        going = (await store.fetch("SELECT count(*) FROM usage WHERE at < ?", (august,)))[0][0]
        assert going > 200
        assert await drop_months(store, 1, NOW_US) == going
        assert await first_kept(store) == august
        assert (await store.fetch("SELECT min(at) FROM usage"))[0][0] >= august
        assert await what_is_told(store) == before
        assert broken(await audit(store)) == set()
        said = await kept(store)
        assert (said.dropped_calls, said.kept_us) == (going, august)
        assert await drop_months(store, 1, NOW_US) == 0


async def test_balances_in_the_middle_of_dropped_days_add_up_line_by_line(database_url: str) -> None:
    async with books(database_url) as store:
        await drop_months(store, 1, NOW_US)
        for account_id in (1, 2):
            lines = [line async for line in whole_statement(store, account_id, 10_000)]
            for newer, older in pairwise(lines):
                assert newer.balance_nanos - newer.amount_nanos == older.balance_nanos
            assert lines[-1].balance_nanos == lines[-1].amount_nanos
            assert "usage_day" in {line.code for line in lines}
            told = await entries(store, account_id=account_id)
            assert told[-1].balance_nanos == lines[0].balance_nanos


async def test_nothing_goes_that_is_not_proved(database_url: str, request: pytest.FixtureRequest) -> None:
    async with books(database_url) as store:
        with pytest.raises(FareboxError, match="at least one whole month"):
            await drop_months(store, 0, NOW_US)
        tamper_with(database_url, request)(
            "UPDATE usage SET status = 500 WHERE at = (SELECT min(at) FROM usage WHERE at > 1783900000000000)"
        )
        with pytest.raises(FareboxError, match=r"the calls of 2026-07-13 cannot go: .* run `farebox audit`"):
            await drop_months(store, 1, NOW_US)
        assert await first_kept(store) == 0
        assert (await store.fetch("SELECT count(*) FROM usage"))[0][0] == 700


async def test_a_month_with_a_day_that_is_not_closed_does_not_go(database_url: str) -> None:
    await fill(database_url, Size(500, 80, 5), NOW_US, lambda _: None, digests=False)
    store = await open_store(database_url, clock=lambda: NOW_US)
    try:
        assert await drop_months(store, 1, NOW_US) == 0
        await close_hours(store, NOW_US)
        await close_days(store, day_start_us("2026-07-20"))
        with pytest.raises(FareboxError, match="the calls of 2026-07-19 cannot go yet: the day is not closed"):
            await drop_months(store, 1, NOW_US)
        assert (await store.fetch("SELECT count(*) FROM usage"))[0][0] == 500
    finally:
        await store.close()


async def test_the_database_itself_lets_no_other_call_go(database_url: str) -> None:
    async with books(database_url, calls=500) as store:
        for statement in (
            "DELETE FROM usage",
            "DELETE FROM usage WHERE at < 1785000000000000",
            "INSERT INTO day_drop VALUES ('2026-09-20', 0, '', '', 0)",
        ):
            with pytest.raises(StoreConflict):
                await store.write([(statement, ())])
        await drop_months(store, 1, NOW_US)
        for statement in ("DELETE FROM usage", "DELETE FROM day_drop", "UPDATE day_drop SET sha256 = ''"):
            with pytest.raises(StoreConflict):
                await store.write([(statement, ())])


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE usage_day SET charged_nanos = charged_nanos - 1 WHERE day = 20640 AND account_id = 1", "dropped days"),
        ("UPDATE usage_hour SET tokens = 0 WHERE hour / 24 = 20640", "day sums"),
        ("DELETE FROM day_drop WHERE day = '2026-07-20'", "dropped days"),
        ("UPDATE day_close SET sha256 = 'x' WHERE day = '2026-07-20'", "day digests"),
    ],
)
async def test_what_stays_of_dropped_days_cannot_be_changed_unseen(
    database_url: str, request: pytest.FixtureRequest, statement: str, found: str
) -> None:
    async with books(database_url, calls=500) as store:
        await drop_months(store, 1, NOW_US)
        assert broken(await audit(store)) == set()
        tamper_with(database_url, request)(statement)
        assert found in broken(await audit(store))


async def test_what_was_interrupted_is_brought_to_its_end(database_url: str) -> None:
    """Killed between saying that days are dropped and letting calls go: all figures hold, and the rest goes later."""
    async with books(database_url) as store:
        before = await what_is_told(store)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("farebox.books.retention.drop_calls", _die)
            with pytest.raises(KeyboardInterrupt):
                await drop_months(store, 1, NOW_US)
        assert await first_kept(store) == day_start_us("2026-08-01")
        assert (await store.fetch("SELECT count(*) FROM usage"))[0][0] == 700
        assert await what_is_told(store) == before
        assert broken(await audit(store)) == set()
        await drop_months(store, 1, NOW_US)
        assert (await store.fetch("SELECT count(*) FROM usage"))[0][0] < 600
        assert broken(await audit(store)) == set()


async def _die(*_: object) -> None:
    raise KeyboardInterrupt


async def test_books_with_dropped_months_move_to_another_database(
    database_url: str, database_kind: str, databases: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = "sqlite" if database_kind == "postgresql" else "postgresql"
    async with books(database_url, calls=500) as store:
        await drop_months(store, 1, NOW_US)
        before = await what_is_told(store)
    with databases.fresh(other, tmp_path_factory.mktemp("moved")) as target:  # type: ignore[attr-defined]
        rows = await move(database_url, target, spools=[], tell=lambda *_: None)
        assert rows["day_drop"] == 30
        moved = await open_store(target, clock=lambda: NOW_US)
        try:
            assert await what_is_told(moved) == before
        finally:
            await moved.close()


async def test_an_id_is_settled_once_whatever_partition_it_is_in(database_url: str) -> None:
    """Ids of every month, of none and of a year to come: held and settled once, and known ever after."""
    async with open_shop(database_url) as shop:
        for first in (b"\0\0\0\0\0\0", b"\1" * 6, (MONTH_US // 1000).to_bytes(6, "big"), b"\xff" * 6):
            request_id = first + b"\7" * 10
            await _call_once(shop, request_id)


async def _call_once(shop: Shop, request_id: bytes) -> None:
    before = await shop.count("usage")
    admissions = [replace(shop.admission(one, 9), request_id=request_id) for one in (shop.alice, shop.bob)]
    assert (await shop.ledger.admit(admissions[0])).verdict is Verdict.ADMITTED
    assert (await shop.ledger.settle(shop.settlement(request_id, shop.alice, 5))).now
    assert not (await shop.ledger.settle(shop.settlement(request_id, shop.alice, 5))).now
    for admission in admissions:
        assert (await shop.ledger.admit(admission)).verdict is Verdict.DUPLICATE
    assert await shop.count("usage") == before + 1


@on_postgresql
async def test_months_are_made_ahead_and_what_waited_for_its_month_moves_in(database_url: str) -> None:
    store = await open_store(database_url, clock=lambda: NOW_US)
    try:
        await make_room(store)
        await make_room(store)
        names = [row[0] for row in await store.fetch(_PARTITIONS)]
        assert len(names) == 5, names
        await fill(database_url, Size(300, 80, 5), NOW_US, lambda _: None, months=False)
        assert await _in_other(store) > 200
        await store.fetch("SELECT make_usage_month(?)", (MONTH_US,))
        july = (await store.fetch("SELECT count(*) FROM usage_2026_07"))[0][0]
        assert july > 90
        assert (await store.fetch("SELECT count(*) FROM usage"))[0][0] == 300
        for table in ("usage", "usage_2026_07", "usage_other"):
            for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET at = 1", f"TRUNCATE {table}"):
                with pytest.raises(StoreConflict):
                    await store.write([(statement, ())])
        faults = [fault for _, _, found in await store.check_itself() for fault in found]
        assert faults == []
    finally:
        await store.close()


_PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'usage'::regclass ORDER BY 1"


async def _in_other(store: Store) -> int:
    return int((await store.fetch("SELECT count(*) FROM usage_other"))[0][0])


@pytest.mark.parametrize(
    ("now", "back", "begins"),
    [("2026-09-20", 0, "2026-09-01"), ("2026-01-05", 1, "2025-12-01"), ("2026-12-31", -1, "2027-01-01")],
)
def test_months_begin_in_utc(now: str, back: int, begins: str) -> None:
    assert day_of(month_begin_us(day_start_us(now) + 7, back)) == begins


async def test_money_keeps_its_way_after_months_are_dropped(database_url: str) -> None:
    async with books(database_url, calls=500) as store:
        await drop_months(store, 1, NOW_US)
        before = (await store.fetch("SELECT posted_nanos FROM account WHERE id = 1"))[0][0]
        await store.apply([credit("late", 1, 7, code="deposit", actor="test", memo="")])
        assert (await store.fetch("SELECT posted_nanos FROM account WHERE id = 1"))[0][0] == before + 7
        assert broken(await audit(store)) == set()
