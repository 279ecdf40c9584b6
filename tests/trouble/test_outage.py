"""The database away in every way it can be: new calls are refused soon, those in flight end well, nothing is lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from farebox.books import runs
from tests.cluster import Cluster
from tests.gateway.play import USD, books, eventually, listen
from tests.stage import Stage
from tests.trouble.acts import (
    REFUSED_WITHIN_S,
    charged_exactly,
    delivered,
    finished,
    held_up,
    hurry,
    is_ready,
    is_unready,
    logged,
    probe,
    refused,
    refused_in_time,
    serves_again,
    settler_of,
    sound,
    spooled,
    streams_of,
)
from tests.trouble.proxy import Proxy

Act = Callable[[], Awaitable[None]]


@pytest.fixture(autouse=True)
def _strays_are_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than after half a minute: a database that stood still does later what it was asked to before."""
    monkeypatch.setattr(runs, "_STRAY_US", 0)


@dataclass
class Outage:
    """A way to be away, and back."""

    begin: Act
    end: Act


@pytest.fixture(params=["refuses", "is silent", "stopped", "frozen"])
async def outage(request: pytest.FixtureRequest, proxy: Proxy, cluster: Cluster) -> AsyncIterator[Outage]:
    """Connections are refused, nothing comes through, the server was stopped at once, or stands still."""

    async def fall_silent() -> None:
        proxy.fall_silent()

    async def stop() -> None:
        await asyncio.to_thread(cluster.stop, "immediate")

    async def start() -> None:
        await asyncio.to_thread(cluster.start)

    async def freeze() -> None:
        await asyncio.to_thread(cluster.freeze)

    async def thaw() -> None:
        await asyncio.to_thread(cluster.thaw)

    begin, end = {
        "refuses": (proxy.refuse, proxy.heal),
        "is silent": (fall_silent, proxy.heal),
        "stopped": (stop, start),
        "frozen": (freeze, thaw),
    }[request.param]
    away = False

    async def go_away() -> None:
        nonlocal away
        away = True
        await begin()

    async def come_back() -> None:
        nonlocal away
        away = False
        await end()

    yield Outage(go_away, come_back)
    if away:
        await end()


async def test_new_calls_are_refused_soon_and_served_again_when_it_is_over(stage: Stage, outage: Outage) -> None:
    """With a key that is known, one that has to be looked up, and many at once; probes tell the truth meanwhile."""
    assert (await stage.ask(stage.alice))[0] == 200
    assert await is_ready(stage)
    await outage.begin()
    await refused_in_time(stage, stage.alice)
    await refused_in_time(stage, stage.bob)
    await refused_in_time(stage, stage.alice, stream=True)
    await asyncio.gather(*(refused_in_time(stage, stage.alice) for _ in range(30)))
    answer = await stage.client.request(
        "GET", "/api/proxy/v1/models", [(b"x-api-key", stage.bob.key.encode())], b"", first_byte_s=REFUSED_WITHIN_S
    )
    await refused(answer)
    await eventually(lambda: is_unready(stage))
    assert await probe(stage, "/healthz") == 200
    assert len(logged(stage, "books_unavailable")) == 1
    assert len(stage.simulator.requests) == 1
    await outage.end()
    await serves_again(stage, stage.alice)
    await eventually(lambda: is_ready(stage))
    assert len(logged(stage, "books_available_again")) == 1
    await delivered(stage)
    await charged_exactly(stage, stage.alice, calls=2)


async def test_a_call_in_flight_ends_by_way_of_the_spool_and_is_charged_once(stage: Stage, outage: Outage) -> None:
    hurry(stage)
    async with held_up(stage, stage.alice) as asking:
        await outage.begin()
        status, body = await asking
        assert status == 200
        assert b'"stop_reason"' in body
    assert spooled(stage) == 1
    assert len(logged(stage, "settles_spooled")) == 1
    await settler_of(stage).retry()
    assert spooled(stage) == 1
    await outage.end()
    await serves_again(stage, stage.alice)
    await delivered(stage)
    await charged_exactly(stage, stage.alice, calls=2)
    await delivered(stage)
    (file,) = settler_of(stage)._spool._directory.iterdir()
    assert file.stat().st_size == 0


async def test_a_stream_within_its_slice_ends_by_way_of_the_spool_and_is_charged_once(
    stage: Stage, outage: Outage
) -> None:
    hurry(stage, stream_s=0.0)
    heard = await listen(stage, stage.alice, "[[sim tokens=400 rate=800]]", max_tokens=20_000)
    await heard.has(b"content_block_delta")
    await outage.begin()
    at = heard.visible_bytes
    await heard.end()
    assert finished(heard)
    assert heard.visible_bytes > at
    assert spooled(stage) == 1
    await outage.end()
    await serves_again(stage, stage.alice)
    await delivered(stage)
    row = (await stage.rows("SELECT output_tokens, kind FROM usage WHERE streamed = 1"))[0]
    assert row == (400, "exact")
    await charged_exactly(stage, stage.alice, calls=2)


async def test_a_stream_that_has_used_up_its_hold_waits_a_while_and_ends_free(stage: Stage, outage: Outage) -> None:
    hurry(stage, stream_s=0.5)
    heard = await listen(stage, stage.alice, "[[sim tokens=20000 rate=8000]]", max_tokens=50_000)
    await heard.has(b"content_block_delta")
    await outage.begin()
    await heard.end()
    name, event = heard.last
    assert (name, event["error"]["type"]) == ("error", "overloaded_error")
    assert "the books cannot be written" in event["error"]["message"]
    assert heard.visible_bytes > 1000
    await outage.end()
    await eventually(lambda: is_ready(stage))
    await delivered(stage)
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "gateway_broke", 0)
    await sound(stage)


async def test_a_stream_that_stands_still_goes_on_when_the_database_is_back(stage: Stage, outage: Outage) -> None:
    hurry(stage, stream_s=30)
    heard = await listen(stage, stage.alice, "[[sim tokens=6000 rate=20000]]", max_tokens=50_000)
    await heard.has(b"content_block_delta")
    await outage.begin()
    (relay,) = streams_of(stage)._relays.values()

    async def stands_still() -> bool:
        return bool(relay._uncovered)

    await eventually(stands_still)
    assert not heard.ended
    await outage.end()
    assert finished(await heard.end())
    row = await charged_exactly(stage, stage.alice)
    assert row["output_tokens"] == 6000


async def test_without_a_spool_nothing_more_is_delivered_and_nothing_is_charged(stage: Stage, outage: Outage) -> None:
    hurry(stage)
    settler_of(stage)._spool._most = 0
    heard = await listen(stage, stage.alice, "[[sim tokens=60 ttft=300]]")
    await heard.has(b"message_start")
    await outage.begin()
    await heard.end()
    assert (heard.last[0], heard.last[1]["error"]["type"]) == ("error", "api_error")
    assert not {"message_delta", "message_stop"} & set(heard.names)
    assert len(logged(stage, "spool_full")) == 1
    assert len(logged(stage, "settlement_not_durable")) == 1
    assert len(settler_of(stage).unsettled) == 1
    await outage.end()
    await eventually(lambda: is_ready(stage))
    await delivered(stage)
    assert await stage.balance(stage.alice) == (100 * USD, 0)
    assert (await stage.rows("SELECT open_holds FROM account WHERE id = ?", stage.alice.account_id))[0][0] == 0
    await sound(stage)
