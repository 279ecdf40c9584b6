"""Promise 4 with many processes: what a dead one held is given back, once; one that was only paused is not robbed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from farebox.billing.ledger import Answer, Command, Expire, Resize, Settle
from farebox.books import runs as runs_module
from farebox.books.audit import audit
from farebox.books.days import close_days
from farebox.books.keeping import Bookkeeping, open_books
from farebox.books.ledger import Ledger
from farebox.clock import DAY_US, US_PER_S, day_start_us, steady_clock
from farebox.errors import StoreUnavailable
from farebox.store.protocol import Store
from tests.books.nodes import CENT, LEASE_S, Node, beating, is_reaped, leaders, open_node, until
from tests.books.shop import PLANS
from tests.databases import Databases
from tests.trouble.proxy import proxy_to

HOUR_US = 3600 * US_PER_S
OLD_TRANSFER = (
    "INSERT INTO transfer (id, at, debit_account, credit_account, amount_nanos, code, actor, memo) "
    "VALUES (?, ?, 'house:cash', 'house:promotion', 1, 'credit', 'test', '')"
)


@pytest.fixture
def url(databases: Databases, tmp_path: Path) -> Iterator[str]:
    with databases.fresh("postgresql", tmp_path) as url:
        yield url


@pytest.fixture
async def first(url: str) -> AsyncIterator[Node]:
    async with open_node(url) as node:
        yield node


@pytest.fixture
async def second(url: str, first: Node) -> AsyncIterator[Node]:
    async with open_node(url) as node:
        assert node.account == first.account
        yield node


async def lost(watcher: Node, run_id: int) -> None:
    """Wait until a run has been given up and its holds have expired."""

    async def expired() -> bool:
        return not await watcher.rows("SELECT 1 FROM hold WHERE run_id = ? AND expired_at IS NULL", run_id)

    async with beating(watcher):
        await until(lambda: is_reaped(watcher, run_id))
        await until(expired)


# leases


async def test_a_silent_run_is_given_up_after_its_lease_and_a_grace_and_never_before(first: Node, second: Node) -> None:
    request_id = await first.hold(3 * CENT)
    await first.beat()
    async with beating(second):
        await until(lambda: is_reaped(second, first.store.run_id))
        await until(lambda: second.rows("SELECT 1 FROM hold WHERE expired_at IS NOT NULL"))
    ((lapsed_us,),) = await second.rows("SELECT reaped_at - lease_until FROM run WHERE id = ?", first.store.run_id)
    assert LEASE_S * US_PER_S <= lapsed_us < 4 * LEASE_S * US_PER_S
    assert await second.balance() == (100 * CENT, 0, 0)
    assert await second.rows("SELECT request_id, amount_nanos FROM hold") == [(request_id, 0)]
    assert second.events() == ["run_lost", "holds_expired"]


async def test_a_run_that_comes_back_within_its_grace_stays(first: Node, second: Node) -> None:
    request_id = await first.hold(CENT)
    lapsed = "SELECT 1 FROM run WHERE id = ? AND lease_until < now_us()"
    async with beating(second):
        for _ in range(3):
            await first.beat()
            await until(lambda: second.rows(lapsed, first.store.run_id))
    await first.beat()
    assert (first.events(), second.events()) == ([], [])
    assert (await first.ledger.settle(first.settlement(request_id, CENT))).now
    assert await first.usage(request_id) == ("exact", CENT, 0)


async def test_a_run_of_which_only_the_beginning_was_seen_is_given_up_as_well(url: str, second: Node) -> None:
    """Its process was killed before its first heartbeat."""
    async with open_node(url) as dead:
        await dead.hold(CENT)
    await lost(second, dead.store.run_id)
    assert await second.balance() == (100 * CENT, 0, 0)


async def test_a_run_that_has_ended_needs_no_grace(first: Node, second: Node) -> None:
    await first.hold(CENT)
    await first.runs.end(first.clock())
    await second.beat()
    assert await second.balance() == (100 * CENT, 0, 0)
    assert second.events() == ["holds_expired"]


async def test_a_watcher_that_was_paused_itself_gives_up_nobody_at_once(first: Node, second: Node) -> None:
    """Perhaps the whole machine stood still, or the database: who lives gets the time to beat."""
    await first.beat()
    await second.beat()
    await asyncio.sleep(3 * LEASE_S)
    await second.beat()
    await first.beat()
    await second.beat()
    assert (first.events(), second.events()) == ([], [])


async def test_a_database_that_was_away_for_longer_than_a_lease_costs_nobody_a_run(url: str) -> None:
    async with proxy_to(url) as proxy, open_node(proxy.url(url)) as first, open_node(proxy.url(url)) as second:
        request_id = await first.hold(CENT)
        await first.beat()
        await second.beat()
        await proxy.refuse()
        away_until = asyncio.get_running_loop().time() + 3 * LEASE_S
        while asyncio.get_running_loop().time() < away_until:
            for node in (first, second):
                with pytest.raises(StoreUnavailable):
                    await node.beat()
            await asyncio.sleep(LEASE_S / 3)
        await proxy.heal()
        await second.beat()  # whose view it is that the other has long lapsed
        await asyncio.sleep(LEASE_S / 3)
        await second.beat()
        await first.beat()
        await second.beat()
        assert (first.events(), second.events()) == ([], [])
        assert (await first.ledger.settle(first.settlement(request_id, CENT))).now


@pytest.mark.parametrize("hours", [-5, 5])
async def test_the_clock_of_a_machine_changes_nothing(url: str, first: Node, hours: int) -> None:
    steady = steady_clock()
    async with open_node(url, clock=lambda: steady() + hours * HOUR_US) as wrong, beating(wrong, first):
        request_id = await wrong.hold(CENT)
        await asyncio.sleep(3 * LEASE_S)
        assert (wrong.events(), first.events()) == ([], [])
        await wrong.ledger.settle(wrong.settlement(request_id, CENT))
    ((off_us,),) = await first.rows("SELECT now_us() - at FROM usage")
    assert 0 <= off_us < 60 * US_PER_S


async def test_a_database_whose_clock_is_set_back_keeps_no_dead_run_alive_for_hours(
    first: Node, second: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of a lease is counted by the watcher's own clock, and no lease is longer than the longest."""
    monkeypatch.setattr(runs_module, "_LONGEST_LEASE_S", LEASE_S)
    await first.hold(CENT)
    await first.beat()
    assert first.runs.leads
    set_back = "UPDATE run SET lease_until = lease_until + ? WHERE id = ?"
    await second.store.write([(set_back, (5 * HOUR_US, first.store.run_id))])
    await second.store.write([("UPDATE lease SET until = until + ?", (5 * HOUR_US,))])
    await lost(second, first.store.run_id)
    assert second.runs.leads
    assert await second.balance() == (100 * CENT, 0, 0)


