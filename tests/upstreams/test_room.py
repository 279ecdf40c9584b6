"""What an upstream cannot be asked goes to the next one; room is kept for whoever's turn it is."""

import asyncio
import random
from typing import Any, cast

import pytest

from farebox.errors import InvalidRequest, Refusal
from farebox.upstreams import pool as pools
from farebox.upstreams.kinds.anthropic import Anthropic
from farebox.upstreams.kinds.kind import Ask, Outgoing
from farebox.upstreams.pool import Pool
from farebox.upstreams.roster import Roster
from farebox.upstreams.tries import Tries
from farebox.upstreams.upstream import Upstream
from tests.gateway.play import books, listen, message
from tests.stage import OpenStage
from tests.upstreams.kinds.chat.server import asked
from tests.upstreams.kinds.chat.server import serving as serving_chat
from tests.upstreams.kinds.chat.server import whole as chat_answer
from tests.upstreams.test_choice import now, rest, up
from tests.upstreams.test_pool import answering, pool_of
from tests.upstreams.wire import Line, serving, until, whole

SIMULATED = '\n[[upstreams]]\nname = "sim"\nkind = "simulator"\npriority = 1\n'
PDF: dict[str, Any] = {
    "type": "document",
    "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQK"},
}


class Choosy(Anthropic):
    """Takes its time to put a request in its words, and cannot put every one."""

    def __init__(self, upstream: Upstream, refusal: Refusal | None = None) -> None:
        super().__init__(upstream.settings.api_key)
        self.refusal = refusal

    async def prepare(self, ask: Ask, name: str) -> Outgoing:
        for _ in range(3):
            await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        return await super().prepare(ask, name)


def choosy(name: str, port: int = 9, refusal: Refusal | None = None, **more: Any) -> Upstream:
    upstream = up(name, port, **more)
    upstream.kind = Choosy(upstream, refusal)
    return upstream


def ask() -> Ask:
    return Ask(path="/v1/messages", headers=[], model="claude-this")


async def test_what_one_upstream_cannot_be_asked_goes_to_the_next_and_is_no_failure() -> None:
    async with serving(answering(b"200 OK")) as (server, _):
        first, second = choosy("first", refusal=InvalidRequest("not this")), up("second", server.port, priority=1)
        pool, tries = pool_of(first, second, attempts=1, retry_budget=0), Tries()
        assert (await pool.send(tries, ask(), conversation=b"c")).status == 200
        assert (tries.count, tries.failures, tries.failed_at) == (1, [], set())
        assert (first.calls, first.failures, first.claimed, second.calls) == (0, 0, 0, 1)
        assert first.is_healthy(now())
        pool.note_success(tries)
        place = pool.places.find(b"c")
        assert place is not None
        assert place.upstream == "second"
        await pool.close()


async def test_what_no_upstream_can_be_asked_is_told_in_the_words_of_the_first() -> None:
    one, two = choosy("one", refusal=InvalidRequest("one says")), choosy("two", refusal=InvalidRequest("two says"))
    two.priority = 1
    with pytest.raises(InvalidRequest, match="one says"):
        await pool_of(one, two).send(Tries(), ask(), conversation=b"c")


async def test_one_that_rests_is_still_asked_what_another_cannot_be() -> None:
    async with serving(answering(b"200 OK")) as (server, _):
        choosy_one, rests = choosy("choosy", refusal=InvalidRequest("not this")), up("rests", server.port)
        rest(rests)
        pool = pool_of(choosy_one, rests)
        assert (await pool.send(Tries(), ask(), conversation=b"c")).status == 200
        await pool.close()


