"""The Files API as the simulator plays it: in memory, the oldest forgotten; what was uploaded cannot be downloaded."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from farebox.clock import US_PER_S, iso
from farebox.errors import InvalidRequest, NotFound
from farebox.upstreams.simulator.prose import hex_of

FILE_BYTES: Final = 64 * 1024 * 1024
_MOST_FILES: Final = 1_000
_BOUNDARY: Final = re.compile(r'boundary="?([^";,]{1,70})"?', re.IGNORECASE)
_PARAMETER: Final = re.compile(r'\b(name|filename)="([^"]*)"')
_SHORTEST_S: Final = 3_600
_LONGEST_S: Final = 7_776_000


class File(msgspec.Struct):
    """What is told of a file; its bytes are not kept."""

    id: str
    filename: str
    mime_type: str
    size_bytes: int
    created_us: int
    expires_us: int | None

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "file",
            "filename": self.filename,
            "mime_type": self.mime_type,
            "size_bytes": self.size_bytes,
            "created_at": iso(self.created_us),
            "downloadable": False,
            "expires_at": iso(self.expires_us) if self.expires_us is not None else None,
        }


class Files:
    """All files of one simulator."""

    def __init__(self, clock: Callable[[], int], start: bytes) -> None:
        self._clock = clock
        self._start = start
        self._count = 0
        self.files: OrderedDict[str, File] = OrderedDict()

    def create(self, content_type: str, body: bytes) -> File:
        """Take in a form. Raises InvalidRequest in the API's manner."""
        fields = {name: (filename, kind, data) for name, filename, kind, data in _parts(content_type, body)}
        if "file" not in fields:
            raise InvalidRequest("file: Field required")
        filename, mime_type, data = fields["file"]
        self._count += 1
        number = self._count.to_bytes(6, "big")
        now_us = self._clock()
        file = File(
            f"file_sim_{number.hex()}{hex_of(self._start, number, size=12)}",
            re.split(r"[/\\]", filename)[-1] or "unnamed",
            mime_type,
            len(data),
            now_us,
            _expiry(fields, now_us),
        )
        self.files[file.id] = file
        if len(self.files) > _MOST_FILES:
            self.files.popitem(last=False)
        return file

    def find(self, file_id: str) -> File:
        file = self.files.get(file_id)
        if file is None or (file.expires_us is not None and file.expires_us <= self._clock()):
            raise NotFound(f"File not found: {file_id}")
        return file

    def delete(self, file_id: str) -> None:
        del self.files[self.find(file_id).id]

    def check(self, fields: Any) -> None:
        """See that the files that a message names are there. Raises NotFound."""
        left = [fields]
        while left:
            one = left.pop()
            if isinstance(one, dict):
                if one.get("type") in {"file", "container_upload"} and "file_id" in one:
                    self.find(str(one["file_id"]))
                left.extend(value for name, value in one.items() if name not in {"input", "input_schema"})
            elif isinstance(one, list):
                left.extend(one)

    def newest_first(self) -> list[dict[str, Any]]:
        return [file.shown() for file in reversed(self.files.values())]


def _parts(content_type: str, body: bytes) -> Iterator[tuple[str, str, str, bytes]]:
    """Take a form apart: name, file name, media type and bytes of each field (RFC 7578)."""
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/form-data") or found is None:
        raise InvalidRequest("Content-Type: multipart/form-data is required")
    pieces = (b"\r\n" + body).split(b"\r\n--" + found[1].encode("latin-1"))
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise InvalidRequest("Invalid multipart form data")
    for piece in pieces[1:-1]:
        head, gap, data = piece.partition(b"\r\n\r\n")
        said = dict(_PARAMETER.findall(head.decode("utf-8", "replace")))
        if not gap or "name" not in said:
            raise InvalidRequest("Invalid multipart form data")
        kind = re.search(rb"(?i)content-type:\s*([^\r\n]+)", head)
        yield (
            said["name"],
            said.get("filename", ""),
            kind[1].decode("latin-1").strip() if kind else "application/octet-stream",
            data,
        )


def _expiry(fields: dict[str, tuple[str, str, bytes]], now_us: int) -> int | None:
    if "expires_in_seconds" not in fields:
        return None
    text = fields["expires_in_seconds"][2].decode("latin-1")
    if not text.isdecimal() or not _SHORTEST_S <= int(text[:9]) <= _LONGEST_S:
        raise InvalidRequest(f"expires_in_seconds: must be between {_SHORTEST_S} and {_LONGEST_S}")
    return now_us + int(text) * US_PER_S
