"""A POST that was sent is never sent again: it would be billed twice. Before two gateways that misbehave."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from farebox.http.client import Answer
from farebox.http.failures import Cut
from tests.deploy.balancers import Balancer, dial
from tests.deploy.conftest import Balance
from tests.gateway.play import envelope

SMALL = b'{"model":"claude-sonnet-4-6","messages":[]}'
LARGE = SMALL + b" " * 200_000
WORDS = b'{"type":"error","error":{"type":"api_error","message":"the books cannot be read"},"request_id":"req_1"}'
FINE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
POST = b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (len(SMALL), SMALL)
FIRST_BYTE_S = 5.0


class Call:
    """One POST as a gateway got it."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = head.lower()
        self._reader = reader
        self._writer = writer

    async def body(self) -> bytes:
        """Read all of the body."""
        lengths = [line for line in self.head.split(b"\r\n") if line.startswith(b"content-length:")]
        return await self._reader.readexactly(int(lengths[0][15:]))

    def header(self, name: bytes) -> list[bytes]:
        lines = self.head.split(b"\r\n")
        return [line.partition(b":")[2].strip() for line in lines if line.startswith(name + b":")]

    async def answer(self, status: int, body: bytes) -> None:
        await self.body()
        head = f"HTTP/1.1 {status} Thus\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.say(head.encode() + body)
        if self.header(b"connection") == [b"close"]:
            self.close()

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        plug = self._writer.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Manner = Callable[[Call, int], Awaitable[None]]
"""What a gateway does with a POST; the second argument counts them, from 1."""


class Gateways:
    """Two gateways that are well by their probes, and treat calls as told."""

    def __init__(self, manner: Manner) -> None:
        self.calls: list[Call] = []
        self.lines: set[object] = set()
        """The connections that calls came on."""
        self._manner = manner

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /readyz "):
                    writer.write(FINE)
                    continue
                self.calls.append(Call(head, reader, writer))
                self.lines.add(writer)
                await self._manner(self.calls[-1], len(self.calls))
        writer.close()


@asynccontextmanager
async def behaving(manner: Manner, balanced: Balance) -> AsyncIterator[tuple[Gateways, Balancer]]:
    gateways = Gateways(manner)
    servers = [await asyncio.start_server(gateways.serve, "127.0.0.1", 0, limit=2**20) for _ in range(2)]
    first, second = (server.sockets[0].getsockname()[1] for server in servers)
    try:
        async with balanced(first, second) as balancer:
            yield gateways, balancer
    finally:
        for server in servers:
            server.close()


async def post(balancer: Balancer, *fields: tuple[bytes, bytes], body: bytes = SMALL) -> Answer:
    return await balancer.client.request("POST", "/v1/messages", fields, body, first_byte_s=FIRST_BYTE_S)


async def hangs_up(call: Call, _: int) -> None:
    await call.body()
    call.close()


async def resets(call: Call, _: int) -> None:
    await call.body()
    call.reset()


async def hangs_up_in_the_head(call: Call, _: int) -> None:
    await call.body()
    call.say(b"HTTP/1.1 200 OK\r\ncontent-ty")
    call.close()


async def hangs_up_in_the_body(call: Call, _: int) -> None:
    """Of the request, that is; what it has read may have been enough to act on."""
    call.reset()


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("manner", [hangs_up, resets, hangs_up_in_the_head, hangs_up_in_the_body])
async def test_a_call_that_a_gateway_breaks_off_is_not_made_again(
    balanced: Balance, manner: Manner, body: bytes
) -> None:
    async with behaving(manner, balanced) as (gateways, balancer):
        try:
            answer = await post(balancer, body=body)
            assert answer.status == 502
            assert envelope(await answer.read(2**20))[0] == "api_error"
        except Cut:  # HAProxy may hang up in its turn while the body is still coming: legal, and no second call either
            assert (balancer.sample.name, manner, body) == ("haproxy", hangs_up_in_the_body, LARGE)
        assert len(gateways.calls) == 1


async def test_a_call_that_breaks_on_a_kept_connection_is_not_made_again(balanced: Balance) -> None:
    """Balancers take a connection that closes under their hands for one that had been closed before."""

    async def manner(call: Call, count: int) -> None:
        if count <= 4:
            await call.answer(200, b"{}")
        else:
            await hangs_up(call, count)

    async with behaving(manner, balanced) as (gateways, balancer):
        async with dial(balancer) as line:
            for _ in range(4):
                await line.write(POST)
                assert (await line.reply()).status == 200
            await line.write(POST)
            with contextlib.suppress(asyncio.IncompleteReadError):  # HAProxy closes the client's connection, too
                assert (await line.reply()).status == 502
        assert len(gateways.calls) == 5


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 529])
async def test_a_refusal_is_handed_on_and_not_tried_at_the_other_gateway(balanced: Balance, status: int) -> None:
    """A gateway has made all the tries there are before it refuses."""

    async def manner(call: Call, _: int) -> None:
        await call.answer(status, WORDS)

    async with behaving(manner, balanced) as (gateways, balancer):
        answer = await post(balancer)
        assert (answer.status, await answer.read(2**20)) == (status, WORDS)
        assert len(gateways.calls) == 1


async def test_connections_to_the_gateways_are_kept(balanced: Balance) -> None:
    async def manner(call: Call, _: int) -> None:
        await call.answer(200, b"{}")

    async with behaving(manner, balanced) as (gateways, balancer):
        for _ in range(20):
            assert json.loads(await (await post(balancer)).read(2**20)) == {}
        assert len(gateways.calls) == 20
        assert len(gateways.lines) <= 4


async def test_who_is_asking_is_said_by_the_balancer_not_by_the_client(balanced: Balance) -> None:
    async def manner(call: Call, _: int) -> None:
        await call.answer(200, b"{}")

    async with behaving(manner, balanced) as (gateways, balancer):
        await post(balancer, (b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-proto", b"http"))
        (call,) = gateways.calls
        assert call.header(b"x-forwarded-for") == [b"127.0.0.1"]
        assert call.header(b"x-forwarded-proto") == [b"https"]
        assert call.header(b"accept-encoding") == []
