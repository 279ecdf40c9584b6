"""Usage as the API tells it: sums by day and by model, key or outcome, out of the same figures as the dashboard's."""

import re
from datetime import UTC, datetime
from typing import Any, Final, Self, cast
from urllib.parse import parse_qs

import msgspec

from farebox.accounts.keys import list_keys
from farebox.books.figures import Figures, GroupBy, Point
from farebox.clock import DAY_US, day_of
from farebox.errors import InvalidRequest
from farebox.money import decimal_usd
from farebox.store.protocol import Store

GROUPS: Final = ("model", "key", "outcome", "day")
LONGEST_DAYS: Final = 366
MOST_ROWS: Final = 1000
_USUAL_ROWS: Final = 100
_USUAL_DAYS: Final = 30
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,4}", re.ASCII)
_PAGE_CHARS: Final = 300


class Asked(msgspec.Struct, frozen=True):
    """What is asked for: days since 1970, both included. `after` is where the page before ended."""

    first_day: int
    last_day: int
    by: str
    limit: int
    after: tuple[int, str] | None

    @classmethod
    def read(cls, query: str, now_us: int) -> Self:
        """Read a query. Raises InvalidRequest, naming what cannot be read."""
        given = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        last = _read_day(given, "to", now_us // DAY_US)
        first = _read_day(given, "from", last - _USUAL_DAYS + 1)
        if not 0 <= last - first < LONGEST_DAYS:
            raise InvalidRequest(
                f"from and to span 1 to {LONGEST_DAYS} days, got {day_of(first * DAY_US)} to {day_of(last * DAY_US)}"
            )
        by = given.get("by", "model")
        if by not in GROUPS:
            raise InvalidRequest(f"by must be one of {', '.join(GROUPS)}, got {by[:40]!r}")
        limit = given.get("limit", str(_USUAL_ROWS))
        if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= MOST_ROWS:
            raise InvalidRequest(f"limit must be 1…{MOST_ROWS}, got {limit[:20]!r}")
        return cls(first, last, by, int(limit), _read_page(given["page"]) if "page" in given else None)


async def usage_of(store: Store, account_id: int, asked: Asked, now_us: int) -> dict[str, Any]:
    """Sum an account's calls up; `total` is of the whole range, whatever the page."""
    figures = await Figures.read(store, account_id, now_us)
    group = "model" if asked.by == "day" else asked.by
    points = await figures.by_day(asked.first_day, asked.last_day, cast("GroupBy", group))
    if asked.by == "day":
        points = _by_day_alone(points)
    total = _sum(points)
    if asked.after is not None:
        points = [point for point in points if (point.step, point.group) > asked.after]
    page = points[: asked.limit]
    more = len(points) > len(page)
    keys = await list_keys(store, account_id) if asked.by == "key" else []
    names = {str(key.id): key.name for key in keys}
    return {
        "type": "usage",
        "currency": "USD",
        "from": day_of(asked.first_day * DAY_US),
        "to": day_of(asked.last_day * DAY_US),
        "by": asked.by,
        "total": _show(total),
        "data": [
            {
                "day": day_of(point.step * DAY_US),
                "group": point.group or None,
                "name": names.get(point.group, point.group) or None,
                **_show(point),
            }
            for point in page
        ],
        "has_more": more,
        "next_page": f"{day_of(page[-1].step * DAY_US)}.{page[-1].group}" if more else None,
    }


def _by_day_alone(points: list[Point]) -> list[Point]:
    days: dict[int, list[Point]] = {}
    for point in points:
        days.setdefault(point.step, []).append(point)
    return [_sum(found, day) for day, found in sorted(days.items())]


def _sum(points: list[Point], step: int = 0) -> Point:
    return Point(
        step,
        "",
        sum(point.spend_nanos for point in points),
        sum(point.list_nanos for point in points),
        sum(point.tokens for point in points),
        sum(point.requests for point in points),
    )


def _show(point: Point) -> dict[str, Any]:
    return {
        "requests": int(point.requests),
        "tokens": int(point.tokens),
        "charged": decimal_usd(int(point.spend_nanos)),
        "list_cost": decimal_usd(int(point.list_nanos)),
    }


def _read_day(given: dict[str, str], name: str, usual: int) -> int:
    if name not in given:
        return usual
    text = given[name]
    try:
        if not _DAY.fullmatch(text):
            raise ValueError
        begins = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        if begins.year < 1970:
            raise ValueError
    except ValueError:
        raise InvalidRequest(f"{name} is a day in UTC such as 2026-11-22, got {text[:40]!r}") from None
    return int(begins.timestamp()) // 86_400


def _read_page(text: str) -> tuple[int, str]:
    """Read where a page begins: the day and the group that the one before ended with, as it said itself."""
    day, dot, group = text.partition(".")
    if not dot or len(text) > _PAGE_CHARS:
        raise InvalidRequest(f"page is what next_page of an earlier answer said, got {text[:40]!r}")
    return _read_day({"page": day}, "page", 0), group
