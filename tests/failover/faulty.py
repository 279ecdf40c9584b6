"""An upstream that fails in a given way for a while: a simulator behind a door to be shut, slammed or bricked up."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from farebox.upstreams.simulator import Simulator

_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Way(NamedTuple):
    """A way to fail: by what the simulator is told, or at the door."""

    name: str
    knobs: str = ""
    door: str = ""


WAYS: Final = (
    Way("refuses connections", door="shut"),
    Way("resets connections", door="reset"),
    Way("connections lead nowhere", door="blackhole"),
    Way("accepts, and says nothing", door="mute"),
    Way("begins, and says nothing more", knobs="stall_before=3600"),
    Way("answers 500", knobs="error=500"),
    Way("answers 503", knobs="error=503"),
    Way("answers 529", knobs="error=529"),
    Way("answers 429, retry-after 2", knobs="error=429; retry_after=2"),
    Way("answers 401", knobs="error=401"),
    Way("answers HTML", knobs="html"),
    Way("closes in the middle of the head", knobs="close_before"),
    Way("breaks in the middle of the answer", knobs="cut_after=8"),
    Way("begins its answers 0.5 s late", knobs="delay=500"),
)


class Faulty:
    """A simulator behind a door. While nothing is wrong, the door passes bytes on."""

    def __init__(self) -> None:
        self.simulator = Simulator(speed=0, keep=0)
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Transport] = set()
        self._bricks: list[socket.socket] = []
        self.way = ""

    async def listen(self) -> None:
        await self.simulator.listen()
        await self._listen()

    async def fail(self, way: Way) -> None:
        """Begin to fail."""
        self.simulator.knobs = way.knobs
        self.way = way.door
        if way.door and way.door != "mute":
            self._slam()
        if way.door in {"shut", "blackhole"}:
            assert self._server is not None
            self._server.close()
            self._server = None
        if way.door == "blackhole":
            self._brick_up()

    async def mend(self) -> None:
        """Be well again."""
        self.simulator.knobs = self.way = ""
        for brick in self._bricks:
            brick.close()
        self._bricks.clear()
        if self._server is None:
            await self._listen()

    async def close(self) -> None:
        await self.mend()
        assert self._server is not None
        self._server.close()
        self._slam()
        await self.simulator.close()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Side(self), "127.0.0.1", self.port, reuse_address=True, backlog=1000
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def _slam(self) -> None:
        for transport in list(self._open):
            _reset(transport)

    def _brick_up(self) -> None:
        """Listen with no room in the queue: the kernel drops what tries to connect, as a firewall would."""
        wall = socket.socket()
        wall.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wall.bind(("127.0.0.1", self.port))
        wall.listen(0)
        self._bricks.append(wall)
        for _ in range(3):
            brick = socket.socket()
            brick.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                brick.connect(("127.0.0.1", self.port))
            self._bricks.append(brick)


class _Side(asyncio.Protocol):
    """One side of a connection through the door; `other` is the one that it hands bytes to."""

    def __init__(self, door: Faulty, other: "_Side | None" = None) -> None:
        self._door = door
        self._other = other
        self._early: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._door._open.add(transport)
        if self._other is None:
            self._task = asyncio.ensure_future(self._connect())

    def data_received(self, data: bytes) -> None:
        if self._door.way == "reset":
            _reset(self.transport)
        elif self._door.way == "mute":
            return
        elif self._other is not None:
            self._other.transport.write(data)
        else:
            self._early.append(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._door._open.discard(self.transport)
        if self._other is not None:
            self._other.transport.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, other = await loop.create_connection(lambda: _Side(self._door, self), "127.0.0.1", self._door.simulator.port)
        other.transport.writelines(self._early)
        self._other = other


def _reset(transport: asyncio.Transport) -> None:
    found = transport.get_extra_info("socket")
    if found is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


@asynccontextmanager
async def three() -> AsyncIterator[list[Faulty]]:
    """Start three upstreams."""
    upstreams = [Faulty() for _ in range(3)]
    try:
        for upstream in upstreams:
            await upstream.listen()
        yield upstreams
    finally:
        for upstream in upstreams:
            await upstream.close()
