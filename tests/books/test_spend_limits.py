"""What a key may spend: held and charged within its period to the last nano-dollar, and never more let in than that."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import change_key, create_key, disable_key, enable_key, find_key
from farebox.billing.budgets import RESETS, Resets, period_start_us
from farebox.billing.ledger import Admission, Command, Expire, Resize, Resized, Settled, SpendLimit, Verdict
from farebox.books.audit import audit
from farebox.clock import DAY_US, US_PER_S
from tests.books.shop import NOON_US, Shop, open_shop
from tests.databases import on_postgresql


class Till(Shop):
    """alice's key may spend 1,000 nano-dollars a day."""

    async def limit(self, nanos: int | None, resets: Resets = "daily", **rules: Any) -> None:
        key = await find_key(self.store, str(self.keys[self.alice]))
        await change_key(self.store, key, "k", Rules(limit_nanos=nanos, resets=resets, **rules), self.now_us)

    async def used(self) -> int:
        """What is used of it, which the audit must agree with."""
        checks = {check.name: check for check in await audit(self.store)}
        assert checks["spend limits"].ok, checks["spend limits"]
        return int((await self.store.fetch("SELECT used_nanos FROM key_budget"))[0][0])

    async def hold(self, nanos: int) -> bytes:
        request_id, answer = await self.admit(self.alice, nanos)
        assert answer.verdict is Verdict.ADMITTED
        return request_id

    async def settle(self, request_id: bytes, cost: int, **fields: object) -> Settled:
        return await self.ledger.settle(self.settlement(request_id, self.alice, cost, **fields))

    async def resize(self, request_id: bytes, nanos: int) -> Resized:
        return await self.ledger.resize(Resize(request_id, self.alice, nanos, 1))


@pytest.fixture
async def till(database_url: str) -> AsyncIterator[Till]:
    async with open_shop(database_url) as shop:
        shop.__class__ = Till
        assert isinstance(shop, Till)
        await shop.limit(1_000)
        yield shop


async def test_calls_are_let_in_until_the_limit_is_held_and_a_refused_one_changes_nothing(till: Till) -> None:
    await till.hold(600)
    _, answer = await till.admit(till.alice, 401)
    assert answer.verdict is Verdict.KEY_LIMITED
    assert answer.spend_limit == SpendLimit(1_000, 400, "daily")
    assert (answer.held_nanos, answer.retry_after_ns) == (0, 0)
    assert (await till.balance(till.alice), await till.used()) == ((10**9, 600, 1), 600)
    await till.hold(400)
    assert (await till.admit(till.alice, 0, least_nanos=0))[1].verdict is Verdict.KEY_LIMITED


async def test_a_call_is_held_as_far_as_its_key_goes_if_that_is_enough_for_it(till: Till) -> None:
    await till.hold(700)
    _, answer = await till.admit(till.alice, 5_000, least_nanos=300)
    assert (answer.verdict, answer.held_nanos) == (Verdict.ADMITTED, 300)
    assert (answer.spend_limit, answer.retry_after_ns) == (SpendLimit(1_000, 300, "daily"), 0)


async def test_an_empty_balance_is_told_before_a_limit(till: Till) -> None:
    _, answer = await till.admit(till.alice, 10**9 + 1)
    assert answer.verdict is Verdict.INSUFFICIENT


async def test_a_hold_grows_as_far_as_its_key_goes_and_says_what_stopped_it(till: Till) -> None:
    first, other = await till.hold(300), await till.hold(300)
    assert await till.resize(first, 700) == Resized(700)
    assert await till.resize(first, 701) == Resized(700, spend_limit=SpendLimit(1_000, 0, "daily"))
    assert await till.resize(first, 10) == Resized(10)
    assert await till.resize(other, 5_000) == Resized(990, spend_limit=SpendLimit(1_000, 690, "daily"))
    assert await till.used() == 1_000


async def test_a_charge_takes_the_place_of_its_hold(till: Till) -> None:
    request_id = await till.hold(600)
    await till.settle(request_id, 250)
    assert await till.used() == 250
    await till.settle(request_id, 999)
    assert await till.used() == 250
    free = await till.hold(700)
    await till.settle(free, 700, kind="waived", waive=True)
    assert await till.used() == 250


