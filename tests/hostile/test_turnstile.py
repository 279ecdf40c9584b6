"""More requests than can be served at once: those that were first are served first, so many with each turn."""

import asyncio
from contextlib import AsyncExitStack

from farebox.http.exchange import Exchange
from farebox.http.server import HttpServer
from farebox.http.turnstile import PER_TURN, Turnstile
from tests.databases import on_sqlite
from tests.hostile.raw import dial

pytestmark = on_sqlite


class _Line:
    """As much of a connection as an exchange needs to be lost."""


def _exchange() -> Exchange:
    return Exchange(_Line(), "127.0.0.1")  # type: ignore[arg-type]


async def test_so_many_come_in_with_each_turn_and_all_in_their_order() -> None:
    let_in: list[Exchange] = []
    turnstile = Turnstile(let_in.append, per_turn=3)
    come = [_exchange() for _ in range(8)]
    for exchange in come:
        turnstile.enter(exchange)
    for count in (3, 6, 8):
        assert (let_in, turnstile.waiting) == (come[:count], 8 - count)
        await asyncio.sleep(0)
    late = _exchange()
    turnstile.enter(late)
    assert let_in[-1] is late, "nobody waits when there is room"


async def test_who_comes_later_waits_behind_those_who_wait() -> None:
    let_in: list[Exchange] = []
    turnstile = Turnstile(let_in.append, per_turn=1)
    first, second, third = (_exchange() for _ in range(3))
    turnstile.enter(first)
    turnstile.enter(second)
    await asyncio.sleep(0)
    turnstile.enter(third)
    assert let_in == [first, second]
    await asyncio.sleep(0)
    assert let_in == [first, second, third]


async def test_who_hangs_up_while_he_waits_costs_no_turn() -> None:
    let_in: list[Exchange] = []
    turnstile = Turnstile(let_in.append, per_turn=1)
    come = [_exchange() for _ in range(4)]
    for exchange in come:
        turnstile.enter(exchange)
    come[1].gone = come[2].gone = True
    await asyncio.sleep(0)
    assert let_in == [come[0], come[3]]


async def test_who_waits_when_the_server_closes_is_answered() -> None:
    closings: list[asyncio.Task[bool]] = []
    waited = 0

    async def handle(exchange: Exchange) -> None:
        nonlocal waited
        if not closings:
            waited = server.turnstile.waiting
            closings.append(asyncio.create_task(server.close(5)))
        exchange.respond(200, [], b"served")

    def on_bad_request(exchange: Exchange, error: Exception) -> None:
        raise AssertionError(error, exchange.path)

    server = HttpServer(handle, on_bad_request=on_bad_request)
    port = await server.listen("127.0.0.1", 0)
    async with AsyncExitStack() as open_lines:
        lines = [await open_lines.enter_async_context(dial(port)) for _ in range(3 * PER_TURN)]
        for line in lines:  # at once: the server reads none of it before the last is written
            line.writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert [(await line.reply()).body for line in lines] == [b"served"] * len(lines)
    assert waited
    assert await closings[0]
    await server.shut()