async def test_a_call_that_could_not_be_put_leaves_the_probe_to_another() -> None:
    alone = choosy("alone", refusal=InvalidRequest("not this"))
    pool = pool_of(alone)
    rest(alone)
    alone.rests_until = 0
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            await pool.send(Tries(), ask(), conversation=b"c")
        assert alone.is_healthy(now())


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_burst_never_passes_the_limit_however_long_requests_take_to_be_put_and_whoever_leaves(
    concurrency: int,
) -> None:
    at_once = 0

    async def slowly(line: Line) -> None:
        nonlocal at_once
        while True:
            await line.request()
            at_once = max(at_once, upstream.in_flight)
            await asyncio.sleep(0.001)
            await line.say(whole(b"{}"))

    async with serving(slowly) as (server, _):
        upstream = choosy("a", server.port, concurrency=concurrency)
        pool = pool_of(upstream)
        dice = random.Random(concurrency)

        async def call() -> None:
            answer = await pool.send(Tries(), ask(), conversation=b"c")
            await answer.read(100)

        calls = [asyncio.create_task(call()) for _ in range(60)]
        leaving = dice.sample(calls, 20)
        for one in leaving:
            await asyncio.sleep(dice.choice((0, 0, 0.001)))
            one.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert [one for one in ended if one is not None and not isinstance(one, asyncio.CancelledError)] == []
        assert sum(one is None for one in ended) >= 40
        assert at_once == concurrency
        assert (upstream.claimed, upstream.in_flight, len(pool.waiting)) == (0, 0, 0)
        await pool.close()


async def test_nobody_comes_between_a_call_and_its_turn() -> None:
    upstream = up("a", concurrency=1)
    upstream.client.running = 1
    pool = pool_of(upstream)
    waits = asyncio.create_task(pool._wait(Tries(), b"c", b""))
    await asyncio.sleep(0)
    upstream.client.running = 0
    pool._next()
    assert pool._choose(Tries(), b"newcomer") is None
    assert await waits is upstream
    assert pool._choose(Tries(), b"newcomer") is upstream


