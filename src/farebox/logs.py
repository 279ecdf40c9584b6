"""Structured logs on standard error: one line an event, with the request id, never a body, a key or a header."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import structlog

from farebox.clock import Clock, iso

_GATHERED: Final = 500
_SELDOM_S: Final = 300.0
_THINGS: Final = 1_000
"""How many things are remembered that were told of."""
_PIECE_BYTES: Final = 4096
"""What a pipe takes in one piece (PIPE_BUF of pipe(7)): lines of several processes never mix within it."""
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

Logger = structlog.typing.FilteringBoundLogger


def make_logger(level: str, style: str) -> Logger:
    """Make the logger of this process: JSON for machines, or lines for people."""
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True),
    ]
    if style == "json":
        processors.append(structlog.processors.JSONRenderer(serializer=_encode))
        factory: Any = structlog.BytesLoggerFactory(sys.stderr.buffer)
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
        factory = structlog.PrintLoggerFactory(sys.stderr)
    logger: Logger = structlog.wrap_logger(
        factory(), processors=processors, wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level])
    )
    return logger


class Seldom:
    """Tells of a thing at once, and of the same thing again only after a while: thousands of calls may come to it.

    The thing is named by `about`, in few different words.
    """

    def __init__(self, tell: Callable[..., Any], every_s: float = _SELDOM_S) -> None:
        self._tell = tell
        self._every_s = every_s
        self._told: dict[tuple[str, str], float] = {}

    def __call__(self, event: str, about: str, **fields: Any) -> None:
        now = time.monotonic()
        told_at = self._told.get((event, about))
        if told_at is not None and now - told_at < self._every_s:
            return
        self._told.pop((event, about), None)  # the next one stands last: the first are those of long ago
        if len(self._told) >= _THINGS:
            self._told.pop(next(iter(self._told)))
        self._told[event, about] = now
        self._tell(event, **fields)


class CallLines:
    """One JSON line for every call, gathered and written by `flush`, which costs a twentieth of writing each at once.

    The books are the record; these lines are for watching, and the last second of them may be lost with the process.
    """

    def __init__(self, write: Callable[[bytes], object], clock: Clock, always: Mapping[str, Any] | None = None) -> None:
        self._write = write
        self._clock = clock
        self._always = always or {}
        self._lines: list[bytes] = []

    def __call__(self, event: str, **fields: Any) -> None:
        line = {"timestamp": iso(self._clock()), "level": "info", "event": event, **self._always, **fields}
        self._lines.append(msgspec.json.encode(line))
        if len(self._lines) >= _GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if self._lines:
            lines, self._lines = self._lines, []
            piece = b""
            for line in lines:
                if piece and len(piece) + len(line) >= _PIECE_BYTES:
                    self._write(piece)
                    piece = b""
                piece += line + b"\n"
            self._write(piece)


def _encode(event: dict[str, Any], **_: Any) -> bytes:
    return msgspec.json.encode(event)