# one that was only paused


@pytest.fixture
async def paused(first: Node, second: Node) -> tuple[Node, bytes]:
    """A process that was given up while it was paused, and a call of it that goes on."""
    request_id = await first.hold(10 * CENT)
    await first.beat()
    await lost(second, first.store.run_id)
    return first, request_id


async def test_one_that_comes_back_begins_a_new_run(paused: tuple[Node, bytes]) -> None:
    node, _ = paused
    before = node.store.run_id
    await node.beat()
    assert node.events() == ["run_given_up"]
    assert node.store.run_id != before
    await node.beat()
    assert node.events() == ["run_given_up"]
    assert await node.rows("SELECT 1 FROM run WHERE id = ? AND reaped_at IS NULL", node.store.run_id)


async def test_its_late_settle_is_booked_once_from_the_free_balance(paused: tuple[Node, bytes]) -> None:
    node, request_id = paused
    settle = node.settlement(request_id, 7 * CENT)
    settled = await node.ledger.settle(settle)
    assert (settled.charged_nanos, settled.shortfall_nanos, settled.now) == (7 * CENT, 0, True)
    for _ in range(3):
        again = await node.ledger.settle(settle)
        assert (again.charged_nanos, again.now, again.recovered) == (7 * CENT, False, False)
    assert await node.usage(request_id) == ("late", 7 * CENT, 0)
    assert await node.balance() == (93 * CENT, 0, 0)
    assert await node.rows("SELECT 1 FROM hold") == []


async def test_what_the_free_balance_does_not_give_to_a_late_settle_is_shortfall(
    paused: tuple[Node, bytes], second: Node
) -> None:
    """The money of its hold was given back, and others may have taken it meanwhile."""
    node, request_id = paused
    other = await second.hold(95 * CENT)
    settled = await node.ledger.settle(node.settlement(request_id, 8 * CENT))
    assert (settled.charged_nanos, settled.shortfall_nanos) == (5 * CENT, 3 * CENT)
    assert await node.usage(request_id) == ("late", 5 * CENT, 3 * CENT)
    assert (await second.ledger.settle(second.settlement(other, 95 * CENT))).shortfall_nanos == 0
    assert await node.balance() == (0, 0, 0)


