"""A raw client, for what no SDK lets one see: every byte, and how the connection ended."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

OPUS = "claude-opus-4-6"


@dataclass
class Reply:
    """What came over the wire until the connection ended, decoded as far as HTTP allows."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False
    was_reset: bool = False

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[tuple[str, Any]]:
        found = []
        for part in self.body.replace(b"\r\n", b"\n").split(b"\n\n"):
            lines = part.decode("utf-8", "replace").split("\n")
            name = next((line[7:] for line in lines if line.startswith("event: ")), "")
            data = next((line[6:] for line in lines if line.startswith("data: ")), "")
            if name:
                found.append((name, json.loads(data)))
        return found

    def names(self) -> list[str]:
        return [name for name, _ in self.events() if name != "ping"]

    def text(self) -> str:
        return "".join(data["delta"].get("text", "") for name, data in self.events() if name == "content_block_delta")


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def hang_up(self) -> None:
        self.writer.transport.abort()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    @property
    def _transport(self) -> asyncio.Transport:
        assert isinstance(self.writer.transport, asyncio.Transport)
        return self.writer.transport


def body_of(said: Any = "Hello", **fields: Any) -> dict[str, Any]:
    base = {"model": OPUS, "max_tokens": 1000, "messages": [{"role": "user", "content": said}]}
    return {name: value for name, value in (base | fields).items() if value is not None}


async def send(
    port: int,
    body: Any,
    knobs: str = "",
    *,
    method: str = "POST",
    path: str = "/v1/messages",
    head: str | None = None,
) -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**26)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "anthropic-version: 2023-06-01\r\n" if head is None else head
    knobs = f"x-farebox-sim: {knobs}\r\n" if knobs else ""
    start = f"{method} {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-length: {len(data)}\r\n"
    writer.write((start + head + knobs + "\r\n").encode() + data)
    return Connection(reader, writer)


async def to_the_end(connection: Connection) -> bytes:
    """Give what is still to come until the connection ends, in whichever way."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := await asyncio.wait_for(connection.reader.read(2**16), 10):
            parts.append(part)
    connection.writer.close()
    return b"".join(parts)


async def receive(connection: Connection) -> Reply:
    reply = Reply()
    parts = []
    try:
        while part := await asyncio.wait_for(connection.reader.read(2**16), 10):
            parts.append(part)
    except ConnectionResetError:
        reply.was_reset = True
    connection.writer.close()
    raw = b"".join(parts)
    head, _, rest = raw.partition(b"\r\n\r\n")
    if not head:
        return reply
    lines = head.decode("latin-1").split("\r\n")
    reply.status = int(lines[0].split()[1])
    reply.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    if reply.headers.get("transfer-encoding") == "chunked":
        reply.body, reply.complete = _unchunk(rest)
    else:
        reply.body = rest
        reply.complete = len(rest) == int(reply.headers.get("content-length", "0"))
    return reply


def _unchunk(rest: bytes) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    at = 0
    while at < len(rest):
        end = rest.index(b"\r\n", at)
        size = int(rest[at:end], 16)
        if size == 0:
            return b"".join(parts), rest[end:] == b"\r\n\r\n"
        parts.append(rest[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts), False


Ask = Callable[..., Awaitable[Reply]]
