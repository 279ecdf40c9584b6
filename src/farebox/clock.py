"""Time: taken once at the edge, passed down as integers of microseconds UTC."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

Clock = Callable[[], int]
"""Answers the present moment in microseconds since 1970, UTC."""

US_PER_S = 1_000_000
HOUR_US = 3_600 * US_PER_S
DAY_US = 24 * HOUR_US


def steady_clock() -> Clock:
    """Make a clock that reads the wall once and then counts monotonically.

    A wall clock that is set back or forth while the process runs moves no lease, limit or entry.
    """
    start_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000
    monotonic_ns = time.monotonic_ns

    def now_us() -> int:
        return start_us + monotonic_ns() // 1000

    return now_us


def iso(at_us: int) -> str:
    """Write a moment as RFC 3339 in UTC with microseconds: 2026-11-22T10:30:00.000000Z."""
    second, micros = divmod(at_us, US_PER_S)
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def day_of(at_us: int) -> str:
    """Name the UTC day a moment falls on: 2026-11-22."""
    return datetime.fromtimestamp(at_us // US_PER_S, UTC).strftime("%Y-%m-%d")


def day_start_us(day: str) -> int:
    """Give the first microsecond of a UTC day named as by `day_of`."""
    return int(datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * US_PER_S
