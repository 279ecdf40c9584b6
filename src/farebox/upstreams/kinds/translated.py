"""Answers that are translated on their way down, piece by piece as they come."""

from typing import Protocol

from farebox.http.client import Answer
from farebox.http.exchange import Headers
from farebox.http.failures import BadAnswer, UpstreamError
from farebox.http.reading import Sink, read_whole


class Decoder(Protocol):
    """Turns an upstream's bytes into those of the Messages API, wherever they are cut."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they come; give what is complete. Raises BadAnswer for what cannot be read."""

    def end(self) -> bytes:
        """Give what is left once all has come. Raises BadAnswer when something is missing."""


class Translated:
    """An answer behind a decoder. A body that cannot be decoded is one that the upstream broke."""

    def __init__(self, answer: Answer, status: int, headers: Headers, decoder: Decoder) -> None:
        self.status = status
        self.headers = headers
        self.stall_s = answer.stall_s
        self._answer = answer
        self._decoder = decoder
        self._sink: Sink | None = None
        self._ended = False

    def header(self, name: bytes) -> bytes | None:
        """Give the first value of a header, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def attach(self, sink: Sink) -> None:
        """Send the decoded body to a sink, beginning with what has come already."""
        self._sink = sink
        self._answer.attach(self)

    async def read(self, limit: int) -> bytes:
        """Read the whole body. Raises UpstreamError when it breaks, stalls or is larger than `limit`."""
        return await read_whole(self, limit)

    def pause(self) -> None:
        self._answer.pause()

    def resume(self) -> None:
        self._answer.resume()

    def abandon(self) -> None:
        self._answer.abandon()

    def silent_s(self, now: float) -> float:
        return self._answer.silent_s(now)

    # the upstream's side

    def on_data(self, data: bytes) -> None:
        assert self._sink is not None
        if self._ended:
            return
        try:
            decoded = self._decoder.feed(data)
        except BadAnswer as error:
            self._end(error)
            self._answer.abandon()
            return
        if decoded:
            self._sink.on_data(decoded)

    def on_end(self, error: UpstreamError | None) -> None:
        assert self._sink is not None
        if self._ended:
            return
        try:
            rest = self._decoder.end() if error is None else b""
        except BadAnswer as broken:
            rest, error = b"", broken
        if rest:
            self._sink.on_data(rest)
        self._end(error)

    def _end(self, error: UpstreamError | None) -> None:
        assert self._sink is not None
        self._ended = True
        self._sink.on_end(error)
