"""A client without manners: bytes over a socket, and whatever comes back, read as strictly as a parser would."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.stage import MODEL, Person

CANARY = "canary-7c1f-do-not-log"
"""Part of every prompt here; it must show up nowhere but upstream."""
WAIT_S = 20.0
RETRIED = frozenset({408, 429, 500, 502, 503, 529})
WIRE_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    431: "invalid_request_error",
}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json()["error"]["message"])


class Line:
    """One connection, driven by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(WAIT_S):
            await self.writer.drain()

    async def reply(self, method: str = "POST") -> Reply:
        """Read one whole response. Raises when what came is not one."""
        async with asyncio.timeout(WAIT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head[:-4].split("\r\n")
            version, status, _ = first.split(" ", 2)
            assert version == "HTTP/1.1"
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            assert len(headers) == len(lines), "a header field came twice"
            return Reply(int(status), headers, await self._body(int(status), headers, method))

    async def _body(self, status: int, headers: Mapping[str, str], method: str) -> bytes:
        if method == "HEAD" or status < 200:
            return b""
        if headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(await self.reader.readline(), 16):
                parts.append(await self.reader.readexactly(size))
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
            return b"".join(parts)
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        return await self.reader.read()

    async def closed(self, within_s: float = WAIT_S) -> bytes:
        """Wait for the server to close the connection; answers what it still said."""
        async with asyncio.timeout(within_s):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def dial(port: int) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Line(reader, writer)
    finally:
        writer.transport.abort()


async def exchange(port: int, data: bytes, method: str = "POST") -> Reply:
    """Send bytes on a connection of their own; answers the first response."""
    async with dial(port) as line:
        await line.write(data)
        return await line.reply(method)


def ask(**fields: Any) -> bytes:
    """Write a good body, with fields added or, where None, left out."""
    base = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": CANARY}]} | fields
    return json.dumps({name: value for name, value in base.items() if value is not None}).encode()


def head(person: Person | None, *lines: str, method: str = "POST", path: str = "/api/proxy/v1/messages") -> bytes:
    """Write the head of a request up to, and without, the empty line."""
    key = [f"x-api-key: {person.key}"] if person else []
    fields = ["host: farebox.test", "content-type: application/json", "anthropic-version: 2023-06-01", *key, *lines]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fields, ""]).encode("latin-1")


def request(
    person: Person | None, body: bytes = b"", *lines: str, method: str = "POST", path: str = "/api/proxy/v1/messages"
) -> bytes:
    """Write a whole request."""
    length = [f"content-length: {len(body)}"] if body or method == "POST" else []
    return head(person, *lines, *length, method=method, path=path) + b"\r\n" + body


def check_refusal(reply: Reply, status: int, words: str = "") -> None:
    """A refusal has the right status, the Anthropic envelope, and words that say what to do."""
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/json"
    said = reply.json()
    assert said.keys() == {"type", "error", "request_id"}
    assert said["type"] == "error"
    assert said["request_id"] == reply.headers["request-id"]
    assert said["error"]["type"] == WIRE_TYPES[status]
    assert words in said["error"]["message"]
    assert len(said["error"]["message"]) > 15
    assert CANARY not in said["error"]["message"]
    assert reply.headers["x-should-retry"] == ("true" if status in RETRIED else "false")
