"""Clients that crawl, stall, vanish or never read. Each waits with a limit; nobody else waits for them.

The limits are those of conftest.py, under a second; the server looks once a second.
"""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from tests.databases import on_sqlite
from tests.hostile.raw import ask, check_refusal, dial, exchange, head, request
from tests.stage import Stage, open_stage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_sqlite]

LATE_S = 4.0


def list_models(stage: Stage) -> bytes:
    return request(stage.alice, method="GET", path="/api/proxy/v1/models")


async def test_a_connection_that_says_nothing_is_closed(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        assert await line.closed(LATE_S) == b""


async def test_an_idle_connection_is_kept_for_a_while_and_then_closed(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        for pause_s in (0.0, 1.0):
            await asyncio.sleep(pause_s)
            await line.write(list_models(shared))
            assert (await line.reply()).status == 200
        assert await line.closed(LATE_S + 2) == b""


@pytest.mark.parametrize("said", [b"P", b"POST /v1/messages HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nhost: a\r\nx-a: b\r\n"])
async def test_a_head_that_does_not_end_is_refused_in_time(shared: Stage, said: bytes) -> None:
    async with dial(shared.gateway.port) as line:
        await line.write(said)
        async with asyncio.timeout(LATE_S):
            check_refusal(await line.reply(), 408, "too slowly")
        assert await line.closed() == b""


async def test_a_head_byte_by_byte_is_refused_in_time_however_steadily_it_comes(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        async with asyncio.timeout(LATE_S):
            for byte in head(shared.alice) + b"\r\n":
                if line.reader._buffer:  # type: ignore[attr-defined]
                    break
                await line.write(bytes([byte]))
                await asyncio.sleep(0.05)
            check_refusal(await line.reply(), 408)


async def test_a_second_head_that_does_not_end_is_refused_in_time(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        await line.write(list_models(shared) + head(shared.alice))
        assert (await line.reply()).status == 200
        async with asyncio.timeout(LATE_S):
            check_refusal(await line.reply(), 408)


async def test_a_body_that_stops_coming_is_refused_in_time(shared: Stage) -> None:
    body = ask()
    async with dial(shared.gateway.port) as line:
        await line.write(head(shared.alice, f"content-length: {len(body)}") + b"\r\n" + body[:-1])
        async with asyncio.timeout(LATE_S):
            check_refusal(await line.reply(), 408)
        assert await line.closed() == b""


async def test_a_body_byte_by_byte_is_refused_when_it_takes_too_long_in_all(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        await line.write(head(shared.alice, "content-length: 1000") + b"\r\n")
        async with asyncio.timeout(LATE_S + 2):
            while not line.reader._buffer:  # type: ignore[attr-defined]
                await line.write(b" ")
                await asyncio.sleep(0.1)
            check_refusal(await line.reply(), 408)


async def test_a_slow_body_within_the_limits_is_served(shared: Stage) -> None:
    body = ask(max_tokens=-1)
    async with dial(shared.gateway.port) as line:
        await line.write(head(shared.alice, f"content-length: {len(body)}") + b"\r\n")
        for at in range(0, len(body), 20):
            await line.write(body[at : at + 20])
            await asyncio.sleep(0.2)
        check_refusal(await line.reply(), 400, "max_tokens")


async def test_a_slow_head_within_the_limits_is_served(tmp_path: Path) -> None:
    """However long ago the request before it was: the time of a body counts from its own beginning."""
    async with open_stage(tmp_path, limits="header_timeout_s = 8\nbody_total_s = 1") as stage:
        data = list_models(stage)
        async with dial(stage.gateway.port) as line:
            for _ in range(2):
                for piece in (data[:30], data[30:-2], data[-2:]):
                    await line.write(piece)
                    await asyncio.sleep(1.1)
                assert (await line.reply()).status == 200


async def test_a_client_that_closes_its_side_has_hung_up(shared: Stage) -> None:
    """Half of a body, then the end of the sending side: no answer, no trace in the books."""
    async with dial(shared.gateway.port) as line:
        await line.write(head(shared.alice, "content-length: 1000") + b"\r\n{")
        line.writer.write_eof()
        assert await line.closed(LATE_S) == b""


async def test_clients_that_vanish_in_the_middle_of_a_request_leave_nothing(shared: Stage) -> None:
    data = request(shared.alice, ask())
    for at in (1, 40, len(data) // 2, len(data) - 1):
        async with dial(shared.gateway.port) as line:
            await line.write(data[:at])
    async with asyncio.timeout(LATE_S):
        while shared.gateway._server.tasks:  # type: ignore[union-attr]  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_many_crawlers_keep_nobody_waiting(shared: Stage) -> None:
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(dial(shared.gateway.port)) for _ in range(300)]
        for line in lines:
            await line.write(head(shared.alice))
        begun = loop.time()
        assert (await exchange(shared.gateway.port, list_models(shared), "GET")).status == 200
        assert loop.time() - begun < 1.0
        async with asyncio.timeout(LATE_S + 2):
            for line in lines:
                check_refusal(await line.reply(), 408)


async def test_a_client_that_never_reads_is_cut_off_and_its_call_is_settled(tmp_path: Path) -> None:
    """Its stream backs up to the upstream, which is not read without end either; then the connection is cut."""
    async with open_stage(tmp_path, limits="write_stall_s = 1\ndrain_s = 1") as stage:
        body = ask(
            stream=True, max_tokens=60_000, messages=[{"role": "user", "content": "[[sim tokens=60000 delta=1]]"}]
        )
        async with dial(stage.gateway.port) as line:
            line.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await line.write(request(stage.alice, body))
            async with asyncio.timeout(20):
                while not (rows := await stage.rows("SELECT kind, outcome, charged_nanos FROM usage")):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        assert rows[0][1] == "client_gone"
        assert rows[0][2] > 0
        posted, held = await stage.balance(stage.alice)
        assert (posted, held) == (100 * 10**9 - rows[0][2], 0)


async def test_more_connections_than_allowed_are_closed_at_once(tmp_path: Path) -> None:
    async with open_stage(tmp_path, limits="connections = 20") as stage, contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(dial(stage.gateway.port)) for _ in range(30)]
        await asyncio.sleep(0.1)
        closed = [line for line in lines if line.reader.at_eof()]
        assert len(closed) == 10
        lines[0].writer.transport.abort()
        await asyncio.sleep(0.1)
        assert (await exchange(stage.gateway.port, list_models(stage), "GET")).status == 200


async def test_a_client_that_never_reads_the_last_of_a_closing_connection_is_cut(shared: Stage) -> None:
    """Else its connection would count for ever, and ten thousand of them would shut the doors."""
    server = shared.gateway._server
    assert server is not None
    others = set(server.connections)
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    small.connect(("127.0.0.1", shared.gateway.port))
    async with asyncio.timeout(LATE_S):
        while not (fresh := set(server.connections) - others):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)
        transport = fresh.pop()._transport
        assert transport is not None
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        head = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-api-key: {shared.alice.key}\r\n"
        small.sendall(f"{head}\r\n{head}connection: close\r\n\r\n".encode())
        while not transport.is_closing():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)
        assert transport.get_write_buffer_size() > 0
        while set(server.connections) - others:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)
    small.close()
