"""A network in memory: connections between nodes, whose bytes take a while, come in other pieces, and are cut."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, Final

from tests.simulation.world import Node, World, here

_HIGH_BYTES: Final = 65_536
_FIRST_PORT: Final = 50_000
_APART_S: Final = 0.000_001
"""Two things that are due at once would happen in any order."""


class Door:
    """In the place of a listening socket."""

    def __init__(self, port: int) -> None:
        self.port = port

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def fileno(self) -> int:
        return -1

    def close(self) -> None: ...


class _Plug:
    """In the place of a connected socket."""

    def setsockopt(self, *_: object) -> None: ...


class _Listener:
    """In the place of asyncio.Server."""

    def __init__(self, network: "Network", port: int, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        self._network, self.port, self.factory = network, port, factory
        self.node = here()
        self.context = contextvars.copy_context()

    def close(self) -> None:
        if self in self._network.listeners:
            self._network.listeners.remove(self)


class End(asyncio.Transport):
    """One end of a connection. What is written comes out of the other, in order, a while later."""

    def __init__(self, network: "Network", number: int) -> None:
        super().__init__()
        self._network = network
        self.number = number
        self.node: Node = here()
        self.context = contextvars.copy_context()
        self.protocol: asyncio.Protocol
        self.peer: End
        self._inbox: list[bytes | None] = []
        """What has come and is not read yet; None is the end."""
        self._unread = 0
        """Bytes on the way to this end, or in its inbox."""
        self._last_due = 0.0
        self._paused_reading = False
        self._write_paused = False
        self._closing = False
        self._ended = False
        self._lost = False

    # the protocol's side

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 40_000), "sockname": ("127.0.0.1", 0), "socket": _Plug()}.get(name, default)

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol  # type: ignore[assignment]

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def pause_reading(self) -> None:
        self._paused_reading = True

    def resume_reading(self) -> None:
        if self._paused_reading:
            self._paused_reading = False
            self._network.world.call_soon(self._read, context=self.context)

    def is_reading(self) -> bool:
        return not self._paused_reading

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: Any) -> None:
        if self._closing or self._ended or self.node.dead or not data:
            return
        data = bytes(data)
        self._network.world.note(f"{self.number} writes", data)
        self.peer._unread += len(data)
        for piece in self._network.pieces(data):
            self._send(piece)
        if self.peer._unread > _HIGH_BYTES and not self._write_paused:
            self._write_paused = True
            self.protocol.pause_writing()

    def write_eof(self) -> None:
        if not self._ended:
            self._ended = True
            self._send(None)

    def close(self) -> None:
        if not self._closing:
            self.write_eof()
            self._closing = True
            self._network.world.call_at(self._last_due + _APART_S, self._lose, None, context=self.context)

    def abort(self) -> None:
        self.cut(None)

    # the network's side

    def cut(self, error: Exception | None) -> None:
        """Break the connection: this end knows at once, the other a while later."""
        self._closing = True
        world = self._network.world
        world.call_soon(self._lose, error, context=self.context)
        reset = ConnectionResetError("Connection reset by peer")
        world.call_later(self._network.delay(), self.peer._lose, reset, context=self.peer.context)

    def _send(self, piece: bytes | None) -> None:
        world, peer = self._network.world, self.peer
        self._last_due = max(self._last_due + _APART_S, world.time() + self._network.delay())
        world.call_at(self._last_due, peer._arrive, piece, context=peer.context)

    def _arrive(self, piece: bytes | None) -> None:
        if not self._lost:
            self._inbox.append(piece)
            self._read()

    def _read(self) -> None:
        while self._inbox and not self._paused_reading and not self._lost:
            piece = self._inbox.pop(0)
            if piece is None:
                if not self.protocol.eof_received():
                    self.close()
                continue
            self._unread -= len(piece)
            self.protocol.data_received(piece)
        writer = self.peer
        if writer._write_paused and self._unread <= _HIGH_BYTES // 4:
            writer._write_paused = False
            self._network.world.call_soon(writer._resumed, context=writer.context)

    def _resumed(self) -> None:
        if not self._lost:
            self.protocol.resume_writing()

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._network.ends.pop(self.number, None)
        self.protocol.connection_lost(error)


class Network:
    """All connections there are. Installs itself as the way the loop connects and listens."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.listeners: list[_Listener] = []
        self.ends: dict[int, End] = {}
        self.down: set[int] = set()
        """Ports that nobody can connect to."""
        self.slow_s = 0.000_3
        """What a piece may take, from this upwards to some tens of it."""
        self._ports = _FIRST_PORT
        self._count = 0
        world.create_connection = self.create_connection  # type: ignore[method-assign, assignment]
        world.create_server = self.create_server  # type: ignore[method-assign, assignment]

    def open_doors(self, host: str, port: int) -> list[Any]:  # noqa: ARG002  one host is all of them
        if not port:
            self._ports += 1
            port = self._ports
        return [Door(port)]

    async def create_server(self, factory: Callable[[], asyncio.BaseProtocol], *_: Any, sock: Any, **__: Any) -> Any:
        listener = _Listener(self, sock.getsockname()[1], factory)
        self.listeners.append(listener)
        here().on_death.append(listener.close)
        return listener

    async def create_connection(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, **_: Any
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        await asyncio.sleep(self.delay())
        open_ = [one for one in self.listeners if one.port == port and not one.node.dead]
        if not open_ or port in self.down:
            raise ConnectionRefusedError(111, f"Connect call failed ({host!r}, {port})")
        listener = self.world.random.choice(open_)
        self._count += 2
        near = End(self, self._count)
        far = listener.context.run(End, self, self._count + 1)
        near.peer, far.peer = far, near
        self.ends[near.number], self.ends[far.number] = near, far
        near.protocol = factory()  # type: ignore[assignment]
        far.protocol = listener.context.run(listener.factory)  # type: ignore[assignment]
        self.world.call_soon(far.protocol.connection_made, far, context=far.context)
        near.protocol.connection_made(near)
        return near, near.protocol

    def delay(self) -> float:
        """Draw how long something takes: mostly little, now and then a lot more."""
        chance = self.world.random
        return self.slow_s * (chance.uniform(0.5, 3) if chance.random() < 0.97 else chance.uniform(3, 300))

    def pieces(self, data: bytes) -> list[bytes]:
        """Cut what is sent as a network may."""
        chance = self.world.random
        if len(data) < 2 or chance.random() < 0.8:
            return [data]
        at = chance.randrange(1, len(data))
        return [data[:at], data[at:]]

    def cut_all(self, node: Node) -> None:
        """Break the connections of a node."""
        for end in list(self.ends.values()):
            if end.node is node:
                end.cut(None)