async def test_a_stream_that_goes_on_takes_its_hold_up_again(paused: tuple[Node, bytes], second: Node) -> None:
    node, request_id = paused
    await node.beat()
    resized = await node.ledger.resize(Resize(request_id, node.account, 12 * CENT, 1))
    assert (resized.amount_nanos, resized.gone) == (12 * CENT, False)
    assert await node.balance() == (100 * CENT, 12 * CENT, 1)
    assert await node.rows("SELECT run_id, expired_at FROM hold") == [(node.store.run_id, None)]
    await second.beat()
    assert await node.balance() == (100 * CENT, 12 * CENT, 1)
    await node.ledger.settle(node.settlement(request_id, 11 * CENT))
    assert await node.usage(request_id) == ("exact", 11 * CENT, 0)


async def test_a_day_later_the_call_is_booked_as_free_and_what_comes_then_is_too_late(
    paused: tuple[Node, bytes], second: Node
) -> None:
    node, request_id = paused
    await second.beat()
    assert await second.rows("SELECT 1 FROM usage") == []
    await second.store.write([("UPDATE hold SET expired_at = expired_at - ?", (DAY_US,))])
    await second.beat()
    assert await second.usage(request_id) == ("recovered", 0, 0)
    settled = await node.ledger.settle(node.settlement(request_id, 7 * CENT))
    assert (settled.charged_nanos, settled.now, settled.recovered) == (0, False, True)
    assert (await node.ledger.resize(Resize(request_id, node.account, CENT, 1))).gone
    assert await node.balance() == (100 * CENT, 0, 0)


# who leads


async def test_exactly_one_leads_and_another_when_it_falls_silent(url: str, first: Node, second: Node) -> None:
    async with open_node(url) as third:
        nodes = {first, second, third}
        async with beating(*nodes):
            await until(lambda: _true(leaders(nodes)))
            for _ in range(20):
                assert len(leaders(nodes)) == 1
                await asyncio.sleep(LEASE_S / 10)
        await until(lambda: _true(not leaders(nodes)))  # nobody believes to lead for longer than its lease
        before = await first.rows("SELECT run_id FROM lease")
        heirs = {node for node in nodes if node.store.run_id != before[0][0]}
        began = asyncio.get_running_loop().time()
        async with beating(*heirs):
            await until(lambda: _true(leaders(heirs)))
            assert asyncio.get_running_loop().time() - began < 2 * LEASE_S
            assert len(leaders(nodes)) == 1


async def test_who_ends_gives_the_lead_away_at_once(first: Node, second: Node) -> None:
    await first.beat()
    await second.beat()
    assert leaders([first, second]) == [first]
    await first.runs.end(first.clock())
    await second.beat()
    assert leaders([first, second]) == [second]


async def test_who_lost_its_run_does_not_lead(first: Node, second: Node) -> None:
    await first.beat()
    await lost(second, first.store.run_id)
    assert second.runs.leads
    await first.beat()
    assert not first.runs.leads


class Dying:
    """A store whose process is killed after the first few of the commands it is given next have been committed."""

    shared = True
    lanes = 1

    def __init__(self, store: Store, commits: int) -> None:
        self._store = store
        self._commits = commits
        self.fetch = store.fetch

    async def apply(self, batch: Sequence[Command], lane: int = 0) -> list[Answer | Exception]:
        if self._commits:
            await self._store.apply(batch[: self._commits], lane)
        raise _Killed


class _Killed(Exception):
    pass


async def test_a_leader_killed_while_it_recovers_leaves_the_rest_to_the_next(url: str, second: Node) -> None:
    async def die() -> None:
        for commits in (0, 1, 2):
            dying = Dying(second.store, commits)
            runs = runs_module.Runs(dying, Ledger(dying), lease_s=LEASE_S, warn=lambda *_, **__: None)  # type: ignore[arg-type]
            with pytest.raises(_Killed):
                await runs.recover()

    async with open_node(url) as dead:
        calls = [await dead.hold(CENT) for _ in range(5)]
        await dead.runs.end(dead.clock())
    await die()
    assert await second.balance() == (100 * CENT, 2 * CENT, 2)
    await second.beat()
    assert await second.balance() == (100 * CENT, 0, 0)
    await second.store.write([("UPDATE hold SET expired_at = expired_at - ?", (DAY_US,))])
    await die()
    assert len(await second.rows("SELECT 1 FROM hold")) == 2
    await asyncio.gather(second.runs.recover(), second.runs.recover(), second.runs.recover())
    booked = await second.rows("SELECT kind, charged_nanos, count(*) FROM usage GROUP BY kind, charged_nanos")
    assert booked == [("recovered", 0, len(calls))]
    assert await second.rows("SELECT 1 FROM hold") == []
    assert await second.balance() == (100 * CENT, 0, 0)
    assert not [check for check in await audit(second.store) if not check.ok]