async def test_what_is_owed_beyond_the_limit_is_charged_and_counted(till: Till) -> None:
    assert await till.settle(await till.hold(900), 1_300) == Settled(1_300, 0, now=True)
    assert await till.used() == 1_300
    _, answer = await till.admit(till.alice, 1)
    assert answer.spend_limit == SpendLimit(1_000, -300, "daily")


async def test_money_that_a_dead_process_held_is_given_back_and_a_late_charge_counts(till: Till) -> None:
    request_id = await till.hold(800)
    await till.ledger.expire(Expire(request_id, till.alice))
    assert await till.used() == 0
    assert await till.resize(request_id, 50) == Resized(50)
    assert await till.used() == 50
    await till.ledger.expire(Expire(request_id, till.alice))
    await till.settle(request_id, 70)
    assert await till.used() == 70


async def test_a_day_ends_at_midnight_and_a_charge_belongs_to_the_day_it_is_made_in(till: Till) -> None:
    before, ended = await till.hold(500), await till.hold(400)
    await till.settle(ended, 400)
    till.now_us = NOON_US + DAY_US // 2 - 1
    assert (await till.admit(till.alice, 101))[1].verdict is Verdict.KEY_LIMITED
    till.now_us += 1
    today = await till.hold(900)
    assert await till.used() == 900, "what is held from yesterday is not counted"
    await till.settle(before, 300)
    assert await till.used() == 1_200, "what it was charged is"
    await till.settle(today, 100)
    assert await till.used() == 400


async def test_a_charge_is_counted_in_its_day_even_if_no_call_has_begun_that_day(till: Till) -> None:
    before = await till.hold(500)
    till.now_us += DAY_US
    await till.settle(before, 450)
    assert await till.used() == 450
    assert (await till.admit(till.alice, 551))[1].verdict is Verdict.KEY_LIMITED


async def test_a_call_that_runs_over_midnight_may_still_hold_what_the_new_day_allows(till: Till) -> None:
    before = await till.hold(300)
    till.now_us += DAY_US
    await till.hold(600)
    assert (await till.resize(before, 300)).amount_nanos == 300
    assert await till.used() == 600
    assert (await till.resize(before, 5_000)).amount_nanos == 400
    assert await till.used() == 1_000, "one that grows is of the new day"
    assert (await till.resize(before, 200)).amount_nanos == 200
    assert await till.used() == 800


async def test_calls_that_run_over_midnight_share_what_the_new_day_allows(till: Till) -> None:
    running = [await till.hold(10) for _ in range(20)]
    till.now_us += DAY_US
    grown = [(await till.resize(request_id, 300)).amount_nanos for request_id in running]
    assert grown == [300, 300, 300, 100] + [10] * 16
    assert await till.used() == 1_000