async def test_a_turn_that_is_not_taken_is_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation that is bound to one upstream does not take the room of another; whoever waits behind it does."""
    a, b = up("a", concurrency=1), up("b", concurrency=1)
    pool = pool_of(a, b)
    a.client.running = b.client.running = 1
    choose = Pool._choose

    def picky(self: Pool, tries: Tries, conversation: bytes, *more: Any, **others: Any) -> Upstream | None:
        found = choose(self, tries, conversation, *more, **others)
        return None if conversation == b"picky" and found is b else found

    monkeypatch.setattr(Pool, "_choose", picky)
    first = asyncio.create_task(pool._wait(Tries(), b"picky", b""))
    await asyncio.sleep(0)
    second = asyncio.create_task(pool._wait(Tries(), b"any", b""))
    await asyncio.sleep(0)
    b.client.running = 0
    pool._next()
    assert await second is b
    assert not first.done()
    a.client.running = 0
    pool._next()
    assert await first is a
    assert (a.claimed, b.claimed) == (0, 0)


async def test_the_words_of_a_failure_are_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_ERROR_BODY_S", 0.05)

    async def endless(line: Line) -> None:
        await line.request()
        await line.say(b"HTTP/1.1 500 No\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            await line.say(b"x")
            await asyncio.sleep(0.01)

    async with serving(endless) as (server, _), serving(answering(b"200 OK")) as (other, _):
        slow, well = up("slow", server.port), up("well", other.port, priority=1)
        pool = pool_of(slow, well)
        async with asyncio.timeout(5):
            assert (await pool.send(Tries(), ask(), conversation=b"c")).status == 200
        await pool.close()
        assert slow.in_flight == 0


async def test_a_chat_server_that_reads_no_pdfs_leaves_them_to_an_upstream_that_does(open_stage: OpenStage) -> None:
    async with serving_chat(chat_answer({})) as (server, chat), open_stage(upstreams=chat + SIMULATED) as stage:
        body = message("x") | {"messages": [{"role": "user", "content": [PDF, {"type": "text", "text": "Read it"}]}]}
        answer = await stage.post(stage.alice, body)
        assert answer.status == 200, await answer.read(10_000)
        await answer.read(100_000)
        row = await books(stage, stage.alice)
        assert (row["kind"], row["upstream"], row["attempts"]) == ("exact", "sim", 1)
        assert asked(server) == []


async def test_alone_it_says_what_it_cannot_be_asked(open_stage: OpenStage) -> None:
    async with serving_chat(chat_answer({})) as (_, chat), open_stage(upstreams=chat) as stage:
        body = message("x") | {"messages": [{"role": "user", "content": [PDF]}]}
        answer = await stage.post(stage.alice, body)
        assert answer.status == 400
        assert b"does not read PDFs" in await answer.read(10_000)
        assert (await stage.balance(stage.alice))[1] == 0


async def test_a_probe_that_is_cancelled_leaves_it_to_another() -> None:
    async def silent(line: Line) -> None:
        await line.request()
        await line.gone()

    async with serving(silent) as (server, _):
        alone = choosy("alone", server.port)
        pool = pool_of(alone)
        for steps in (2, 40):  # while its request is put in words, and while its answer is waited for
            rest(alone)
            alone.rests_until = 0
            probe = asyncio.create_task(pool.send(Tries(), ask(), conversation=b"c"))
            for _ in range(steps):
                await asyncio.sleep(0.001 if steps > 2 else 0)
            assert not alone.is_healthy(now())
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
            assert alone.is_healthy(now())
            assert alone.claimed == 0
        await pool.close()


async def test_a_call_that_could_not_be_put_ends_nobody_elses_probe() -> None:
    alone = choosy("alone", refusal=InvalidRequest("not this"))
    pool = pool_of(alone)
    rest(alone)
    alone.rests_until = 0
    assert alone.takes(now())
    with pytest.raises(InvalidRequest):
        await pool.send(Tries(), ask(), conversation=b"c")
    assert not alone.is_healthy(now())


async def test_who_waits_keeps_the_place_in_the_queue_when_upstreams_change() -> None:
    upstream = up("a", concurrency=1)
    upstream.client.running = 1
    pool = pool_of(upstream)
    waits = [Tries() for _ in range(4)]
    calls = []
    for tries in waits:
        calls.append(asyncio.create_task(pool._wait(tries, b"c", b"")))
        await asyncio.sleep(0)
    for _ in range(2):
        pool.replace([upstream])
        for _ in range(5):
            await asyncio.sleep(0)
    assert [turn.tries for turn in pool.waiting] == waits
    for call in calls:
        upstream.client.running = 0
        pool._next()
        assert await call is upstream
        upstream.client.running = 1
    assert (upstream.claimed, len(pool.waiting)) == (0, 0)


@pytest.mark.parametrize("other", ["enabled", "added"])
async def test_who_waits_goes_to_an_upstream_that_is_enabled_or_added_meanwhile(other: str) -> None:
    busy, free = up("busy", concurrency=1), up("free")
    busy.client.running = 1
    pool = pool_of(busy, free) if other == "enabled" else pool_of(busy)
    pool.drain({"free"})
    waits = asyncio.create_task(pool._wait(Tries(), b"c", b""))
    await asyncio.sleep(0)
    if other == "enabled":
        pool.drain(set())
    else:
        pool.replace([busy, free])
    async with asyncio.timeout(1):
        assert await waits is free


async def test_an_upstream_whose_connections_are_all_busy_is_full_and_not_broken(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls wait for it in turn, or are told so; its health has nothing to do with it."""
    monkeypatch.setattr(pools, "_QUEUE_S", 0.3)
    busy = '[[upstreams]]\nname = "sim"\nkind = "simulator"\nspeed = 0\nconnections = 2\nconnect_s = 0.1\n'
    async with open_stage(upstreams=busy) as stage:
        streams = [await listen(stage, stage.alice, "[[sim tokens=500 rate=20]]") for _ in range(2)]
        refused = await asyncio.gather(*(stage.ask(stage.alice) for _ in range(6)))
        assert {status for status, _ in refused} == {529}
        monkeypatch.setattr(pools, "_QUEUE_S", 5.0)
        waits = asyncio.create_task(stage.ask(stage.alice))
        await until(lambda: stage.parts.pool.waiting)
        (upstream,) = stage.parts.pool.upstreams
        assert (upstream.failures, upstream.failed_by) == (0, {})
        next(iter(upstream.client.opened)).abort()  # ends a stream: its place is free
        assert (await waits)[0] == 200
        for stream in streams:
            stream.hang_up()


async def test_an_upstream_that_leaves_is_not_closed_while_a_call_is_put_in_its_words() -> None:
    """As when a token is waited for: nothing of it is under way yet."""
    closed = []

    class Leaving(Choosy):
        async def close(self) -> None:
            closed.append(True)

    upstream = up("a")
    upstream.kind = Leaving(upstream)
    roster = Roster(cast("Any", None), pool_of(), cast("Any", None), cast("Any", None), print)
    roster._leaving = [(upstream, now() - 60)]
    upstream.claimed += 1
    await roster.tend()
    assert not closed
    upstream.unclaim()
    await roster.tend()
    assert closed
