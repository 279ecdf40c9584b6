"""A customer's statement: every movement of the balance, newest first, with the balance after it. Read only."""

from collections.abc import AsyncIterator
from typing import Final, Self

import msgspec

from farebox.billing.ledger import customer_account
from farebox.books.retention import first_kept
from farebox.books.sums import FOREVER, calls_between, first_open
from farebox.clock import DAY_US, day_of
from farebox.ids import read_request_id, show_request_id
from farebox.store.protocol import Store

_TRANSFERS, _CHARGES, _DAYS = 0, 1, 2
_PAGE: Final = 1000


class Mark(msgspec.Struct, frozen=True):
    """Where an entry stands: by its moment, transfers before charges of the same one, then by its id.

    Charges that were let go stand together at the end of their day.
    """

    at_us: int
    rank: int
    id: str

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Read a mark from an address; None for what is none."""
        at, _, rest = text.partition(".")
        rank, _, name = rest.partition(".")
        if not (at.isascii() and at.isdecimal() and len(at) < 19 and rank in {"0", "1", "2"} and len(name) <= 200):
            return None
        if rank == "1":
            try:
                read_request_id(name)
            except ValueError:
                return None
        return cls(int(at), int(rank), name) if "\0" not in name else None

    def __str__(self) -> str:
        return f"{self.at_us}.{self.rank}.{self.id}"


class StatementLine(msgspec.Struct, frozen=True):
    """One movement: what it added to the balance, or took, and the balance after it."""

    mark: Mark
    code: str
    memo: str
    amount_nanos: int
    balance_nanos: int


class StatementPage(msgspec.Struct, frozen=True):
    """A page of a statement. `older` marks where the next begins; None: this is the last."""

    lines: list[StatementLine]
    older: Mark | None


async def page_of_statement(store: Store, account_id: int, before: Mark | None, size: int) -> StatementPage:
    """Give the newest movements before a mark, each with the balance after it."""
    start = before or Mark(2**62, _TRANSFERS, "")
    kept_us = await first_kept(store)
    found = await _transfers(store, account_id, start, size + 1)
    found += await _charges(store, account_id, start, size + 1, kept_us)
    if kept_us:
        found += await _days(store, account_id, start, size + 1, kept_us)
    found.sort(key=lambda one: (one[0].at_us, one[0].rank, one[0].id), reverse=True)
    shown = found[:size]
    if not shown:
        return StatementPage([], None)
    balance = await _balance_after(store, account_id, shown[0][0], kept_us)
    lines = []
    for mark, code, memo, amount in shown:
        lines.append(StatementLine(mark, code, memo, amount, balance))
        balance -= amount
    return StatementPage(lines, shown[-1][0] if len(found) > size else None)


async def whole_statement(store: Store, account_id: int, most: int) -> AsyncIterator[StatementLine]:
    """Give the newest movements, at most so many, page by page."""
    mark: Mark | None = None
    given = 0
    while given < most:
        page = await page_of_statement(store, account_id, mark, min(_PAGE, most - given))
        for line in page.lines:
            yield line
        given += len(page.lines)
        mark = page.older
        if mark is None:
            return


_Found = tuple[Mark, str, str, int]


async def _transfers(store: Store, account_id: int, before: Mark, most: int) -> list[_Found]:
    """Read what was moved by transfers; of those from an account to itself there are none."""
    name = customer_account(account_id)
    found: list[_Found] = []
    for side, sign in (("credit_account", 1), ("debit_account", -1)):
        condition, place = _before(before, _TRANSFERS, "id", before.id)
        rows = await store.fetch(
            f"SELECT at, id, code, memo, amount_nanos FROM transfer WHERE {side} = ? AND {condition} "  # noqa: S608
            "ORDER BY at DESC, id DESC LIMIT ?",
            (name, *place, most),
        )
        found += [(Mark(at, _TRANSFERS, id_), code, memo, sign * amount) for at, id_, code, memo, amount in rows]
    return found


async def _charges(store: Store, account_id: int, before: Mark, most: int, kept_us: int) -> list[_Found]:
    """Read usage rows as what they are: entries from the customer to revenue."""
    request_id = read_request_id(before.id) if before.rank == _CHARGES else b""
    condition, place = _before(before, _CHARGES, "request_id", request_id)
    rows = await store.fetch(
        "SELECT at, request_id, model, charged_nanos FROM usage "  # noqa: S608  fixed texts
        f"WHERE account_id = ? AND at >= ? AND {condition} AND charged_nanos > 0 "
        "ORDER BY at DESC, request_id DESC LIMIT ?",
        (account_id, kept_us, *place, most),
    )
    return [(Mark(at, _CHARGES, show_request_id(id_)), "usage", model, -charged) for at, id_, model, charged in rows]


async def _days(store: Store, account_id: int, before: Mark, most: int, kept_us: int) -> list[_Found]:
    """Read the charges of days whose calls were let go: one entry a day."""
    rows = await store.fetch(
        "SELECT day, CAST(sum(requests) AS BIGINT), CAST(sum(charged_nanos) AS BIGINT) FROM usage_day "
        "WHERE account_id = ? AND day < ? AND day < ? GROUP BY day HAVING sum(charged_nanos) > 0 "
        "ORDER BY day DESC LIMIT ?",
        (account_id, kept_us // DAY_US, before.at_us // DAY_US, most),
    )
    return [
        (Mark((day + 1) * DAY_US - 1, _DAYS, day_of(day * DAY_US)), "usage_day", f"{calls:,} calls", -charged)
        for day, calls, charged in rows
    ]


def _before(mark: Mark, rank: int, column: str, name: str | bytes) -> tuple[str, tuple[int | str | bytes, ...]]:
    """Write the condition for entries of one rank that stand before a mark, and its values."""
    if rank == mark.rank:
        return f"(at, {column}) < (?, ?)", (mark.at_us, name)
    return ("at <= ?" if rank < mark.rank else "at < ?"), (mark.at_us,)


async def _balance_after(store: Store, account_id: int, mark: Mark, kept_us: int) -> int:
    """Give the balance just after an entry: the balance now, less everything that came later, read in one piece."""
    name = customer_account(account_id)
    opened = await first_open(store)
    since_us = mark.at_us + 1
    if mark.at_us < kept_us:  # what was charged on its day stands at the day's end
        since_us = mark.at_us // DAY_US * DAY_US + (DAY_US if mark.rank == _DAYS else 0)
    charged, days = calls_between(opened, since_us, FOREVER, "account_id = ?", (account_id,))
    same_moment = read_request_id(mark.id) if mark.rank == _CHARGES else b""
    later = "(at > ? OR (at = ? AND ? = 0 AND id > ?))"
    place = (mark.at_us, mark.at_us, mark.rank, mark.id)
    rows = await store.fetch(
        "SELECT (SELECT posted_nanos FROM account WHERE id = ?) "  # noqa: S608  fixed texts
        f"- (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE credit_account = ? AND {later}) "
        f"+ (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE debit_account = ? AND {later}) "
        "+ (SELECT coalesce(sum(charged_nanos), 0) FROM usage "
        "WHERE account_id = ? AND at = ? AND at >= ? AND request_id > ?) "
        f"+ (SELECT coalesce(sum(charged_nanos), 0) FROM ({charged}) AS calls)",
        (account_id, *(name, *place), *(name, *place), *(account_id, mark.at_us, kept_us, same_moment), *days),
    )
    return int(rows[0][0])
