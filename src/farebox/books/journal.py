"""The journal: every entry of the ledger, newest first. Charges are told by their sum a day. Read only.

A day's charges stand at its end. What the house has is worked out from entries, never kept.
"""

from collections.abc import AsyncIterator
from typing import Any, Final, Self

import msgspec

from farebox.billing.ledger import customer_account
from farebox.books.sums import FOREVER, HOURS, calls_between, first_open, sold_between
from farebox.clock import DAY_US, day_of
from farebox.ids import read_request_id
from farebox.store.protocol import Reading

USAGE: Final = "usage"
_CUSTOMERS: Final = "customers"
_PAGE: Final = 500
_TRANSFERS, _DAYS = 0, 1
_COLUMNS: Final = "id, at, debit_account, credit_account, amount_nanos, code, actor, memo"


class Place(msgspec.Struct, frozen=True):
    """Where a line stands: by its moment, entries before sums of the same one, then by its id."""

    at_us: int
    rank: int
    id: str

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Read a place from an address; None for what is none."""
        at, _, rest = text.partition(".")
        rank, _, name = rest.partition(".")
        plain = at.isascii() and at.isdecimal() and len(at) < 19 and rank in {"0", "1"}
        return cls(int(at), int(rank), name) if plain and len(name) <= 200 and name.isprintable() else None

    def __str__(self) -> str:
        return f"{self.at_us}.{self.rank}.{self.id}"


class JournalLine(msgspec.Struct, frozen=True):
    """One entry, or the charges of one day. `calls` is how many charges it sums; 0: it is an entry."""

    id: str
    at_us: int
    debit_account: str
    credit_account: str
    amount_nanos: int
    code: str
    actor: str
    memo: str
    calls: int = 0

    @property
    def place(self) -> Place:
        return Place(self.at_us, _DAYS if self.calls else _TRANSFERS, self.id)


class Sought(msgspec.Struct, frozen=True):
    """Which lines are looked for; nothing is anything. `account` is one of the ledger's: "customer:7", "house:cash"."""

    code: str = ""
    account: str = ""
    words: str = ""
    """A piece of an id, a memo or an actor; sums of charges have none of these."""


class JournalPage(msgspec.Struct, frozen=True):
    lines: list[JournalLine]
    older: Place | None


async def page_of_journal(store: Reading, sought: Sought, before: Place | None, size: int) -> JournalPage:
    """Give the newest lines that fit before a place."""
    start = before or Place(FOREVER, _TRANSFERS, "")
    found = await _transfers(store, sought, start, size + 1) + await _days(store, sought, start, size + 1)
    found.sort(key=lambda line: (line.at_us, line.place.rank, line.id), reverse=True)
    shown = found[:size]
    return JournalPage(shown, shown[-1].place if len(found) > size else None)


async def whole_journal(store: Reading, sought: Sought, most: int) -> AsyncIterator[JournalLine]:
    """Give the newest lines that fit, at most so many, page by page."""
    place: Place | None = None
    given = 0
    while given < most:
        page = await page_of_journal(store, sought, place, min(_PAGE, most - given))
        for line in page.lines:
            yield line
        given += len(page.lines)
        place = page.older
        if place is None:
            return


async def known_codes(store: Reading) -> list[str]:
    """Name the kinds of entries there are, charges among them."""
    return [USAGE, *(row[0] for row in await store.fetch("SELECT DISTINCT code FROM transfer ORDER BY code"))]


async def accounts_of_house(store: Reading) -> dict[str, int]:
    """Sum every account of the house, and all customers together. The amounts add up to zero by construction."""
    sql, values = sold_between(await first_open(store), 0, FOREVER)
    rows = await store.fetch(
        "SELECT credit_account, sum(amount_nanos) FROM transfer GROUP BY credit_account "  # noqa: S608  fixed texts
        "UNION ALL SELECT debit_account, -sum(amount_nanos) FROM transfer GROUP BY debit_account "
        f"UNION ALL SELECT 'usage', coalesce(sum(charged_nanos), 0) FROM ({sql}) AS calls",
        values,
    )
    sums = {"house:revenue": 0, _CUSTOMERS: 0}
    for name, nanos in rows:
        if name == USAGE:
            sums["house:revenue"] += nanos
            sums[_CUSTOMERS] -= nanos
        else:
            key = _CUSTOMERS if name.startswith("customer:") else name
            sums[key] = sums.get(key, 0) + nanos
    return dict(sorted(sums.items()))


