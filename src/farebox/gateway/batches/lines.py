"""Lines of a long answer as they come, with little of it in memory at a time; and lines on their way to a client."""

import asyncio
from collections import deque
from typing import Final

from farebox.http.exchange import Exchange
from farebox.http.failures import Stalled, UpstreamError
from farebox.upstreams.kinds.kind import Reply

_WAITING_BYTES: Final = 2**20
"""So much may wait to be taken before the upstream has to."""
_LINE_BYTES: Final = 64 * 2**20
TOO_LONG: Final = b"too long\n"


class Lines:
    """Reads an answer line by line; TOO_LONG stands for each that is.

    Raises UpstreamError where it breaks or stalls.
    """

    def __init__(self, answer: Reply, stall_s: float) -> None:
        self._answer = answer
        self._stall_s = stall_s
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._ended = False
        self._error: UpstreamError | None = None
        self._news = asyncio.Event()
        answer.attach(self)

    async def next(self) -> bytes | None:
        """Give the next line with the end it came with; None after the last."""
        while not self._lines:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._answer.resume()
            self._news.clear()
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._news.wait()
            except TimeoutError:
                self._answer.abandon()
                raise Stalled(f"nothing came for {self._stall_s:g} s") from None
        line = self._lines.popleft()
        self._waiting_bytes -= len(line)
        return line

    def on_data(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._begun.append(piece + b"\n")
            self._begun_bytes += len(piece) + 1
            self._complete()
        if rest:
            self._begun.append(rest)
            self._begun_bytes += len(rest)
        if self._begun_bytes > _LINE_BYTES:
            self._begun = []  # reading on is all that can be done: a new try would come to it again
        if self._waiting_bytes > _WAITING_BYTES:
            self._answer.pause()
        self._news.set()

    def on_end(self, error: UpstreamError | None) -> None:
        if error is None and self._begun:
            self._complete()
        self._ended, self._error = True, self._error or error
        self._news.set()

    def _complete(self) -> None:
        line = b"".join(self._begun) if self._begun_bytes <= _LINE_BYTES else TOO_LONG
        self._begun, self._begun_bytes = [], 0
        self._lines.append(line)
        self._waiting_bytes += len(line)


class Pieces(Lines):
    """Reads an answer piece by piece as it comes, whatever is in it."""

    def on_data(self, data: bytes) -> None:
        self._begun.append(data)
        self._complete()
        if self._waiting_bytes > _WAITING_BYTES:
            self._answer.pause()
        self._news.set()


async def write(exchange: Exchange, data: bytes) -> None:
    """Send bytes to a client, and wait while it reads more slowly. Raises ConnectionResetError when it has gone."""
    if exchange.gone:
        raise ConnectionResetError("the client has gone")
    exchange.write(data)
    while exchange.backed_up and not exchange.gone:
        moved: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(waiter: asyncio.Future[None] = moved) -> None:
            if not waiter.done():
                waiter.set_result(None)

        exchange.on_resumed = exchange.on_gone = wake
        try:
            if exchange.backed_up and not exchange.gone:
                await moved
        finally:
            exchange.on_resumed = exchange.on_gone = None
