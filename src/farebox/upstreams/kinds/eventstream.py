"""AWS event streams (application/vnd.amazon.eventstream) in, server-sent events of the Messages API out. No IO.

Source: AWS, "Event stream encoding": a prelude with two lengths and a checksum, typed headers, a payload, a checksum
over all of it. What Bedrock puts into its chunks are the events of the Messages API, which go on as they came.
"""

import json
import re
import struct
import zlib
from typing import Final

import msgspec

from farebox.http.failures import BadAnswer
from farebox.upstreams.kinds.faults import aws_event

FRAME_BYTES: Final = 24 * 2**20
"""The largest frame accepted: a payload of 16 MB in base64, and its headers."""
_HEADERS_BYTES: Final = 128 * 1024
"""The most that headers may take of it, by AWS's own limit."""
_PRELUDE: Final = struct.Struct(">III")
_CHECKSUM: Final = struct.Struct(">I")
_EVENT: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_SIZES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a header's value by its type; types 6 (bytes) and 7 (text) say their own length."""


class Frame(msgspec.Struct, frozen=True):
    """One message: the headers that are text, and the payload."""

    headers: dict[str, str]
    payload: bytes


class _Chunk(msgspec.Struct):
    bytes: bytes


class _Typed(msgspec.Struct):
    type: str


_chunk: Final = msgspec.json.Decoder(_Chunk)
_typed: Final = msgspec.json.Decoder(_Typed)


class Frames:
    """Bytes in, whole frames out, wherever the bytes are cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_between(self) -> bool:
        """Whether nothing of an unfinished frame has come."""
        return not self._buffer

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes as they come. Raises BadAnswer for a wrong checksum, and for lengths that cannot be."""
        self._buffer += data
        frames = []
        begin = 0
        while len(self._buffer) - begin >= _PRELUDE.size:
            total, headers, checksum = _PRELUDE.unpack_from(self._buffer, begin)
            if zlib.crc32(self._buffer[begin : begin + 8]) != checksum:
                raise BadAnswer("the event stream has a wrong checksum")
            if total > FRAME_BYTES or headers > _HEADERS_BYTES or total < headers + _PRELUDE.size + _CHECKSUM.size:
                raise BadAnswer(f"the event stream has a frame of {total} bytes")
            if len(self._buffer) - begin < total:
                break
            frames.append(_frame(bytes(self._buffer[begin : begin + total]), headers))
            begin += total
        del self._buffer[:begin]
        return frames


class MessageEvents:
    """A `Decoder` of Bedrock's stream."""

    def __init__(self) -> None:
        self._frames = Frames()
        self._over = False

    def feed(self, data: bytes) -> bytes:
        events = []
        for frame in self._frames.feed(data):
            if self._over:
                break
            match frame.headers.get(":message-type"):
                case "event" if frame.headers.get(":event-type") == "chunk":
                    events.append(_event(frame.payload))
                case "event":
                    continue  # of a kind that may come to be: what is not a chunk is no part of the message
                case _:
                    self._over = True
                    events.append(aws_event(_kind_of(frame.headers), frame.headers, frame.payload))
        return b"".join(events)

    def end(self) -> bytes:
        if not (self._over or self._frames.is_between):
            raise BadAnswer("the event stream ends within a frame")
        return b""


def _kind_of(headers: dict[str, str]) -> str:
    return headers.get(":exception-type") or headers.get(":error-code") or ""


def _event(payload: bytes) -> bytes:
    try:
        event = _chunk.decode(payload).bytes
        name = _name_of(event)
    except (ValueError, KeyError, TypeError, RecursionError):  # msgspec's errors are ValueErrors too
        raise BadAnswer("the event stream has a chunk that is no event of a message") from None
    if not _EVENT.fullmatch(name):
        raise BadAnswer("the event stream has an event without a proper name")
    data = b"\ndata: ".join(event.splitlines()) if b"\n" in event or b"\r" in event else event
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def _name_of(event: bytes) -> str:
    try:
        return _typed.decode(event).type
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:  # halves of surrogate pairs are JSON (RFC 8259 8.2), though not to msgspec
        return str(json.loads(event)["type"])


def _frame(data: bytes, headers_bytes: int) -> Frame:
    (checksum,) = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)
    if zlib.crc32(data[: -_CHECKSUM.size]) != checksum:
        raise BadAnswer("the event stream has a wrong checksum")
    end = _PRELUDE.size + headers_bytes
    try:
        headers = _headers(data[_PRELUDE.size : end])
    except (IndexError, KeyError, struct.error, UnicodeDecodeError):
        raise BadAnswer("the event stream has headers that cannot be read") from None
    return Frame(headers, data[end : -_CHECKSUM.size])


def _headers(data: bytes) -> dict[str, str]:
    headers = {}
    at = 0
    while at < len(data):
        named = at + 1 + data[at]
        name = data[at + 1 : named].decode()
        kind = data[named]
        at = named + 1
        if kind in {6, 7}:
            (size,) = struct.unpack_from(">H", data, at)
            at += 2
        else:
            size = _SIZES[kind]
        if at + size > len(data):
            raise IndexError(name)
        if kind == 7:
            headers[name] = data[at : at + size].decode()
        at += size
    return headers
