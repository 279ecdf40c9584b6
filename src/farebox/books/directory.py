"""The directory of customers, as operators look through it: by address, id or the end of a key, a page at a time."""

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from farebox.books.sums import FOREVER, NEWEST_CALL, calls_between, first_open
from farebox.clock import DAY_US
from farebox.ids import key_hash
from farebox.store.protocol import Reading

_PAGE: Final = 200
_DAYS: Final = 30
_TAIL_CHARS: Final = 4
_KEY_CHARS: Final = 40
_LAST_CALLS: Final = (
    f"SELECT a.id, coalesce({NEWEST_CALL}, (SELECT max(last_at) "  # noqa: S608  fixed texts
    "FROM usage_day d WHERE d.account_id = a.id AND d.day = (SELECT max(day) FROM usage_day e "
    "WHERE e.account_id = a.id))) FROM account a"
)
_COLUMNS: Final = "a.id, a.email, a.status, a.plan, a.role, a.posted_nanos, a.held_nanos, a.created_at"


class Wanted(msgspec.Struct, frozen=True):
    """Which customers are looked for; an empty text is anything."""

    words: str = ""
    status: str = ""
    plan: str = ""


class Customer(msgspec.Struct, frozen=True):
    """A customer in a list. `spent_nanos` is what was charged in the last 30 days."""

    id: int
    email: str
    status: str
    plan: str
    role: str
    balance_nanos: int
    held_nanos: int
    created_at_us: int
    spent_nanos: int = 0
    last_call_us: int | None = None


async def customers(
    store: Reading, wanted: Wanted, now_us: int, before_id: int | None = None, limit: int = 50
) -> list[Customer]:
    """Give the latest customers that fit, newest first; only older ones than `before_id`."""
    where, params = _conditions(wanted, before_id)
    rows = await store.fetch(
        f"SELECT {_COLUMNS} FROM account a WHERE {where} ORDER BY a.id DESC LIMIT ?",  # noqa: S608  fixed texts
        (*params, limit),
    )
    return await _with_use(store, [Customer(*row) for row in rows], now_us)


async def all_customers(store: Reading, wanted: Wanted, now_us: int, most: int) -> AsyncIterator[Customer]:
    """Give the latest customers that fit, at most so many, page by page."""
    before_id, given = None, 0
    while given < most:
        page = await customers(store, wanted, now_us, before_id, min(_PAGE, most - given))
        for one in page:
            yield one
        if len(page) < _PAGE:
            return
        given += len(page)
        before_id = page[-1].id


async def _with_use(store: Reading, found: list[Customer], now_us: int) -> list[Customer]:
    """Add what each of these has spent lately, and when the last call was."""
    if not found:
        return found
    ids = tuple(one.id for one in found)
    marks = ", ".join("?" * len(ids))
    first_day = now_us // DAY_US - _DAYS + 1
    owners = f"account_id IN ({marks})"
    sql, values = calls_between(await first_open(store), first_day * DAY_US, FOREVER, owners, ids)
    spent: dict[int, int] = dict(
        await store.fetch(f"SELECT account_id, sum(charged_nanos) FROM ({sql}) AS calls GROUP BY account_id", values)  # noqa: S608
    )
    last: dict[int, int] = dict(await store.fetch(f"{_LAST_CALLS} WHERE a.id IN ({marks})", ids))
    return [
        msgspec.structs.replace(one, spent_nanos=spent.get(one.id, 0), last_call_us=last.get(one.id)) for one in found
    ]


def _conditions(wanted: Wanted, before_id: int | None) -> tuple[str, tuple[Any, ...]]:
    parts: list[str] = ["1 = 1"]
    params: list[Any] = []
    words = wanted.words.strip()
    if words:
        text, values = _matching(words)
        parts.append(f"({text})")
        params += values
    for column in ("status", "plan"):
        value = getattr(wanted, column)
        if value:
            parts.append(f"a.{column} = ?")
            params.append(value)
    if before_id is not None:
        parts.append("a.id < ?")
        params.append(before_id)
    return " AND ".join(parts), tuple(params)


def _matching(words: str) -> tuple[str, list[Any]]:
    """Write the condition for words: a piece of an address, an id, the end of a key, or a whole one."""
    if len(words) > _KEY_CHARS and "@" not in words:
        return "a.id IN (SELECT account_id FROM api_key WHERE hash = ?)", [key_hash(words.encode())]
    plain = words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    text = "a.email LIKE ? ESCAPE '\\'"
    values: list[Any] = [f"%{plain.lower()}%"]
    if words.isascii() and words.isdecimal() and len(words) < 19:
        text, values = f"{text} OR a.id = ?", [*values, int(words)]
    tail = words.rpartition("…")[2]
    if len(tail) == _TAIL_CHARS and tail.isalnum():
        text += " OR a.id IN (SELECT account_id FROM api_key WHERE substr(hint, length(hint) - 3) = ?)"
        values = [*values, tail]
    return text, values
