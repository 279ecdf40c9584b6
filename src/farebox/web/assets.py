"""Static files: read at start, their address holds a hash of their content, compressed once, cached for ever."""

import gzip
import hashlib
import mimetypes
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

_WORTH_PACKING: Final = 256


class Assets:
    """All files of web/static, at /static/<hash>/<name>: one hash over all, so that modules find each other."""

    def __init__(self) -> None:
        self._files = dict(_walk(files("farebox.web") / "static"))
        digest = hashlib.sha256()
        for name, data in sorted(self._files.items()):
            digest.update(name.encode() + b"\0" + data)
        self.version = digest.hexdigest()[:12]
        self._packed = {
            name: gzip.compress(data, 9, mtime=0) for name, data in self._files.items() if len(data) > _WORTH_PACKING
        }

    def url(self, name: str) -> str:
        """Give the address of a file. Raises KeyError when there is none of that name."""
        if name not in self._files:
            raise KeyError(name)
        return f"/static/{self.version}/{name}"

    def size(self) -> int:
        """Give the bytes that all files take on the wire."""
        return sum(len(self._packed.get(name, data)) for name, data in self._files.items())

    async def serve(self, request: Request) -> Response:
        """Answer with a file; one of another version is answered with this one, uncached."""
        name = request.path_params["name"]
        data = self._files.get(name)
        if data is None:
            return Response("there is no such file\n", 404, media_type="text/plain")
        headers = {"vary": "accept-encoding"}
        headers["cache-control"] = (
            "public, max-age=31536000, immutable" if request.path_params["version"] == self.version else "no-cache"
        )
        if name in self._packed and "gzip" in request.headers.get("accept-encoding", ""):
            data = self._packed[name]
            headers["content-encoding"] = "gzip"
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(data, headers=headers, media_type=kind)


def _walk(folder: Traversable, prefix: str = "") -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        else:
            found.append((prefix + entry.name, entry.read_bytes()))
    return found
