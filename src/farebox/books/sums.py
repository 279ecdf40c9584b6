"""Sums of calls: kept by the hour and the day, and put together with what is too young to be in them.

Hours and days that are closed get no more calls, so they are summed once, as they are closed (books.days). A question
is answered from days, then hours, then the calls of the last hour or two: exact at any moment, and as quick after a
year as after a week (docs/decisions/0020).
"""

from typing import Any, Final

import msgspec

from farebox.clock import DAY_US, HOUR_US, day_start_us
from farebox.store.protocol import Reading, Statement

HOURS: Final = 24
FOREVER: Final = 2**62
TOKENS: Final = "input_tokens + cache_write_5m_tokens + cache_write_1h_tokens + cache_read_tokens + output_tokens"
_USE: Final = "account_id, key_id, model, outcome"
_SOLD: Final = "model, outcome"
_USE_FIGURES: Final = "requests, tokens, charged_nanos, list_nanos, waived_nanos, shortfall_nanos, last_at"
_USE_OF_CALLS: Final = (
    f"count(*), sum({TOKENS}), sum(charged_nanos), sum(list_nanos), sum(waived_nanos), sum(shortfall_nanos), max(at)"
)
_USE_OF_SUMS: Final = (
    "sum(requests), sum(tokens), sum(charged_nanos), sum(list_nanos), sum(waived_nanos), sum(shortfall_nanos), "
    "max(last_at)"
)
_WORK: Final = "account_id, session, agent, parent_agent"
_WORK_FIGURES: Final = "requests, tokens, charged_nanos, first_at, last_at"
_WORK_OF_CALLS: Final = f"count(*), sum({TOKENS}), sum(charged_nanos), min(at), max(at)"
_WORK_OF_SUMS: Final = "sum(requests), sum(tokens), sum(charged_nanos), min(first_at), max(last_at)"
_ONE_CALL: Final = f"1, {TOKENS}, charged_nanos, list_nanos, waived_nanos, shortfall_nanos, at"


NEWEST_CALL: Final = (
    "(SELECT u.at FROM usage u WHERE u.account_id >= a.id AND u.account_id <= a.id "
    "ORDER BY u.account_id DESC, u.at DESC LIMIT 1)"
)
"""When the last call of account `a` was; a plan that looks for it among the calls of all accounts does not fit."""


class Open(msgspec.Struct, frozen=True):
    """The first day and hour, since 1970, that may get more calls: what is before them is in the sums."""

    day: int
    hour: int

    @property
    def begins_us(self) -> int:
        """The moment from which on calls are in no sum."""
        return self.hour * HOUR_US


async def first_open(store: Reading) -> Open:
    """Tell how far the sums go."""
    ((day, hour),) = await store.fetch("SELECT (SELECT max(day) FROM day_close), (SELECT max(hour) FROM hour_close)")
    open_day = day_start_us(day) // DAY_US + 1 if day else 0
    return Open(open_day, max(open_day * HOURS, hour + 1 if hour is not None else 0))


def calls_between(
    opened: Open, begin_us: int, end_us: int, where: str, values: tuple[Any, ...], *, days: bool = True
) -> Statement:
    """Make the query for calls from one moment until before another, as few rows as can be.

    Its columns: hour (of a day's sum, the first), account_id, key_id, model, outcome, requests, tokens, charged_nanos,
    list_nanos, waived_nanos, shortfall_nanos and last_at. `where` is about the second to the fifth; without `days` it
    gives hours alone. A part of an hour comes from its calls, which may have been let go (books.retention).
    """
    return _union("usage", _USE, _spans(opened, begin_us, end_us, days=days), f"{where} AND ", values)


def sold_between(opened: Open, begin_us: int, end_us: int, *, days: bool = True) -> Statement:
    """Make the query for the calls of all accounts together. Its columns: those of `calls_between` but the ids."""
    return _union("house", _SOLD, _spans(opened, begin_us, end_us, days=days), "", ())


def _union(kept: str, names: str, spans: list[tuple[str, int, int]], where: str, values: tuple[Any, ...]) -> Statement:
    parts, params = [], []
    for step, least, most in spans:
        table, column, hour, figures = {
            "call": ("usage", "at", f"at / {HOUR_US}", _ONE_CALL),
            "hour": (f"{kept}_hour", "hour", "hour", _USE_FIGURES),
            "day": (f"{kept}_day", "day", f"day * {HOURS}", _USE_FIGURES),
        }[step]
        parts.append(
            f"SELECT {hour} AS hour, {names}, {figures} FROM {table} "  # noqa: S608  fixed texts
            f"WHERE {where}{column} >= ? AND {column} < ?"
        )
        params += [*values, least, most]
    first, *others = parts
    return " UNION ALL ".join([first.replace(_ONE_CALL, _named_figures(), 1), *others]), tuple(params)


