"""Taking in a body: who wants its bytes as they come, and reading it to its end."""

import asyncio
from typing import Protocol

from farebox.http.failures import BadAnswer, Stalled, UpstreamError


class Sink(Protocol):
    """Who wants an answer's bytes."""

    def on_data(self, data: bytes) -> None:
        """Take a piece of the body."""

    def on_end(self, error: UpstreamError | None) -> None:
        """The body has ended: completely, or broken by `error`. Called once."""


class Readable(Protocol):
    """A body that can be read to its end."""

    stall_s: float

    def attach(self, sink: Sink) -> None: ...

    def abandon(self) -> None: ...

    def silent_s(self, now: float) -> float: ...


async def read_whole(answer: Readable, limit: int) -> bytes:
    """Read a whole body. Raises UpstreamError when it breaks, stalls or is larger than `limit`."""
    reader = _Reader(answer, limit)
    answer.attach(reader)
    try:
        return await reader.whole()
    except asyncio.CancelledError:
        answer.abandon()
        raise


class _Reader:
    def __init__(self, answer: Readable, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle
        self.done: asyncio.Future[bytes] = self._loop.create_future()
        self._answer = answer
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    async def whole(self) -> bytes:
        """Wait for the end, as long as something comes."""
        self._timer = self._loop.call_later(self._answer.stall_s, self._look)
        try:
            return await self.done
        finally:
            self._timer.cancel()

    def _look(self) -> None:
        """Give up when nothing has come for too long, or look again at the first moment when that can be so."""
        patience_s = self._answer.stall_s - self._answer.silent_s(self._loop.time())
        if patience_s > 0:
            self._timer = self._loop.call_later(patience_s, self._look)
        elif not self.done.done():
            self.done.set_exception(Stalled(f"nothing came for {self._answer.stall_s:g} s"))
            self._answer.abandon()

    def on_data(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._limit and not self.done.done():
            self.done.set_exception(BadAnswer(f"the answer is larger than {self._limit} bytes"))
            self._answer.abandon()

    def on_end(self, error: UpstreamError | None) -> None:
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(b"".join(self._parts))