@pytest.mark.parametrize(
    ("resets", "last", "first"),
    [
        ("daily", "2026-11-22T23:59:59", "2026-11-23T00:00:00"),
        ("weekly", "2026-11-22T23:59:59", "2026-11-23T00:00:00"),  # a Sunday and a Monday
        ("monthly", "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
        ("monthly", "2028-02-29T23:59:59", "2028-03-01T00:00:00"),
    ],
)
async def test_a_period_begins_at_midnight_utc(till: Till, resets: Resets, last: str, first: str) -> None:
    till.now_us = _us(last) - US_PER_S
    await till.limit(1_000, resets)
    await till.settle(await till.hold(1_000), 1_000)
    till.now_us = _us(last) + 999_999
    assert (await till.admit(till.alice, 1))[1].verdict is Verdict.KEY_LIMITED
    till.now_us = _us(first)
    await till.hold(1_000)


async def test_a_limit_that_never_resets_is_one_for_ever(till: Till) -> None:
    await till.limit(1_000, "never")
    await till.settle(await till.hold(1_000), 1_000)
    till.now_us += 4_000 * DAY_US
    assert (await till.admit(till.alice, 1))[1].spend_limit == SpendLimit(1_000, 0, "never")


async def test_a_limit_can_be_moved_at_any_time_and_one_with_another_period_begins_anew(till: Till) -> None:
    running = await till.hold(700)
    await till.limit(500)
    assert (await till.admit(till.alice, 1))[1].spend_limit == SpendLimit(500, -200, "daily")
    assert (await till.resize(running, 800)).amount_nanos == 700
    await till.limit(2_000)
    await till.hold(1_300)
    await till.limit(2_000, "monthly")
    assert await till.used() == 0
    await till.settle(running, 650)
    assert await till.used() == 650
    await till.limit(None)
    await till.hold(10**8)


async def test_other_keys_of_the_account_are_not_concerned(till: Till) -> None:
    await till.hold(1_000)
    other, _ = await create_key(till.store, till.alice, "other", "sk-cc-", till.now_us)
    till.keys[till.alice] = other.id
    await till.hold(5_000)
    assert await till.used() == 1_000


async def test_the_last_of_a_limit_raced_by_many_is_held_once(till: Till) -> None:
    answers = await asyncio.gather(*(till.admit(till.alice, 7) for _ in range(500)))
    assert sum(answer.verdict is Verdict.ADMITTED for _, answer in answers) == 1_000 // 7
    assert await till.used() == 1_000 // 7 * 7


async def test_what_comes_free_in_a_batch_can_be_held_in_the_same_batch(till: Till) -> None:
    request_id = await till.hold(1_000)
    admitted, _ = await till.store.apply(
        [till.admission(till.alice, 900), till.settlement(request_id, till.alice, 100)]
    )
    assert isinstance(admitted, Admission)
    assert admitted.verdict is Verdict.ADMITTED
    assert await till.used() == 1_000


async def test_a_batch_delivered_again_counts_once(till: Till) -> None:
    request_id = await till.hold(300)
    batch: list[Command] = [till.admission(till.alice, 200), till.settlement(request_id, till.alice, 70)]
    for _ in range(3):
        await till.store.apply(batch)
        assert await till.used() == 270


async def test_a_key_has_a_pace_of_its_own(till: Till) -> None:
    await till.limit(None, requests_per_minute=3)
    verdicts = [(await till.admit(till.alice, 1))[1] for _ in range(4)]
    assert [one.verdict for one in verdicts] == [Verdict.ADMITTED] * 3 + [Verdict.KEY_REQUESTS_LIMITED]
    assert verdicts[-1].retry_after_ns == 20 * 10**9
    till.now_us += 20 * US_PER_S
    await till.hold(1)


async def test_a_key_that_rests_lets_no_call_in_and_works_again_afterwards(till: Till) -> None:
    await disable_key(till.store, till.keys[till.alice], till.now_us)
    assert (await till.admit(till.alice, 1))[1].verdict is Verdict.KEY_INVALID
    await enable_key(till.store, till.keys[till.alice])
    await till.hold(1)


@pytest.mark.parametrize(
    ("column", "verdict"),
    [
        ("requests_per_minute", Verdict.REQUESTS_LIMITED),
        ("tokens_per_minute", Verdict.TOKENS_LIMITED),
        ("concurrent", Verdict.TOO_MANY_AT_ONCE),
    ],
)
async def test_an_accounts_own_limit_takes_the_place_of_its_plans(till: Till, column: str, verdict: Verdict) -> None:
    await till.store.write([(f"UPDATE account SET {column} = 2 WHERE id = ?", (till.alice,))])
    answers = [(await till.admit(till.alice, 1))[1] for _ in range(3)]
    assert [one.verdict for one in answers] == [Verdict.ADMITTED, Verdict.ADMITTED, verdict]
    assert 2 in {answers[2].requests.limit, answers[2].tokens.limit, answers[2].concurrent}  # type: ignore[union-attr]


@on_postgresql
async def test_periods_begin_in_the_database_when_they_do_here(till: Till) -> None:
    for _ in range(500):
        at_us, resets = random.randrange(4_000_000_000 * US_PER_S), random.choice(RESETS)
        rows = await till.store.fetch("SELECT period_start_us(CAST(? AS TEXT), CAST(? AS BIGINT))", (resets, at_us))
        assert rows == [(period_start_us(resets, at_us),)], (resets, at_us)


def _us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * US_PER_S