async def _transfers(store: Reading, sought: Sought, before: Place, most: int) -> list[JournalLine]:
    if sought.code == USAGE:
        return []
    parts, params = _before(before, "id")
    if sought.code:
        parts.append("code = ?")
        params.append(sought.code)
    if sought.account:
        parts.append("(debit_account = ? OR credit_account = ?)")
        params += [sought.account, sought.account]
    if sought.words:
        plain = sought.words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").lower()
        parts.append(
            "(lower(id) LIKE ? ESCAPE '\\' OR lower(memo) LIKE ? ESCAPE '\\' OR lower(actor) LIKE ? ESCAPE '\\')"
        )
        params += [f"%{plain}%"] * 3
    rows = await store.fetch(
        f"SELECT {_COLUMNS} FROM transfer WHERE {' AND '.join(parts)} ORDER BY at DESC, id DESC LIMIT ?",  # noqa: S608
        (*params, most),
    )
    return [JournalLine(*row) for row in rows]


def _before(place: Place, column: str) -> tuple[list[str], list[Any]]:
    """Write the condition for entries that stand before a place."""
    if place.rank == _TRANSFERS:
        return [f"(at, {column}) < (?, ?)"], [place.at_us, place.id]
    return ["at <= ?"], [place.at_us]


async def _days(store: Reading, sought: Sought, before: Place, most: int) -> list[JournalLine]:
    """Sum charges by day: closed days from their sums, the others from calls."""
    account_id = sought.account.removeprefix("customer:") if sought.account.startswith("customer:") else ""
    of_other_account = sought.account not in {"", "house:revenue"} and not account_id
    if sought.code not in {"", USAGE} or sought.words or of_other_account:
        return []
    # a day stands at its last microsecond, and has one sum: before a place are the days that end before it
    last_day = (before.at_us + (1 if before.rank == _DAYS else 0)) // DAY_US - 1
    if before.rank == _DAYS:
        last_day -= 1
    opened, end_us = await first_open(store), min((last_day + 1) * DAY_US, FOREVER)
    if account_id:
        sql, values = calls_between(opened, 0, end_us, "account_id = ?", (int(account_id),))
    else:
        sql, values = sold_between(opened, 0, end_us)
    rows = await store.fetch(
        f"SELECT hour / {HOURS}, sum(requests), sum(charged_nanos) FROM ({sql}) AS calls "  # noqa: S608  fixed texts
        f"GROUP BY hour / {HOURS} HAVING sum(charged_nanos) > 0 ORDER BY 1 DESC LIMIT ?",
        (*values, most),
    )
    who = customer_account(int(account_id)) if account_id else _CUSTOMERS
    return [
        JournalLine(
            id=day_of(day * DAY_US),
            at_us=(day + 1) * DAY_US - 1,
            debit_account=who,
            credit_account="house:revenue",
            amount_nanos=charged,
            code=USAGE,
            actor="gateway",
            memo="",
            calls=calls,
        )
        for day, calls, charged in rows
    ]


async def find_entry(store: Reading, entry_id: str) -> JournalLine | None:
    """Find one entry by its id: a transfer, or the charge of a call by that of its request."""
    rows = await store.fetch(f"SELECT {_COLUMNS} FROM transfer WHERE id = ?", (entry_id,))  # noqa: S608  fixed texts
    if rows:
        return JournalLine(*rows[0])
    try:
        request_id = read_request_id(entry_id)
    except ValueError:
        return None
    charge = "SELECT at, account_id, charged_nanos, model FROM usage WHERE request_id = ?"
    rows = await store.fetch(charge, (request_id,))
    if not rows:
        return None
    at_us, account_id, charged, model = rows[0]
    who = customer_account(account_id)
    return JournalLine(entry_id, at_us, who, "house:revenue", charged, USAGE, "gateway", model)