async def test_days_are_closed_once_by_two_at_once_and_after_one_was_killed_in_the_middle(
    first: Node, second: Node
) -> None:
    now_us = day_start_us("2026-06-06") + 2 * HOUR_US
    await first.store.write(
        [(OLD_TRANSFER, (f"{day}-{hour}", now_us - day * DAY_US + hour)) for day in range(1, 6) for hour in range(3)]
    )
    closing = asyncio.create_task(close_days(first.store, now_us))
    await until(lambda: second.rows("SELECT 1 FROM day_close"))
    closing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    await asyncio.gather(*(close_days(node.store, now_us) for node in (first, second, first, second)))
    days = await second.rows("SELECT day, transfer_rows FROM day_close ORDER BY day")
    assert days == [(f"2026-06-0{day}", 3) for day in range(1, 6)]
    digests = next(check for check in await audit(second.store) if check.name == "day digests")
    assert (digests.ok, digests.rows) == (True, 5)


# holds that nobody knows


async def test_a_hold_whose_admission_was_never_answered_is_ended_and_those_of_living_calls_are_not(
    first: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "_STRAY_US", 0)
    known, stray = await first.hold(CENT), await first.hold(2 * CENT)
    first.ledger.live.discard(stray)
    assert await first.runs.end_strays() == 1
    assert await first.usage(stray) == ("recovered", 0, 0)
    assert await first.balance() == (100 * CENT, CENT, 1)
    assert await first.runs.end_strays() == 0
    assert (await first.ledger.settle(first.settlement(known, CENT))).now


async def test_a_young_hold_is_no_stray(first: Node) -> None:
    """Its answer may be on its way."""
    first.ledger.live.discard(await first.hold(CENT))
    assert await first.runs.end_strays() == 0


class Away:
    """A store that takes no settles for a while."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.gate = asyncio.Event()

    async def apply(self, batch: Sequence[Command], lane: int = 0) -> list[Answer | Exception]:
        if any(isinstance(command, Settle | Expire) for command in batch):
            raise StoreUnavailable("away")
        await self.gate.wait()
        return await self._store.apply(batch, lane)


async def test_a_hold_that_its_caller_left_and_that_cannot_be_ended_is_found_as_a_stray(
    first: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "_STRAY_US", 0)
    away = Away(first.store)
    first.ledger._store = away  # type: ignore[assignment]
    calling = asyncio.create_task(first.hold(CENT))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calling.cancel()
    away.gate.set()
    await until(lambda: first.rows("SELECT 1 FROM hold"))
    await first.ledger.drained()
    first.ledger._store = first.store
    assert await first.runs.end_strays() == 1
    assert await first.balance() == (100 * CENT, 0, 0)


async def _true(value: object) -> bool:
    return bool(value)


async def test_only_the_leader_does_what_one_does_for_all(url: str, tmp_path: Path) -> None:
    told: list[str] = []
    nodes = [await open_beside(url, tmp_path / name, told) for name in ("one", "two")]
    try:
        now_us = nodes[0].clock()
        await nodes[0].store.write([(OLD_TRANSFER, ("old", now_us - 3 * DAY_US))])
        for node in nodes:
            assert await node.close_days() == []
            await node.beat()
        assert [node.runs.leads for node in nodes] == [True, False]
        assert await nodes[1].close_days() == []
        assert len(await nodes[0].close_days()) >= 2
    finally:
        for node in nodes:
            await node.close()
    assert told == []


async def open_beside(url: str, directory: Path, told: list[str]) -> Bookkeeping:
    """Open the books as a gateway does that has another beside it."""

    def tell(event: str, **_: object) -> None:
        told.append(event)

    return await open_books(url, plans=PLANS, clock=steady_clock(), spool=directory, lease_s=30, warn=tell, alert=tell)
