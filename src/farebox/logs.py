"""Structured logs on standard error: one line an event, with the request id, never a body, a key or a header."""

import sys
from typing import Any, Final

import msgspec
import structlog

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


def _encode(event: dict[str, Any], **_: Any) -> bytes:
    return msgspec.json.encode(event)
