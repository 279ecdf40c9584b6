"""A database that is there and will not do: read-only, full of connections, slow, or held up by somebody's lock."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from farebox.books import runs
from tests.cluster import ROLE, Cluster
from tests.databases import name_of
from tests.gateway.play import eventually, listen
from tests.stage import Person, Stage
from tests.trouble.acts import (
    charged_exactly,
    delivered,
    finished,
    held_up,
    hurry,
    is_ready,
    is_unready,
    refused_in_time,
    serves_again,
    spooled,
    store_of,
)
from tests.trouble.proxy import Proxy

_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1 AND datname = $2"


@pytest.fixture(autouse=True)
def _strays_are_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_STRAY_US", 0)


@pytest.fixture
def terminate(cluster: Cluster, postgres_url: str) -> Callable[[], object]:
    """End every session of the gateway, as an administrator may."""
    return lambda: cluster.fetch(_TERMINATE, ROLE, name_of(postgres_url))


async def test_sessions_that_an_administrator_ends_cost_no_call(stage: Stage, terminate: Callable[[], object]) -> None:
    for calls in range(1, 6):
        terminate()
        statuses = await asyncio.gather(*(stage.ask(stage.alice) for _ in range(5)))
        assert {status for status, _ in statuses} == {200}
        await charged_exactly(stage, stage.alice, calls=5 * calls)
    async with held_up(stage, stage.alice) as asking:
        terminate()
        assert (await asking)[0] == 200


async def test_a_read_only_database_refuses_new_calls_and_spools_old_ones_until_it_takes_writes_again(
    stage: Stage, cluster: Cluster, postgres_url: str, terminate: Callable[[], object]
) -> None:
    """As a primary that has become a standby: sessions stay read-only until they are made anew."""
    hurry(stage)
    name = name_of(postgres_url)
    async with held_up(stage, stage.alice) as asking:
        cluster.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        terminate()
        assert (await asking)[0] == 200
    assert spooled(stage) == 1
    await refused_in_time(stage, stage.alice)
    await refused_in_time(stage, stage.bob)
    await eventually(lambda: is_unready(stage))
    cluster.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await serves_again(stage, stage.alice)
    await eventually(lambda: is_ready(stage))
    await delivered(stage)
    await charged_exactly(stage, stage.alice, calls=2)


async def test_where_there_are_too_few_connections_calls_are_refused_until_there_are_more(
    stage: Stage, cluster: Cluster, postgres_url: str, terminate: Callable[[], object]
) -> None:
    hurry(stage)
    name = name_of(postgres_url)
    async with held_up(stage, stage.alice) as asking:
        cluster.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
        terminate()
        assert (await asking)[0] == 200
    assert spooled(stage) == 1
    await refused_in_time(stage, stage.alice)
    await refused_in_time(stage, stage.bob)
    await eventually(lambda: is_unready(stage))
    cluster.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
    await serves_again(stage, stage.alice)
    await delivered(stage)
    await charged_exactly(stage, stage.alice, calls=2)


async def test_with_a_few_connections_it_serves_all_the_same(
    stage: Stage, cluster: Cluster, postgres_url: str, terminate: Callable[[], object]
) -> None:
    """One for each lane and one for everything else, where six would be taken: what cannot connect waits its turn."""
    cluster.execute(f"ALTER DATABASE {name_of(postgres_url)} CONNECTION LIMIT 4")
    terminate()
    await serves_again(stage, stage.alice)
    answers = await asyncio.gather(*(stage.ask(stage.alice) for _ in range(20)))
    assert {status for status, _ in answers} == {200}


@asynccontextmanager
async def locked(url: str, account_id: int) -> AsyncIterator[None]:
    """Somebody looks at an account FOR UPDATE, and goes for a coffee."""
    session = await asyncpg.connect(url)
    try:
        async with session.transaction():
            await session.execute("SELECT 1 FROM account WHERE id = $1 FOR UPDATE", account_id)
            yield
    finally:
        await session.close()


async def in_the_other_lane(stage: Stage, person: Person) -> Person:
    """Make a customer whose calls go another way."""
    lanes = stage.gateway.store.lanes
    for number in range(lanes):
        other = await stage.person(f"other{number}@example.com", 100)
        if other.account_id % lanes != person.account_id % lanes:
            return other
    raise AssertionError("there is one lane")


async def test_an_account_that_somebody_has_locked_is_refused_and_others_are_served(
    stage: Stage, postgres_url: str
) -> None:
    carol = await in_the_other_lane(stage, stage.alice)
    assert (await stage.ask(stage.alice))[0] == 200
    async with locked(postgres_url, stage.alice.account_id):
        refusals = [asyncio.create_task(refused_in_time(stage, stage.alice)) for _ in range(3)]
        served = 0
        while not all(refusal.done() for refusal in refusals):
            assert (await stage.ask(carol))[0] == 200
            served += 1
            await asyncio.sleep(0.02)
        await asyncio.gather(*refusals)
        assert served > 10
        assert await is_ready(stage)
    assert (await stage.ask(stage.alice))[0] == 200
    await delivered(stage)
    await charged_exactly(stage, stage.alice, calls=2)
    await charged_exactly(stage, carol, calls=served)


async def test_a_stream_of_a_locked_account_goes_on_and_is_charged_when_the_lock_is_gone(
    stage: Stage, postgres_url: str
) -> None:
    hurry(stage, apply_s=1.5, settle_s=10)
    heard = await listen(stage, stage.alice, "[[sim tokens=400 rate=800]]", max_tokens=20_000)
    await heard.has(b"content_block_delta")
    async with locked(postgres_url, stage.alice.account_id):
        await heard.has(b"content_block_stop")
        await asyncio.sleep(0.2)
        assert not heard.ended
    assert finished(await heard.end())
    assert spooled(stage) == 0
    await charged_exactly(stage, stage.alice)


async def test_a_database_that_is_slow_but_answers_refuses_nobody(stage: Stage, proxy: Proxy) -> None:
    proxy.delay_s = 0.3
    answers = await asyncio.gather(*(stage.ask(stage.alice) for _ in range(5)))
    assert {status for status, _ in answers} == {200}
    proxy.delay_s = 0
    await charged_exactly(stage, stage.alice, calls=5)


async def test_a_database_that_is_too_slow_refuses_in_time_and_charges_nothing_for_it(
    stage: Stage, proxy: Proxy
) -> None:
    """It does what it is asked, too late for anybody to hear."""
    hurry(stage, apply_s=store_of(stage).apply_patience_s)
    assert (await stage.ask(stage.alice))[0] == 200
    proxy.delay_s = 5
    await asyncio.gather(*(refused_in_time(stage, stage.alice) for _ in range(5)))
    await proxy.heal()
    await serves_again(stage, stage.alice)
    await delivered(stage)
    await charged_exactly(stage, stage.alice, calls=2)