def work_between(opened: Open, first_day: int, where: str, values: tuple[Any, ...]) -> Statement:
    """Make the query for what named a Claude Code session, from a day on: by session, agent and parent_agent.

    `where` is about account_id and session. The other columns: requests, tokens, charged_nanos, first_at and last_at.
    """
    names = "session, agent, parent_agent"
    from_hour = max(first_day, opened.day) * HOURS
    sql = (
        f"SELECT {names}, {_WORK_FIGURES} FROM session_day WHERE {where} AND day >= ? AND day < ? "  # noqa: S608
        f"UNION ALL SELECT {names}, {_WORK_FIGURES} FROM session_hour WHERE {where} AND hour >= ? AND hour < ? "
        f"UNION ALL SELECT session, coalesce(agent, ''), coalesce(parent_agent, ''), 1, {TOKENS}, charged_nanos, "
        f"at, at FROM usage WHERE {where} AND session IS NOT NULL AND at >= ?"
    )
    return sql, (
        *(*values, first_day, opened.day),
        *(*values, from_hour, opened.hour),
        *(*values, max(first_day * DAY_US, opened.begins_us)),
    )


def sum_hour(hour: int) -> list[Statement]:
    """Make the statements that sum an hour's calls, to be written as it is closed: never without, never twice."""
    bounds = (hour, hour * HOUR_US, (hour + 1) * HOUR_US)
    return [
        (f"INSERT INTO usage_hour (hour, {_USE}, {_USE_FIGURES}) {_HOUR_OF_CALLS}", bounds),
        (
            f"INSERT INTO house_hour (hour, {_SOLD}, {_USE_FIGURES}) {_SOLD_IN_HOURS} GROUP BY hour, {_SOLD}",
            (hour, hour + 1),
        ),
        (f"INSERT INTO session_hour (hour, {_WORK}, {_WORK_FIGURES}) {_WORK_HOUR_OF_CALLS}", bounds),
    ]


def sum_day(day: str) -> list[Statement]:
    """Make the statements that sum a day's hours, to be written with its close. Sessions are kept by the day alone."""
    number = day_start_us(day) // DAY_US
    bounds = (number, number * HOURS, (number + 1) * HOURS)
    use = (
        f"INSERT INTO usage_day (day, {_USE}, {_USE_FIGURES}) SELECT CAST(? AS BIGINT), {_USE}, {_USE_OF_SUMS} "  # noqa: S608
        f"FROM usage_hour WHERE hour >= ? AND hour < ? GROUP BY {_USE}"
    )
    sold = (
        f"INSERT INTO house_day (day, {_SOLD}, {_USE_FIGURES}) SELECT CAST(? AS BIGINT), {_SOLD}, {_USE_OF_SUMS} "  # noqa: S608
        f"FROM house_hour WHERE hour >= ? AND hour < ? GROUP BY {_SOLD}"
    )
    work = (
        f"INSERT INTO session_day (day, {_WORK}, {_WORK_FIGURES}) SELECT CAST(? AS BIGINT), {_WORK}, {_WORK_OF_SUMS} "  # noqa: S608
        f"FROM session_hour WHERE hour >= ? AND hour < ? GROUP BY {_WORK}"
    )
    summed = "DELETE FROM session_hour WHERE hour >= ? AND hour < ?"
    return [(use, bounds), (sold, bounds), (work, bounds), (summed, bounds[1:])]


