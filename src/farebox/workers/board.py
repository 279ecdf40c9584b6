"""Memory that processes share, made before they are forked: each slot keeps the last whole record of its one writer.

No file outlives it and nothing in it can fill up, so nobody waits for a reader; it stays readable when its writer has
been killed, in the middle of a record, too.
"""

import mmap
import os
import struct
import zlib
from typing import Final

_RECORD_BYTES: Final = 256 * 1024
"""Pages that are never written take no memory."""
_TRIES: Final = 3
"""Should both halves be written anew while they are read."""
_NUMBERS: Final = struct.Struct("<QI")
_HEAD_BYTES: Final = _NUMBERS.size + 4


class Board:
    """A slot has two halves, written in turn: a reader finds the older record whole while the newer is being written.

    Programs that are started rather than forked share it as an open `file` (memfd_create(2)).
    A checksum over number, length and record tells which halves are whole.
    """

    def __init__(self, slots: int, record_bytes: int = _RECORD_BYTES, file: int = -1) -> None:
        self._half_bytes = _HEAD_BYTES + record_bytes
        size = slots * 2 * self._half_bytes
        if file != -1 and os.fstat(file).st_size < size:
            os.ftruncate(file, size)
        self._memory = mmap.mmap(file, size)

    def post(self, slot: int, record: bytes) -> None:
        """Put a record in the place of a slot's last one. For one process at a time."""
        if _HEAD_BYTES + len(record) > self._half_bytes:
            raise ValueError(f"a record has at most {self._half_bytes - _HEAD_BYTES} bytes, got {len(record)}")
        number = self._newest(slot)[0] + 1
        numbers = _NUMBERS.pack(number, len(record))
        start = self._start(slot, number % 2)
        checksum = zlib.crc32(record, zlib.crc32(numbers))
        self._memory[start : start + _HEAD_BYTES + len(record)] = numbers + checksum.to_bytes(4, "little") + record

    def read(self, slot: int) -> bytes:
        """Give a slot's last record; empty when there is none."""
        for _ in range(_TRIES):
            number, record = self._newest(slot)
            if number:
                return record
        return b""

    def _newest(self, slot: int) -> tuple[int, bytes]:
        return max(self._half(slot, 0), self._half(slot, 1))

    def _half(self, slot: int, half: int) -> tuple[int, bytes]:
        """Copy the number and the record of a half; 0 and nothing when it is not whole."""
        start = self._start(slot, half)
        head = self._memory[start : start + _HEAD_BYTES]
        number, length = _NUMBERS.unpack_from(head)
        end = start + _HEAD_BYTES + length
        if not number or end > start + self._half_bytes:
            return 0, b""
        record = self._memory[start + _HEAD_BYTES : end]
        whole = zlib.crc32(record, zlib.crc32(head[: _NUMBERS.size])).to_bytes(4, "little") == head[_NUMBERS.size :]
        return (number, record) if whole else (0, b"")

    def _start(self, slot: int, half: int) -> int:
        return (slot * 2 + half) * self._half_bytes
