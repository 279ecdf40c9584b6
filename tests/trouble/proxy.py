"""A way to the database that can be troubled: refused, cut, silent, slow, or cut in the middle of an answer."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

_PIECE: Final = 2**16
_READY: Final = b"Z\x00\x00\x00\x05"
"""ReadyForQuery, less the byte that says whether a transaction is open: the end of every answer (and of no commit)."""


class Proxy:
    """Passes bytes between clients and a server, as well as it is told to."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._door: asyncio.Server | None = None
        self._lines: set[_Line] = set()
        self.port = 0
        self.delay_s = 0.0
        """How long each piece of an answer takes."""
        self.deaf = False
        """Nothing that clients say reaches the server; who connects hears nothing."""
        self.mute = False
        """Nothing that the server says reaches a client."""
        self.lost = 0
        """Answers that did not arrive as they should."""
        self._markers: list[bytes] = []
        self._pass_bytes = 0
        self._stays_away = False

    def url(self, url: str) -> str:
        """Write a database's URL as it is reached through here."""
        head, _, rest = url.rpartition(":")
        return f"{head}:{self.port}/{rest.partition('/')[2]}"

    def lose_answer(self, *markers: bytes, after_bytes: int = 0, stay_away: bool = False) -> None:
        """Cut the connection on which a request with a marker in it comes next, once the server has answered in whole.

        `after_bytes` of its answer still arrive (-1: all but the last). Each marker counts once. With `stay_away` the
        server cannot be reached any more after that.
        """
        self._markers, self._pass_bytes, self._stays_away = [*markers], after_bytes, stay_away

    async def refuse(self) -> None:
        """Refuse connections, and reset those there are."""
        if self._door is not None:
            self._door.close()
            self._door = None
        self.cut()

    def cut(self) -> None:
        """Reset all connections."""
        for line in list(self._lines):
            line.reset()

    def fall_silent(self) -> None:
        """Pass nothing on, either way; connections are taken, and nothing is said."""
        self.deaf = self.mute = True

    def forsake(self) -> None:
        """Let nothing more pass on the connections there are, without a word; new ones are as before."""
        for line in self._lines:
            line.is_dead = True

    async def heal(self) -> None:
        """Let everything pass again, on new connections."""
        self.deaf = self.mute = False
        self.delay_s = 0.0
        self.cut()
        await self.open()

    async def open(self) -> None:
        """Take connections, always at the same port."""
        if self._door is None:
            self._door = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._door.sockets[0].getsockname()[1]

    async def close(self) -> None:
        await self.refuse()
        await asyncio.gather(*(line.task for line in self._lines), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(self, reader, writer)
        self._lines.add(line)
        try:
            await line.serve(self._server)
        finally:
            self._lines.discard(line)

    def takes_for_lost(self, data: bytes) -> bool:
        """Tell whether the answer to what a client says is one to lose."""
        found = [marker for marker in self._markers if marker in data]
        for marker in found:
            self._markers.remove(marker)
        return bool(found)

    async def lose(self, line: "_Line", answer: bytes) -> None:
        """Pass on as much of an answer as is to arrive."""
        self.lost += 1
        line.say(answer[: self._pass_bytes])
        await line.said()
        if self._stays_away:
            await self.refuse()
        line.reset()


class _Line:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._upstream: asyncio.StreamWriter | None = None
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self._loses = False
        self.is_dead = False

    async def serve(self, server: tuple[str, int]) -> None:
        try:
            try:
                answers, self._upstream = await asyncio.open_connection(*server)
            except OSError:
                self.reset()
                return
            passing = [asyncio.ensure_future(self._up(self._upstream)), asyncio.ensure_future(self._down(answers))]
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            for task in passing:
                task.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
        finally:
            self.reset()

    async def _up(self, server: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(_PIECE):
                if self._proxy.takes_for_lost(data):
                    self._loses = True
                if not (self._proxy.deaf or self.is_dead):
                    server.write(data)
                    await server.drain()

    async def _down(self, answers: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await answers.read(_PIECE):
                if self._loses:
                    while _READY not in data[-6:]:
                        data += await answers.read(_PIECE)
                    await self._proxy.lose(self, data)
                    return
                if self._proxy.delay_s:
                    await asyncio.sleep(self._proxy.delay_s)
                if not (self._proxy.mute or self.is_dead):
                    self.say(data)
                    await self.said()

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    async def said(self) -> None:
        await self._writer.drain()

    def reset(self) -> None:
        """End both sides at once, as a machine that has died."""
        for writer in (self._writer, self._upstream):
            if writer is not None and not writer.is_closing():
                plug = writer.get_extra_info("socket")
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()


@asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[Proxy]:
    """Open a proxy to a database's server."""
    host, _, port = url.rpartition("@")[2].partition("/")[0].partition(":")
    proxy = Proxy(host, int(port))
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
