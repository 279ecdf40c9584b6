"""Which upstream a call goes to: priorities, room, rate limits that were learnt, and where its conversation is."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from farebox.errors import Overloaded, Refusal
from farebox.http.exchange import Headers
from farebox.http.failures import Cut
from farebox.upstreams.budgets import RateBudget, retry_after
from farebox.upstreams.health import SLOW_START_S, Health
from farebox.upstreams.kinds.kind import Ask
from farebox.upstreams.places import Place, Places, is_bound
from farebox.upstreams.pool import Pool
from farebox.upstreams.settings import UpstreamSettings
from farebox.upstreams.tries import Tries
from farebox.upstreams.upstream import Upstream
from tests.upstreams.test_pool import answering, pool_of
from tests.upstreams.wire import Line, serving, whole

MODEL = "claude-this"


def up(name: str, port: int = 9, **more: Any) -> Upstream:
    settings = UpstreamSettings(name=name, kind="anthropic", base_url=f"http://127.0.0.1:{port}", **more)
    return Upstream(settings, connect_s=1, stall_s=1)


def choose(pool: Pool, conversation: bytes = b"c", body: bytes = b"", **more: Any) -> str | None:
    tries = Tries()
    tries.model = MODEL
    found = pool._choose(tries, conversation, body, **more)
    return found.name if found is not None else None


def spread(pool: Pool, calls: int = 2_000) -> Counter[str | None]:
    return Counter(choose(pool, b"conversation-%d" % number) for number in range(calls))


def now() -> float:
    return asyncio.get_running_loop().time()


def rest(upstream: Upstream) -> None:
    for _ in range(5):
        upstream.failed(now())


async def test_a_level_of_priority_is_called_only_when_nobody_before_it_can_be() -> None:
    a, b, c, d = up("a"), up("b"), up("c", priority=1), up("d", priority=2)
    pool = pool_of(a, b, c, d)
    assert set(spread(pool)) == {"a", "b"}
    rest(a)
    assert set(spread(pool)) == {"b"}
    b.rate.limited(MODEL, 30, now())
    assert set(spread(pool)) == {"c"}
    rest(c)
    assert set(spread(pool)) == {"d"}
    rest(d)
    assert set(spread(pool)) == {"b"}  # all rest but the one that is at its limit, which is better than none


async def test_what_is_full_is_passed_over_and_its_calls_wait_when_only_worse_are_left() -> None:
    a, b = up("a", concurrency=1), up("b", priority=1)
    pool = pool_of(a, b)
    a.client.running = 1
    assert set(spread(pool, 50)) == {"b"}
    rest(b)
    assert choose(pool) is None
    assert choose(pool, waited=True) == "b"
    b.at_once, b.client.running = 1, 1
    assert choose(pool, waited=True) is None
    a.client.running = 0
    assert choose(pool) == "a"


async def test_calls_over_the_limit_of_an_upstream_wait_for_it_in_turn() -> None:
    seen, at_once = 0, 0

    async def slowly(line: Line) -> None:
        nonlocal seen, at_once
        for _ in range(20):
            await line.request()
            seen += 1
            at_once = max(at_once, upstream.in_flight)
            await asyncio.sleep(0.01)
            await line.say(whole(b"{}"))

    async with serving(slowly) as (server, _):
        upstream = up("a", server.port, concurrency=2)
        pool = pool_of(upstream)

        async def call() -> int:
            answer = await pool.send(Tries(), Ask(path="/", headers=[]), conversation=b"c")
            await answer.read(100)
            return answer.status

        assert await asyncio.gather(*(call() for _ in range(12))) == [200] * 12
        assert (seen, at_once, upstream.in_flight, len(pool.waiting)) == (12, 2, 0, 0)
        await pool.close()


async def test_a_call_that_waits_too_long_is_told_so_and_one_that_is_cancelled_leaves_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("farebox.upstreams.pool._QUEUE_S", 0.05)
    upstream = up("a", concurrency=1)
    upstream.client.running = 1
    pool = pool_of(upstream)
    with pytest.raises(Overloaded, match="limit of calls at once"):
        await pool.send(Tries(), Ask(path="/", headers=[]), conversation=b"c")
    monkeypatch.setattr("farebox.upstreams.pool._QUEUE_S", 60)
    waiting = [asyncio.create_task(pool._wait(Tries(), b"c", b"")) for _ in range(2)]
    await asyncio.sleep(0)
    assert len(pool.waiting) == 2
    upstream.client.running = 0
    pool._next()
    waiting[0].cancel()  # just as its turn has come
    assert await waiting[1] is upstream
    assert waiting[0].cancelled()
    assert not pool.waiting


async def test_too_many_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farebox.upstreams.pool._QUEUE_CALLS", 0)
    upstream = up("a", concurrency=1)
    upstream.client.running = 1
    with pytest.raises(Refusal) as refused:
        await pool_of(upstream).send(Tries(), Ask(path="/", headers=[]), conversation=b"c")
    assert refused.value.status == 529


def told(remaining: int, reset_s: float, kind: str = "requests") -> Headers:
    there = datetime(2026, 11, 23, 12, tzinfo=UTC)
    name = f"anthropic-ratelimit-{kind}".encode()
    return [
        (b"date", format_datetime(there, usegmt=True).encode()),
        (name + b"-limit", b"1000"),
        (name + b"-remaining", b"%d" % remaining),
        (name + b"-reset", (there + timedelta(seconds=reset_s)).isoformat().replace("+00:00", "Z").encode()),
    ]


@pytest.mark.parametrize("kind", ["requests", "tokens", "input-tokens", "output-tokens"])
def test_an_upstream_with_nothing_left_is_spent_until_a_tenth_is_back_for_that_model_alone(kind: str) -> None:
    rate = RateBudget()
    rate.learn(MODEL, told(1, 30, kind), 100)
    assert not rate.is_spent(MODEL, 100)
    rate.learn(MODEL, told(0, 30, kind), 100)
    assert rate.is_spent(MODEL, 102.9)
    assert not rate.is_spent(MODEL, 103)
    assert not rate.is_spent("claude-other", 100)
    assert rate.told() == [(MODEL, kind, 0)]


@pytest.mark.parametrize("reset", [b"", b"soon", b"9999-99-99T00:00:00Z"])
def test_a_reset_that_cannot_be_read_counts_as_a_minute(reset: bytes) -> None:
    rate = RateBudget()
    rate.learn(
        MODEL, [(b"anthropic-ratelimit-requests-remaining", b"0"), (b"anthropic-ratelimit-requests-reset", reset)], 0
    )
    assert rate.is_spent(MODEL, 5.9)
    assert not rate.is_spent(MODEL, 6)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        (b"Wednesday, 21-Oct-26 07:28:30 GMT", 30.0),
        (b"Wed, 21 Oct 2026 07:27:00 GMT", None),  # has been
        (b"Wed, 21 Oct 2099 07:28:30 GMT", None),  # not in our time
        (b"Wed, 99 Oct 2026", None),
        (b"soon", None),
        (b"\xff", None),
    ],
)
def test_a_retry_after_that_is_a_moment_is_heeded_by_the_upstreams_own_clock(
    value: bytes, expected: float | None
) -> None:
    assert retry_after(value, b"Wed, 21 Oct 2026 07:28:00 GMT") == expected
    assert retry_after(value, b"nonsense") is None


def test_a_retry_after_is_heeded_and_what_is_learnt_is_bounded() -> None:
    rate = RateBudget()
    rate.limited(MODEL, 30, 0)
    assert rate.is_spent(MODEL, 29.9)
    assert not rate.is_spent(MODEL, 30)
    for number in range(1_000):
        rate.limited(f"model-{number}", None, 0)
        rate.learn(f"model-{number}", told(7, 1), 0)
    assert len(rate.told()) < 250


async def test_a_429_sends_the_next_calls_elsewhere_and_comes_down_only_when_it_is_everybodys() -> None:
    async with serving(answering(b"429 Slow")) as (server, _), serving(answering(b"200 OK")) as (other, _):
        limited, well = up("limited", server.port, weight=1000), up("well", other.port)
        pool = pool_of(limited, well)
        for number in range(4):
            tries = Tries()
            answer = await pool.send(tries, Ask(path="/", headers=[], model=MODEL), conversation=b"%d" % number)
            await answer.read(9)
            assert tries.upstream is well
        assert (limited.calls, limited.limited, limited.failures) == (1, 1, 0)
        assert limited.is_healthy(now())
        await pool.close()
        alone = pool_of(limited, attempts=1)
        with pytest.raises(Refusal) as refused:
            await alone.send(Tries(), Ask(path="/", headers=[], model=MODEL), conversation=b"")
        assert (refused.value.status, limited.calls) == (429, 2)
        await alone.close()


def settle(pool: Pool, conversation: bytes, name: str, organization: str = "", at: float | None = None) -> None:
    pool.places.keep(conversation, Place(name, organization, now() if at is None else at))


async def test_a_conversation_stays_where_it_was_served_until_that_cannot_be() -> None:
    a, b = up("a"), up("b", weight=1000)
    pool = pool_of(a, b)
    assert choose(pool) == "b"
    settle(pool, b"c", "a")
    assert choose(pool) == "a"
    a.rate.limited(MODEL, 30, now())
    assert choose(pool) == "b"
    bound = b'{"messages":[{"role":"assistant","content":[{"type":"thinking","signature":"x"}]}]}'
    assert choose(pool, body=bound) == "a"
    rest(a)
    assert choose(pool, body=bound) == "b"
    assert choose(pool, b"another") == "b"


async def test_a_bound_conversation_waits_for_its_own_upstream_and_then_goes_to_one_of_the_same_organization() -> None:
    a, b = up("a", organization="one", concurrency=1), up("b", weight=1000)
    c = up("c", organization="one", priority=5)
    pool = pool_of(a, b, c)
    settle(pool, b"c", "a", "one")
    a.client.running = 1
    assert choose(pool, body=b'"redacted_thinking"') is None
    assert choose(pool, body=b'"redacted_thinking"', waited=True) == "c"
    assert choose(pool) == "c"
    assert choose(pool, b"new") == "b"


async def test_a_place_without_a_warm_cache_binds_nothing_but_what_is_bound() -> None:
    pool = pool_of(up("a"), up("b", weight=1000))
    settle(pool, b"c", "a", at=now() - 3_601)
    assert choose(pool) == "b"
    assert choose(pool, body=b'"signature"') == "a"


def test_places_are_bounded_and_the_most_silent_goes_first() -> None:
    places = Places(most=3)
    for name in (b"1", b"2", b"3", b"1", b"4"):
        places.keep(name, Place("a", "", 0))
    assert [places.find(name) is not None for name in (b"1", b"2", b"3", b"4")] == [True, False, True, True]
    assert len(places) == 3


def test_asking_to_think_binds_nothing() -> None:
    assert not is_bound(b'{"thinking":{"type":"adaptive"},"messages":[{"role":"user","content":"hi"}]}')


async def test_what_was_served_elsewhere_stays_there_after_its_upstream_is_back() -> None:
    async with serving(answering(b"503 No")) as (server, _), serving(answering(b"200 OK")) as (other, _):
        sick, well = up("sick", server.port, weight=1000), up("well", other.port)
        pool, tries = pool_of(sick, well), Tries()
        answer = await pool.send(tries, Ask(path="/", headers=[]), conversation=b"c")
        await answer.read(9)
        pool.note_success(tries)
        assert choose(pool) == "well"
        assert choose(pool, b"other") == "sick"
        await pool.close()


async def test_an_upstream_that_refuses_the_operators_key_rests_at_once_and_a_403_is_about_the_model() -> None:
    for status, healthy in ((b"401 Who", False), (b"403 No", True)):
        async with serving(answering(status)) as (server, _), serving(answering(b"200 OK")) as (other, _):
            barred, well = up("barred", server.port, weight=1000), up("well", other.port)
            pool = pool_of(barred, well)
            await (await pool.send(Tries(), Ask(path="/", headers=[], model=MODEL), conversation=b"c")).read(9)
            assert barred.is_healthy(now()) is healthy
            assert barred.is_healthy(now() + 59) is healthy
            assert set(spread(pool, 20)) == {"well"}
            await pool.close()


def test_half_of_many_calls_failing_makes_an_upstream_rest_and_less_does_not() -> None:
    for well, rests in ((1, True), (2, False)):
        health = Health()
        for number in range(60):
            health.takes(number / 10)
            if number % (well + 1):
                health.ended_well(number / 10)
            else:
                health.failed(number / 10)
        assert (health.ejections > 0) is rests


def test_few_calls_or_old_ones_say_nothing_about_the_share() -> None:
    health = Health()
    for moment in (0.0, 40.0):
        for number in range(18):
            health.takes(moment)
            if number % 2:
                health.ended_well(moment)
            else:
                health.failed(moment)
    assert health.ejections == 0


async def test_an_upstream_that_comes_back_gets_its_share_bit_by_bit() -> None:
    a, b = up("a"), up("b")
    pool = pool_of(a, b)
    rest(a)
    a.rests_until = 0
    a.takes(now())
    a.ended_well(now())
    assert 0.05 < spread(pool)["a"] / 2_000 < 0.13
    assert a.ramp(now() + SLOW_START_S / 2) == pytest.approx(0.5, abs=0.01)
    assert a.ramp(now() + SLOW_START_S) == 1
    assert spread(pool)["a"] / 2_000 == pytest.approx(0.5, abs=0.05)


async def test_a_set_that_is_replaced_leaves_calls_and_their_tries_as_they_are() -> None:
    async with serving(answering(b"200 OK")) as (server, _):
        stays, goes, comes = up("stays", server.port), up("goes", server.port), up("comes", server.port)
        pool, tries = pool_of(stays, goes), Tries()
        stays.failed(now())
        tries.only = "goes"
        answer = await pool.send(tries, Ask(path="/", headers=[]), conversation=b"c")
        pool.replace([stays, comes])
        pool.note_failure(tries, Cut("later"))
        await answer.read(9)
        assert (stays.failures, goes.failures, tries.upstream) == (1, 1, goes)
        assert set(spread(pool, 100)) == {"stays", "comes"}
        with pytest.raises(Refusal, match="no upstream serves"):
            await pool.send(tries, Ask(path="/", headers=[]), conversation=b"c")
        await goes.client.close()
        await pool.close()


async def test_who_waits_learns_of_an_upstream_that_is_added() -> None:
    async with serving(answering(b"200 OK")) as (server, _):
        full, comes = up("full", concurrency=1), up("comes", server.port)
        full.client.running = 1
        pool = pool_of(full)
        sent = asyncio.create_task(pool.send(Tries(), Ask(path="/", headers=[]), conversation=b"c"))
        await asyncio.sleep(0)
        assert len(pool.waiting) == 1
        pool.replace([full, comes])
        assert (await sent).status == 200
        await pool.close()


async def test_a_model_that_was_not_set_up_is_asked_for_elsewhere_and_bars_no_other() -> None:
    a, b = up("a", weight=1000), up("b")
    pool, tries = pool_of(a, b), Tries()
    tries.model, tries.upstream = "claude-new", a
    pool.note_refused(tries, "model")
    assert choose(pool) == "a"
    assert a.is_healthy(now())
    assert a.rate.is_spent("claude-new", now())
    assert [failure.status for failure in tries.failures] == [403]
    pool.note_refused(tries, "account")
    assert not a.is_healthy(now())


async def test_a_402_may_be_about_one_large_call_and_five_in_a_row_are_not() -> None:
    """Another Farebox refuses what its customer's balance does not cover, and serves what is smaller."""
    async with serving(answering(b"402 Pay")) as (server, _), serving(answering(b"200 OK")) as (other, _):
        poor, well = up("poor", server.port, weight=1000), up("well", other.port)
        pool = pool_of(poor, well)
        for number in range(5):
            assert poor.is_healthy(now()), number
            await (await pool.send(Tries(), Ask(path="/", headers=[], model=MODEL), conversation=b"c")).read(9)
        assert not poor.is_healthy(now())
        await pool.close()
