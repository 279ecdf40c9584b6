"""The pool: who gets a call, who rests and for how long, and how often a failed try is repeated."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence

import pytest

from farebox.errors import Refusal
from farebox.http.failures import Cut
from farebox.upstreams.budgets import RetryBudget
from farebox.upstreams.kinds.kind import Ask
from farebox.upstreams.pool import Pool
from farebox.upstreams.settings import UpstreamSettings
from farebox.upstreams.tries import Tries
from farebox.upstreams.upstream import Upstream
from tests.upstreams.wire import Line, Peer, serving, whole

CALLS = 6_000


def up(name: str, weight: int = 1, port: int = 9, models: tuple[str, ...] = ()) -> Upstream:
    settings = UpstreamSettings(
        name=name, kind="anthropic", base_url=f"http://127.0.0.1:{port}", weight=weight, models=models
    )
    return Upstream(settings, connect_s=1, stall_s=1)


def pool_of(*upstreams: Upstream, attempts: int = 3, retry_budget: float = 1.0) -> Pool:
    return Pool(
        upstreams,
        attempts=attempts,
        retry_budget=retry_budget,
        retry_wait_s=0.5,
        retry_after_max_s=10,
        first_byte_s=5,
        chance=lambda: 0.0,
    )


def chosen(pool: Pool, tries: Tries | None = None, calls: int = CALLS) -> list[str]:
    """Choose for many conversations."""
    found = (pool._choose(tries or Tries(), b"conversation-%d" % number) for number in range(calls))
    return [upstream.name for upstream in found if upstream is not None]


async def test_calls_are_shared_out_by_weight() -> None:
    counts = Counter(chosen(pool_of(up("one", 1), up("two", 2), up("three", 3), up("spare", 0))))
    assert set(counts) == {"one", "two", "three"}
    for share, name in enumerate(("one", "two", "three"), 1):
        assert counts[name] / CALLS == pytest.approx(share / 6, abs=0.03)


async def test_a_conversation_stays_where_it_is_and_only_those_of_a_lost_upstream_move() -> None:
    """Or, when one is added, only those that it takes: prompt caches stay warm."""
    names = ("a", "b", "c", "d")
    before = chosen(pool_of(*map(up, names)))
    assert before == chosen(pool_of(*map(up, reversed(names))))
    without = chosen(pool_of(*map(up, names[:3])))
    moved = [now for then, now in zip(before, without, strict=True) if then != now]
    assert [then for then, now in zip(before, without, strict=True) if then != now] == ["d"] * before.count("d")
    for name in names[:3]:
        assert moved.count(name) / len(moved) == pytest.approx(1 / 3, abs=0.05)
    heavier = chosen(pool_of(up("a", 3), *map(up, names[1:])))
    assert {now for then, now in zip(before, heavier, strict=True) if then != now} == {"a"}


async def test_a_spare_gets_calls_only_when_no_other_is_healthy() -> None:
    main, spare = up("main"), up("spare", 0)
    pool = pool_of(main, spare)
    assert set(chosen(pool, calls=50)) == {"main"}
    _fail(main, 5, asyncio.get_running_loop().time())
    assert set(chosen(pool, calls=50)) == {"spare"}
    _fail(spare, 5, asyncio.get_running_loop().time())
    assert set(chosen(pool, calls=50)) == {"main"}


async def test_a_try_goes_where_the_call_has_not_failed_yet_and_the_model_is_served() -> None:
    pool = pool_of(up("a"), up("b"), up("c", models=("claude-other",)))
    tries = Tries()
    tries.model = "claude-this"
    assert set(chosen(pool, tries, 50)) == {"a", "b"}
    tries.failed_at.add("a")
    assert set(chosen(pool, tries, 50)) == {"b"}
    tries.failed_at.add("b")
    assert set(chosen(pool, tries, 50)) == {"a", "b"}


def _fail(upstream: Upstream, times: int, now: float) -> None:
    for _ in range(times):
        upstream.failed(now)


def test_five_failures_in_a_row_make_an_upstream_rest_and_four_do_not() -> None:
    upstream = up("a")
    _fail(upstream, 4, 100)
    assert upstream.is_healthy(100)
    upstream.succeeded()
    _fail(upstream, 4, 100)
    assert upstream.is_healthy(100)
    upstream.failed(100)
    assert not upstream.is_healthy(100)
    assert not upstream.is_healthy(109.9)
    assert upstream.is_healthy(110)


def test_a_rest_grows_with_each_probe_that_fails_up_to_two_minutes_and_ends_with_one_that_does_not() -> None:
    upstream, now, rests = up("a"), 0.0, []
    _fail(upstream, 5, now)
    for _ in range(15):
        rests.append(upstream.rests_until - now)
        now = upstream.rests_until
        upstream.takes(now)
        upstream.failed(now)
    assert rests == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 120, 120, 120]
    upstream.succeeded()
    assert upstream.is_healthy(now)
    _fail(upstream, 4, now)
    assert upstream.is_healthy(now)
    upstream.failed(now)
    assert upstream.rests_until == now + 10


def test_a_crowd_that_fails_at_once_means_one_rest_and_not_a_long_one() -> None:
    upstream = up("a")
    _fail(upstream, 200, 50)
    _fail(upstream, 200, 59)
    assert upstream.is_healthy(60)


def test_after_a_rest_one_call_probes_while_the_others_wait() -> None:
    upstream = up("a")
    _fail(upstream, 5, 0)
    assert upstream.is_healthy(10)
    upstream.takes(10)
    assert not upstream.is_healthy(10)
    assert not upstream.is_healthy(19.9)
    assert upstream.is_healthy(20)  # the probe takes long: another may go
    upstream.takes(20)
    upstream.succeeded()
    assert upstream.is_healthy(20)


async def test_a_rested_upstream_is_brought_back_by_a_probe_of_the_pool() -> None:
    a, b = up("a", 1000), up("b")
    pool = pool_of(a, b)
    _fail(a, 5, asyncio.get_running_loop().time())
    assert set(chosen(pool, calls=20)) == {"b"}
    a.rests_until = 0
    (probe,) = [found for number in range(20) if (found := _take(pool, b"%d" % number)) is a]
    probe.succeeded()
    assert "a" in chosen(pool, calls=20)


def _take(pool: Pool, conversation: bytes) -> Upstream | None:
    upstream = pool._choose(Tries(), conversation)
    if upstream is not None:
        upstream.takes(asyncio.get_running_loop().time())
    return upstream


async def test_a_pool_whose_upstreams_all_rest_goes_on_trying() -> None:
    a, b = up("a"), up("b")
    for upstream in (a, b):
        _fail(upstream, 9, asyncio.get_running_loop().time())
    assert set(chosen(pool_of(a, b), calls=50)) == {"a", "b"}
    assert set(chosen(pool_of(a), calls=5)) == {"a"}


def answering(status: bytes, requests: int = 100) -> Peer:
    async def peer(line: Line) -> None:
        for _ in range(requests):
            await line.request()
            await line.say(whole(b"{}").replace(b"200 OK", status))

    return peer


async def _send(pool: Pool, tries: Tries | None = None) -> int:
    """Send a call; answers the status of the answer or of the refusal."""
    try:
        answer = await pool.send(tries or Tries(), Ask(path="/", headers=[], body=b"{}"), conversation=b"c")
        await answer.read(100)
    except Refusal as refusal:
        return refusal.status
    return answer.status


@pytest.mark.parametrize(
    ("status", "counted"),
    [(b"429 Slow", False), (b"500 Oops", True), (b"529 Full", True), (b"401 Who", True), (b"302 There", True)],
)
async def test_only_rate_limits_do_not_count_as_an_upstreams_failures(status: bytes, *, counted: bool) -> None:
    async with serving(answering(status)) as (server, _):
        upstream = up("a", port=server.port)
        pool = pool_of(upstream, attempts=1)
        for _ in range(5):
            await _send(pool)
        assert upstream.is_healthy(asyncio.get_running_loop().time()) is not counted
        assert upstream.failures == (5 if counted else 0)
        assert upstream.calls == 5
        await pool.close()


@pytest.mark.parametrize(("status", "well"), [(b"200 OK", False), (b"400 Bad", True), (b"413 Large", True)])
async def test_a_refusal_shows_an_upstream_to_be_well_but_the_head_of_an_answer_does_not(
    status: bytes, *, well: bool
) -> None:
    """An upstream that answers 200 and then breaks would never come to rest."""
    async with serving(answering(status)) as (server, _):
        upstream = up("a", port=server.port)
        pool, tries = pool_of(upstream), Tries()
        _fail(upstream, 4, 0)
        assert await _send(pool, tries) == int(status[:3])
        assert (upstream.failures_in_a_row == 0) is well
        pool.note_failure(tries, Cut("in its middle"))
        assert upstream.is_healthy(asyncio.get_running_loop().time()) is well
        pool.note_success(tries)
        assert upstream.is_healthy(asyncio.get_running_loop().time())
        await pool.close()


@pytest.mark.parametrize(
    ("share", "calls", "retries"), [(0.2, 0, 10), (0.2, 5, 11), (0.2, 100, 30), (0.2, 10_000, 500), (0.0, 1_000, 0)]
)
def test_a_retry_budget_is_ten_and_a_share_of_the_calls_up_to_five_hundred(
    share: float, calls: int, retries: int
) -> None:
    budget = RetryBudget(share)
    for _ in range(calls):
        budget.call()
    assert sum(budget.take() for _ in range(1_000)) == pytest.approx(retries, abs=1)


async def test_a_call_is_tried_so_often_and_no_more() -> None:
    async with serving(answering(b"500 Oops")) as (server, _):
        upstream = up("a", port=server.port)
        pool, tries = pool_of(upstream, attempts=4), Tries()
        assert await _send(pool, tries) == 502
        assert (tries.count, upstream.calls, pool.retries) == (4, 4, 3)
        await pool.close()


def _waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []

    async def sleep(delay_s: float) -> None:
        waited.append(delay_s)

    monkeypatch.setattr("farebox.upstreams.pool.asyncio.sleep", sleep)
    return waited


@pytest.mark.parametrize(
    ("attempts", "retry_after_s", "expected"),
    [(7, None, [0.5, 1, 2, 4, 8, 8]), (3, 3.0, [3, 3]), (3, 11.0, [])],
)
async def test_tries_at_the_same_upstream_are_spaced_out_and_wait_as_told(
    monkeypatch: pytest.MonkeyPatch, attempts: int, retry_after_s: float | None, expected: Sequence[float]
) -> None:
    pool, tries, waited = pool_of(up("a"), attempts=attempts), Tries(), _waits(monkeypatch)
    pool._chance = lambda: 1.0
    with contextlib.suppress(Refusal):
        while True:
            tries.count += 1
            tries.failed_at.add("a")
            tries.status, tries.retry_after_s = 503, retry_after_s
            await pool.prepare_retry(tries)
    assert tries.count == len(expected) + 1
    assert waited == list(expected)
