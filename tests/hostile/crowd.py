"""Thousands of connections that want nothing, crawl, or do not read, and how long everybody else waits meanwhile."""

import asyncio
import contextlib
import gc
import json
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.gateway.play import message
from tests.workers.gateways import Service, serving, until

PACE_S: Final = 0.02
ENOUGH_S: Final = 0.025
"""A p99 below this is none that anybody waits for, however quiet it was before."""
_GREETING: Final = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"


async def crowd(
    directory: Path, url: str, *, idle: int, crawlers: int, readers: int, seconds: float, enough_s: float = ENOUGH_S
) -> str:
    """Measure good calls alone and in a crowd. Fails when one is lost, or the p99 is twice that of good calls alone.

    A p99 below `enough_s` is good in any case.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = idle + crawlers + readers + 1000
    assert hard >= need, f"{need} open files are needed, {hard} are allowed: ulimit -n"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with serving(directory, url, workers=1) as service:
        good = Good(service)
        await good.call(1)
        alone = await good.call(seconds)
        before = _resident(service.process.pid)
        with ExitStack() as lines:
            await _stay(service.port, idle, lines)
            each = (_resident(service.process.pid) - before) / max(idle, 1)
            assert _open_files(service.process.pid) > idle, "they are not connected"
            gc.freeze()  # this process has as many connections, and is the one that looks at the time
            beside_idle = await good.call(seconds)
            seen = Counter[str]()
            crowding = [_crawl(service, at % 2 == 1, seen) for at in range(crawlers)]
            crowding += [_never_read(service, seen) for _ in range(readers)]
            beside_all = await _beside(crowding, lambda: good.call(seconds))
        told = f"p99 alone {_p99(alone):.1f} ms, beside {idle:,} idle connections {_p99(beside_idle):.1f} ms"
        told += f" ({each / 1024:.1f} KiB each), with {crawlers} crawlers and {readers} that never read as well"
        told += f" {_p99(beside_all):.1f} ms; {good.calls:,} good calls, {dict(seen)}"
        for times in (beside_idle, beside_all):
            assert _p99(times) < max(2 * _p99(alone), 1000 * enough_s), told
        await until(lambda: len(service.logged("call")) >= good.calls + seen["streams"], 60)
    gc.unfreeze()
    service.check_books()
    return told


class Good:
    """A customer who sends one small call after the other, at a steady pace."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._client = service.client()
        self.calls = 0

    async def call(self, seconds: float) -> list[float]:
        """Answers how long each call took, in seconds. Raises when one fails."""
        took: list[float] = []
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            answer = await self._service.ask(client=self._client)
            assert (await answer.read(2**20), answer.status)[1] == 200
            took.append(time.monotonic() - began)
            self.calls += 1
            await asyncio.sleep(max(0.0, PACE_S - took[-1]))
        return took


async def _stay(port: int, count: int, lines: ExitStack) -> None:
    """Open so many connections, have one request answered on each, and keep them."""

    async def one() -> None:
        async with free:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            lines.callback(_drop, reader, writer)
            writer.write(_GREETING)
            assert b" 200 " in await reader.readuntil(b"\r\n")

    free = asyncio.Semaphore(100)
    await asyncio.gather(*(one() for _ in range(count)))


def _drop(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End a connection, which lasts no longer than anybody has its reader."""
    writer.transport.abort()


async def _crawl(service: Service, body: bool, seen: Counter[str]) -> None:  # noqa: FBT001
    """Send a head, or a body, byte by byte; when cut off, begin anew."""
    head = f"POST /v1/messages HTTP/1.1\r\nhost: a\r\nx-api-key: {service.key}\r\ncontent-length: 5000\r\n".encode()
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        seen["slow bodies" if body else "slow heads"] += 1
        with contextlib.suppress(ConnectionError):
            writer.write(head + b"\r\n" if body else head)
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.25)
        writer.transport.abort()


async def _never_read(service: Service, seen: Counter[str]) -> None:
    """Ask for a long stream and leave it unread."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=2**10)
    body = json.dumps(message("[[sim tokens=4000]]", stream=True, max_tokens=4000)).encode()
    key = service.key.encode()
    head = b"POST /v1/messages HTTP/1.1\r\nhost: a\r\nx-api-key: %b\r\ncontent-type: application/json\r\n" % key
    writer.write(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
    await reader.readuntil(b"\r\n")
    seen["streams"] += 1
    try:
        await asyncio.Event().wait()
    finally:
        writer.transport.abort()


async def _beside(crowding: Iterable[Awaitable[None]], measure: Callable[[], Awaitable[list[float]]]) -> list[float]:
    """Measure while all of these go on, and then end them."""
    tasks = [asyncio.ensure_future(one) for one in crowding]
    try:
        await asyncio.sleep(1)
        return await measure()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _resident(pid: int) -> int:
    """What a process and its children have in memory, in bytes."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in (pid, *children)]
    return sum(pages) * resource.getpagesize()


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _p99(times: list[float]) -> float:
    """In milliseconds."""
    return 1000 * sorted(times)[int(len(times) * 0.99)]
