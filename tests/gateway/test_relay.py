"""The relay by itself: when it reads, when it waits, and for whom. Both its ends are stand-ins that only take notes."""

from typing import Any

import pytest

from farebox.gateway.relay import Relay

START = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":1}}}\n\n'


class Client:
    """An exchange whose client reads, or does not."""

    def __init__(self) -> None:
        self.gone = False
        self.started = True
        self.backed_up = False
        self.on_resumed: Any = None
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


class Upstream:
    """An answer that can be paused."""

    def __init__(self) -> None:
        self.paused = False

    def attach(self, sink: Any) -> None:
        self.sink = sink

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def abandon(self) -> None:
        self.paused = True

    def silent_s(self, _: float) -> float:
        return 0.0


def text(size: int) -> bytes:
    return b'event: content_block_delta\ndata: {"delta":{"type":"text_delta","text":"%b"}}\n\n' % (b"x" * size)


@pytest.fixture
async def ends() -> tuple[Client, Upstream, Relay]:
    client, upstream = Client(), Upstream()
    relay = Relay(upstream, client, stall_s=9, keep_alive_s=9, hidden_rate=0)  # type: ignore[arg-type]
    return client, upstream, relay


Ends = tuple[Client, Upstream, Relay]


async def test_what_is_not_covered_by_money_waits_and_the_upstream_with_it(ends: Ends) -> None:
    client, upstream, relay = ends
    relay.cover(100, float("inf"))
    relay.on_data(START + text(200))
    assert (client.written, upstream.paused) == (START + text(200), False)
    relay.on_data(text(10))
    assert (client.written, upstream.paused) == (START + text(200), True)
    relay.cover(200, float("inf"))
    assert (client.written, upstream.paused) == (START + text(200) + text(10), False)


async def test_an_upstream_waits_for_a_client_that_reads_slowly_and_goes_on_when_it_does(ends: Ends) -> None:
    client, upstream, relay = ends
    client.backed_up = True
    relay.on_data(START)
    assert upstream.paused
    client.backed_up = False
    client.on_resumed()
    assert not upstream.paused


async def test_an_upstream_does_not_wait_for_a_slow_client_that_has_gone(ends: Ends) -> None:
    """Nobody will ever report its connection as writable again."""
    client, upstream, relay = ends
    relay.cover(100, float("inf"))
    client.backed_up = True
    relay.on_data(START + text(500))
    relay.hung_up()
    assert upstream.paused
    relay.cover(1000, float("inf"))
    assert not upstream.paused
    relay.on_data(text(20))
    assert client.written == b""


async def test_thinking_that_shows_nothing_is_bounded_by_time(ends: Ends) -> None:
    _, _, relay = ends
    relay.hidden_rate = 250
    relay.on_data(START)
    for now in (1.0, 2.0, 3.0):
        relay.tick(now)
    assert relay.produced_tokens == 750
    relay.on_data(text(100))
    relay.tick(4.0)
    assert relay.produced_tokens == 750 + 50


async def test_the_owner_is_woken_before_the_money_runs_out(ends: Ends) -> None:
    _, upstream, relay = ends
    relay.cover(1000, 400)
    relay.on_data(START + text(700))
    assert not relay.needs_decision
    relay.on_data(text(200))
    assert relay.needs_decision
    assert not upstream.paused
