"""How an answer leaves: at its pace, in its chunks, and with the faults that were asked for.

A client that has gone or reads slowly stops production at once, as the real API's connection would.
"""

import asyncio
import gzip
import zlib
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from farebox.http.exchange import Exchange, Headers
from farebox.upstreams.simulator.answer import PING, Event, frame
from farebox.upstreams.simulator.knobs import Knobs

Outcome = Literal["open", "finished", "cut", "gone"]
GARBAGE: Final = b"\x00\xff\xfe<garbage>{not: sse\r\r\n\x80" * 8
HTML: Final = b"<!doctype html><title>Just a moment...</title><h1>Checking your browser</h1>\n"
_FAST_GROUP: Final = 16
_EXTRA_LENGTH: Final = 1_000


class Pace(msgspec.Struct, frozen=True):
    """Seconds to the first token, and tokens a second after it; 0 is as fast as possible."""

    first_s: float
    tokens_per_s: float

    def due_s(self, tokens: int) -> float:
        """Give the time after the start at which so many tokens exist."""
        return self.first_s + (tokens / self.tokens_per_s if self.tokens_per_s else 0.0)


class Delivery:
    """One answer on its way out. `outcome` says how it ended, `events` and `tokens` how far it came."""

    def __init__(self, exchange: Exchange, knobs: Knobs, pace: Pace) -> None:
        self.exchange = exchange
        self.knobs = knobs
        self.pace = pace
        self.outcome: Outcome = "open"
        self.events = 0
        self.tokens = 0
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._held: list[bytes] = []
        self._group = knobs.events_per_chunk or (1 if pace.tokens_per_s else _FAST_GROUP)
        self._deflate = zlib.compressobj(wbits=31) if knobs.gzip else None
        exchange.on_gone = self._wake
        exchange.on_resumed = self._wake

    async def whole(self, status: int, headers: Headers, body: bytes, tokens: int) -> None:
        """Send a JSON answer when its last token would exist."""
        exchange, knobs = self.exchange, self.knobs
        await self.pause(self.pace.due_s(tokens) + (knobs.stall_before or 0.0))
        if knobs.bad_json or knobs.truncate is not None:
            body = body[: len(body) // 2]
        if knobs.garbage_after is not None:
            body = GARBAGE
        if self._deflate:
            body = gzip.compress(body, mtime=0)
            headers = [*headers, (b"content-encoding", b"gzip")]
        if knobs.wrong_length:
            exchange.keep_alive = False
        exchange.start(status, headers, length=len(body) + _EXTRA_LENGTH * knobs.wrong_length)
        fault = self._fault()
        if fault is not None and fault[1] in {"cut", "reset", "stall"}:
            half = len(body) // 2
            exchange.write(body[:half])
            if fault[1] != "stall":
                await self._break(fault[1])
                return
            await self.pause(knobs.stall)
            body = body[half:]
        exchange.write(body)
        self.tokens = tokens
        self._finish("cut" if knobs.wrong_length else "finished")

    async def stream(self, headers: Headers, events: Iterable[Event]) -> None:
        """Send server-sent events, each no earlier than its tokens exist."""
        exchange, knobs, pace = self.exchange, self.knobs, self.pace
        if self._deflate:
            headers = [*headers, (b"content-encoding", b"gzip")]
        if knobs.wrong_length:
            exchange.keep_alive = False
        exchange.start(200, headers, length=10_000_000_000 if knobs.wrong_length else None)
        if knobs.stall_before or pace.first_s:
            exchange.flush()
        if knobs.stall_before:
            await self.pause(knobs.stall_before)
        begun = self._loop.time()
        fault = self._fault()
        for event in events:
            if fault is not None and (self.events == fault[0] or self._is_end(event, fault[1])):
                if not await self._break(fault[1]):
                    return
                fault = None
            if event.tokens:
                wait_s = begun + pace.due_s(self.tokens + event.tokens) - self._loop.time()
                if wait_s > 0:
                    await self.pause(wait_s)
            await self._send(event.data)
            if exchange.gone:
                self.outcome = "gone"
                return
            self.events += 1
            self.tokens += event.tokens
        await self._flush()
        self._finish("cut" if knobs.wrong_length else "finished")

    async def pause(self, seconds: float) -> None:
        """Wait, with pings when asked for; ends early when the client goes."""
        if self._held:
            await self._flush()
        ping_s = self.knobs.ping_every / 1000 if self.knobs.ping_every and self.exchange.started else 0.0
        until = self._loop.time() + seconds
        while not self.exchange.gone and (left := until - self._loop.time()) > 0:
            await self._wait(min(left, ping_s) if ping_s else left)
            if ping_s and left > ping_s:
                self.exchange.write(PING)

    async def _wait(self, seconds: float | None) -> None:
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._wake) if seconds is not None else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _send(self, data: bytes) -> None:
        if self.knobs.crlf:
            data = data.replace(b"\n", b"\r\n")
        self._held.append(data)
        if len(self._held) >= self._group:
            await self._flush(part=True)

    async def _flush(self, *, part: bool = False) -> None:
        """Write what is held; under `chunk` in pieces of that size, of which a part keeps the last back."""
        data, self._held = b"".join(self._held), []
        size = self.knobs.chunk
        if size is not None:
            end = len(data) - len(data) % size if part else len(data)
            for at in range(0, end, size):
                await self._write(data[at : min(at + size, end)])
            if end < len(data):
                self._held.append(data[end:])
        elif data:
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        if self._deflate:
            data = self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self.exchange.write(data)
        if self.exchange.backed_up and not self.exchange.gone:
            await self._wait(None)
        elif self.knobs.chunk or not self.pace.tokens_per_s:
            await asyncio.sleep(0)

    def _fault(self) -> tuple[int, str] | None:
        """Give the first fault that was asked for: after how many events, and which."""
        knobs = self.knobs
        asked = {
            "stall": knobs.stall_after,
            "cut": knobs.cut_after,
            "reset": knobs.reset_after,
            "truncate": knobs.truncate,
            "error": knobs.error_after,
            "garbage": knobs.garbage_after,
        }
        return min(((after, name) for name, after in asked.items() if after is not None), default=None)

    def _is_end(self, event: Event, fault: str) -> bool:
        return fault == "truncate" and event.data.startswith(b"event: message_stop")

    async def _break(self, fault: str) -> bool:
        """Break the answer; tells whether it goes on."""
        await self._flush()
        if fault == "stall":
            await self.pause(self.knobs.stall)
            if not self.exchange.gone:
                return True
        elif fault == "error":
            await self._write(error_event(self.knobs.error))
        elif fault == "garbage":
            await self._write(GARBAGE)
        if self.exchange.gone:
            self.outcome = "gone"
        elif fault == "cut":
            self.outcome = "cut"
            self.exchange.break_off(reset=False)
        elif fault == "reset":
            self.outcome = "cut"
            await self._drained()
            self.exchange.break_off(reset=True)
        else:
            self._finish("cut")
        return False

    async def _drained(self) -> None:
        """Let the loop hand over what was written, since a reset throws away what is still queued."""
        await asyncio.sleep(0.01)

    def _finish(self, outcome: Outcome) -> None:
        if self._deflate and not self.exchange.gone and self.exchange.status == 200 and self.events:
            self.exchange.write(self._deflate.flush())
        self.outcome = "gone" if self.exchange.gone else outcome
        self.exchange.finish()


def error_event(error: str | None) -> bytes:
    """Write the event that tells of a failure inside a stream; `error` as the knob gives it."""
    _, _, kind = (error or "").partition(":")
    kind = kind or "overloaded_error"
    words = {"overloaded_error": "Overloaded", "api_error": "Internal server error"}
    body = {"type": "error", "error": {"type": kind, "message": words.get(kind, kind)}}
    return frame("error", body)