def wrong_in_day(day: int, *, has_calls: bool) -> list[Statement]:
    """Make the questions how many of a closed day's sums are not what its calls come to, or are missing.

    Of a day whose calls were let go: whether the day is what its hours come to.
    """
    hours = (day * HOURS, (day + 1) * HOURS)
    calls = (day * DAY_US, (day + 1) * DAY_US)
    questions = [
        _compare(
            f"SELECT {_USE}, {_USE_OF_SUMS} FROM usage_hour WHERE hour >= ? AND hour < ? GROUP BY {_USE}",  # noqa: S608
            f"SELECT {_USE}, {_USE_FIGURES} FROM usage_day WHERE day = ?",  # noqa: S608  fixed texts
            (*hours, day),
        ),
        _compare(
            f"SELECT {_SOLD}, {_USE_OF_SUMS} FROM usage_hour WHERE hour >= ? AND hour < ? GROUP BY {_SOLD}",  # noqa: S608
            f"SELECT {_SOLD}, {_USE_FIGURES} FROM house_day WHERE day = ?",  # noqa: S608  fixed texts
            (*hours, day),
        ),
        wrong_in_house(*hours),
    ]
    if has_calls:
        questions += [
            wrong_in_hours(*hours),
            _compare(
                f"SELECT {_WORK_OF_A_CALL}, {_WORK_OF_CALLS} FROM usage WHERE at >= ? AND at < ? "  # noqa: S608
                f"AND session IS NOT NULL GROUP BY {_WORK_OF_A_CALL}",
                f"SELECT {_WORK}, {_WORK_FIGURES} FROM session_day WHERE day = ?",  # noqa: S608  fixed texts
                (*calls, day),
            ),
        ]
    return questions


def wrong_in_hours(first: int, after: int) -> Statement:
    """Make the question how many sums of closed hours are not what their calls come to, or are missing."""
    return _compare(
        f"SELECT at / {HOUR_US}, {_USE}, {_USE_OF_CALLS} FROM usage WHERE at >= ? AND at < ? "  # noqa: S608
        f"GROUP BY at / {HOUR_US}, {_USE}",
        f"SELECT hour, {_USE}, {_USE_FIGURES} FROM usage_hour WHERE hour >= ? AND hour < ?",  # noqa: S608  fixed texts
        (first * HOUR_US, after * HOUR_US, first, after),
    )


def wrong_in_house(first: int, after: int) -> Statement:
    """Make the question how many sums of all accounts are not what those of each come to, or are missing."""
    return _compare(
        f"{_SOLD_IN_HOURS} GROUP BY hour, {_SOLD}",
        f"SELECT hour, {_SOLD}, {_USE_FIGURES} FROM house_hour WHERE hour >= ? AND hour < ?",  # noqa: S608  fixed texts
        (first, after, first, after),
    )


def _compare(right: str, kept: str, values: tuple[int, ...]) -> Statement:
    sql = (
        f"WITH right_ones AS ({right}), kept AS ({kept}) "  # noqa: S608  fixed texts
        "SELECT (SELECT count(*) FROM (SELECT * FROM right_ones EXCEPT SELECT * FROM kept) AS missing), "
        "(SELECT count(*) FROM (SELECT * FROM kept EXCEPT SELECT * FROM right_ones) AS wrong)"
    )
    return sql, values


_WORK_OF_A_CALL: Final = "account_id, session, coalesce(agent, ''), coalesce(parent_agent, '')"
_SOLD_IN_HOURS: Final = f"SELECT hour, {_SOLD}, {_USE_OF_SUMS} FROM usage_hour WHERE hour >= ? AND hour < ?"  # noqa: S608
_HOUR_OF_CALLS: Final = (
    f"SELECT CAST(? AS BIGINT), {_USE}, {_USE_OF_CALLS} FROM usage WHERE at >= ? AND at < ? GROUP BY {_USE}"  # noqa: S608
)
_WORK_HOUR_OF_CALLS: Final = (
    f"SELECT CAST(? AS BIGINT), {_WORK_OF_A_CALL}, {_WORK_OF_CALLS} FROM usage "  # noqa: S608  fixed texts
    f"WHERE at >= ? AND at < ? AND session IS NOT NULL GROUP BY {_WORK_OF_A_CALL}"
)


def _named_figures() -> str:
    values = _ONE_CALL.split(", ")
    return ", ".join(f"{value} AS {name}" for value, name in zip(values, _USE_FIGURES.split(", "), strict=True))


def _spans(opened: Open, begin_us: int, end_us: int, *, days: bool) -> list[tuple[str, int, int]]:
    """Cut a time into days, hours and the rest, each with the step that it is kept by."""
    first_hour, after_hour = -(-begin_us // HOUR_US), min(end_us // HOUR_US, opened.hour)
    if first_hour >= after_hour:
        return [("call", begin_us, end_us)]
    first_day, after_day = -(-first_hour // HOURS), min(after_hour // HOURS, opened.day)
    whole = [("hour", first_hour, after_hour)]
    if days and first_day < after_day:
        whole = [
            ("hour", first_hour, first_day * HOURS),
            ("day", first_day, after_day),
            ("hour", after_day * HOURS, after_hour),
        ]
    spans = [("call", begin_us, first_hour * HOUR_US), *whole, ("call", after_hour * HOUR_US, end_us)]
    return [span for span in spans if span[1] < span[2]]
