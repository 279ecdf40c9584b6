"""Spend limits of keys: when their periods begin and end. Days, Mondays and months, at 00:00 UTC."""

from datetime import UTC, datetime, timedelta
from typing import Final, Literal, get_args

from farebox.clock import US_PER_S

Resets = Literal["never", "daily", "weekly", "monthly"]
RESETS: Final[tuple[Resets, ...]] = get_args(Resets)


def period_start_us(resets: Resets, now_us: int) -> int:
    """Give the moment when the present period began; of one that never ends, the beginning of time."""
    day = _day(now_us)
    match resets:
        case "daily":
            return _us(day)
        case "weekly":
            return _us(day - timedelta(days=day.weekday()))
        case "monthly":
            return _us(day.replace(day=1))
        case "never":
            return 0


def period_end_us(resets: Resets, now_us: int) -> int | None:
    """Give the moment when the present period ends; None: never."""
    begin = _day(period_start_us(resets, now_us))
    match resets:
        case "daily":
            return _us(begin + timedelta(days=1))
        case "weekly":
            return _us(begin + timedelta(days=7))
        case "monthly":
            return _us((begin + timedelta(days=31)).replace(day=1))
        case "never":
            return None


def _day(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // US_PER_S, UTC).replace(hour=0, minute=0, second=0)


def _us(day: datetime) -> int:
    return int(day.timestamp()) * US_PER_S
