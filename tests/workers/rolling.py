"""A gateway that is replaced under load, again and again, and customers who would notice the smallest thing.

They speak over plain sockets, on kept connections and on new ones, and try nothing again: whatever is refused, reset,
cut or answered with anything but 200 is a failure.
"""

import asyncio
import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.gateway.play import message
from tests.workers.gateways import Service, until

_END: Final = b'"type":"message_stop"'
_RATE: Final = 4
"""Events a second of each stream."""
_SHARES: Final = 3
"""So many generations begin the streams."""


class Customers:
    """Those who hold streams open, and those who call and call. `failures` says in words what went wrong."""

    def __init__(self, service: Service) -> None:
        self._address = ("127.0.0.1", service.port)
        self._key = service.key
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False
        self.failures: list[str] = []
        self.seen: Counter[str] = Counter()
        self.slowest_s = 0.0

    async def stream(self, text: str, began: asyncio.Event) -> None:
        """Read one stream to its end."""
        try:
            reader, writer = await asyncio.open_connection(*self._address)
            with contextlib.closing(writer):
                writer.write(self._request(text, stream=True, close=False))
                status, headers = await _head(reader)
                began.set()
                body = await _body(reader, headers)
                if status != 200 or _END not in body.replace(b" ", b""):
                    raise ValueError(f"status {status}, ended with {body[-80:]!r}")
            self.seen["streams"] += 1
        except (OSError, EOFError, ValueError) as error:
            self.failures.append(f"stream: {error!r}")
            began.set()

    def call(self, *, kept: int, fresh: int, pause_s: float) -> None:
        """Begin to call: `kept` customers keep their connections, `fresh` ones open one for each call."""
        self._tasks += [asyncio.create_task(self._keep_calling(pause_s, keeps=True)) for _ in range(kept)]
        self._tasks += [asyncio.create_task(self._keep_calling(pause_s, keeps=False)) for _ in range(fresh)]

    async def end(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _keep_calling(self, pause_s: float, *, keeps: bool) -> None:
        while not self._is_over:
            try:
                reader, writer = await asyncio.open_connection(*self._address)
                with contextlib.closing(writer):
                    self.seen["connections"] += 1
                    goes_on = True
                    while goes_on and not self._is_over:
                        goes_on = await self._call(reader, writer, keeps=keeps)
                        await asyncio.sleep(pause_s)
            except (OSError, EOFError, ValueError) as error:
                self.failures.append(f"call on a {'kept' if keeps else 'new'} connection: {error!r}")

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keeps: bool) -> bool:
        began = time.monotonic()
        writer.write(self._request("Hello [[sim tokens=5]]", stream=False, close=not keeps))
        status, headers = await _head(reader)
        body = await _body(reader, headers)
        if status != 200:
            raise ValueError(f"status {status}: {body!r}")
        self.seen["calls"] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        told = headers.get("connection") == "close"
        self.seen["told to close"] += told and keeps
        return keeps and not told

    def _request(self, text: str, *, stream: bool, close: bool) -> bytes:
        body = json.dumps(message(text, stream=stream)).encode()
        head = (
            f"POST /v1/messages HTTP/1.1\r\nhost: farebox\r\nx-api-key: {self._key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        return head.encode() + (b"connection: close\r\n\r\n" if close else b"\r\n") + body


async def restart(service: Service) -> None:
    """Have a new generation take over, and wait until it has."""

    def count(event: str) -> int:
        return service.log.read_bytes().count(b'"%b"' % event.encode())  # a long log is not to be decoded each time

    done, failed = count("handed_over"), count("reload_failed")
    service.process.send_signal(signal.SIGHUP)
    await until(lambda: count("handed_over") > done or count("reload_failed") > failed, 30)
    assert count("reload_failed") == failed, service.logged("reload_failed")


async def roll(
    service: Service,
    *,
    streams: int,
    restarts: int,
    stream_s: float,
    pause_s: float = 0.02,
    tell: Callable[[int], None] = lambda _: None,
) -> Customers:
    """Restart under load while `streams` are open, of which each generation begins its share and outlives its own end.

    Each lasts for `stream_s`; those that end before the restarts do are followed by others.
    """
    customers = Customers(service)
    text = f"Hello [[sim tokens={round(stream_s * _RATE)} rate={_RATE} ttft=0]]"
    streaming: set[asyncio.Task[None]] = set()

    async def fill(most: int) -> None:
        began = [asyncio.Event() for _ in range(most - sum(not task.done() for task in streaming))]
        streaming.update(asyncio.create_task(customers.stream(text, one)) for one in began)
        for one in began:
            await one.wait()

    customers.call(kept=6, fresh=4, pause_s=pause_s)
    for number in range(1, restarts + 1):
        await fill(min(streams, streams * number // min(restarts, _SHARES)))
        calls = customers.seen["calls"]
        await restart(service)
        await until(lambda enough=calls + 50: customers.seen["calls"] > enough, 30)  # type: ignore[misc]
        customers.seen["streams open at restarts"] += sum(not task.done() for task in streaming)
        tell(number)
    await asyncio.gather(*streaming)
    await customers.end()
    return customers


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(": ") for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value for name, _, value in fields}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(parts)
