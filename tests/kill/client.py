"""A client that keeps what it saw, byte by byte, however the connection ends. Knows nothing of the gateway's code."""

import asyncio
import contextlib
import json
import re
import time
from dataclasses import dataclass
from typing import Any

_ID = re.compile(rb'"id":\s*"(msg_[A-Za-z0-9_]+)"')


@dataclass
class Seen:
    """What a client had of one answer when it was over."""

    refused: bool = False
    """There was nobody to connect to."""
    status: int = 0
    message_id: str | None = None
    finished: bool = False
    """A whole JSON answer, or a stream down to its message_stop."""
    explained: bool = True
    """An error is in the envelope that clients know."""
    retry_after_s: int | None = None
    took_s: float = 0
    """How long it was until the connection ended."""
    ended_at_us: int = 0


async def call(port: int, key: str, body: dict[str, Any], *, hang_up_s: float | None = None) -> Seen:
    """Make one call; leave it after a time, if one is given."""
    began = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return Seen(refused=True)
    raw = json.dumps(body).encode()
    head = (
        "POST /api/proxy/v1/messages HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n"
        f"x-api-key: {key}\r\nanthropic-version: 2023-06-01\r\ncontent-type: application/json\r\n"
        f"content-length: {len(raw)}\r\n\r\n"
    )
    got = bytearray()

    async def read_on() -> None:
        while piece := await reader.read(65_536):
            got.extend(piece)

    try:
        writer.write(head.encode() + raw)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(read_on(), hang_up_s or 60)
    except OSError:
        pass
    finally:
        writer.transport.abort()
    seen = _read(bytes(got))
    seen.took_s = time.monotonic() - began
    seen.ended_at_us = time.time_ns() // 1000
    return seen


def _read(got: bytes) -> Seen:
    head, _, rest = got.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 ") or len(head) < 12:
        return Seen()
    status = int(head[9:12])
    chunked = b"transfer-encoding: chunked" in head.lower()
    body = _joined(rest) if chunked else rest
    found = _ID.search(body)
    message_id = found[1].decode() if found else None
    if b"text/event-stream" in head.lower():
        finished = b"event: message_stop\n" in body and body.endswith(b"\n\n")
    else:
        finished = status == 200 and _is_json(body)
    explained = status < 400 or _is_envelope(body)
    wait = re.search(rb"(?i)\r\nretry-after: (\d+)", head)
    return Seen(
        status=status,
        message_id=message_id,
        finished=finished,
        explained=explained,
        retry_after_s=int(wait[1]) if wait else None,
    )


def _joined(rest: bytes) -> bytes:
    """Undo chunked coding, as far as it came."""
    parts = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        try:
            length = int(size, 16)
        except ValueError:
            break
        parts.append(rest[:length])
        rest = rest[length + 2 :]
    return b"".join(parts)


def _is_envelope(body: bytes) -> bool:
    try:
        error = json.loads(body)
        return error["type"] == "error" and bool(error["error"]["type"]) and bool(error["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return False


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False
