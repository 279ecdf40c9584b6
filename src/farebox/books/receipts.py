"""What receipts and monthly statements say: payments in, and what a month's use came to. Read only."""

from datetime import UTC, datetime, timedelta

import msgspec

from farebox.billing.ledger import customer_account
from farebox.books.sums import Open, calls_between, first_open
from farebox.clock import DAY_US, US_PER_S
from farebox.errors import NotFound
from farebox.store.protocol import Store


class Receipt(msgspec.Struct, frozen=True):
    """One payment in, or another entry to the good of a customer."""

    id: str
    at_us: int
    code: str
    memo: str
    amount_nanos: int


class Line(msgspec.Struct, frozen=True):
    """What a month came to with one model."""

    model: str
    requests: int
    tokens: int
    charged_nanos: int
    list_nanos: int


class Month(msgspec.Struct, frozen=True):
    """One month of an account, UTC: balance before, everything that moved it, balance after."""

    name: str
    begins_us: int
    ends_us: int
    opening_nanos: int
    entries: list[Receipt]
    lines: list[Line]

    @property
    def charged_nanos(self) -> int:
        return sum(line.charged_nanos for line in self.lines)

    @property
    def closing_nanos(self) -> int:
        return self.opening_nanos + sum(entry.amount_nanos for entry in self.entries) - self.charged_nanos


async def list_receipts(store: Store, account_id: int, most: int) -> list[Receipt]:
    """Give the latest payments in, newest first."""
    rows = await store.fetch(
        "SELECT id, at, code, memo, amount_nanos FROM transfer WHERE credit_account = ? ORDER BY at DESC, id LIMIT ?",
        (customer_account(account_id), most),
    )
    return [Receipt(*row) for row in rows]


async def find_receipt(store: Store, account_id: int, transfer_id: str) -> Receipt:
    """Find a payment in of an account. Raises NotFound."""
    rows = await store.fetch(
        "SELECT id, at, code, memo, amount_nanos FROM transfer WHERE id = ? AND credit_account = ?",
        (transfer_id, customer_account(account_id)),
    )
    if not rows:
        raise NotFound("this account has no such receipt")
    return Receipt(*rows[0])


async def months_with_entries(store: Store, account_id: int, now_us: int) -> list[str]:
    """Name the months since an account's first entry, newest first."""
    name = customer_account(account_id)
    first = (
        await store.fetch(
            "SELECT min(at) FROM (SELECT min(at) AS at FROM usage WHERE account_id = ? "  # noqa: S608  fixed texts
            f"UNION ALL SELECT min(day) * {DAY_US} FROM usage_day WHERE account_id = ? "
            "UNION ALL SELECT min(at) FROM transfer WHERE credit_account = ? "
            "UNION ALL SELECT min(at) FROM transfer WHERE debit_account = ?) AS firsts",
            (account_id, account_id, name, name),
        )
    )[0][0]
    months: list[str] = []
    begins = _month_start(datetime.fromtimestamp(now_us // US_PER_S, UTC))
    while first is not None and _us(_month_end(begins)) > first:
        months.append(f"{begins:%Y-%m}")
        begins = _month_start(begins - timedelta(days=1))
    return months


async def month_of(store: Store, account_id: int, name: str) -> Month:
    """Give one month ("2026-11") of an account: from the sums of closed days, and single calls of open ones."""
    begins = datetime.strptime(name, "%Y-%m").replace(tzinfo=UTC)
    begins_us, ends_us = _us(begins), _us(_month_end(begins))
    opened = await first_open(store)
    return Month(
        name,
        begins_us,
        ends_us,
        await _balance_before(store, account_id, begins_us, opened),
        await _entries(store, account_id, begins_us, ends_us),
        await _lines(store, account_id, begins_us, ends_us, opened),
    )


async def _entries(store: Store, account_id: int, begins_us: int, ends_us: int) -> list[Receipt]:
    name = customer_account(account_id)
    found = []
    for side, sign in (("credit_account", 1), ("debit_account", -1)):
        rows = await store.fetch(
            f"SELECT id, at, code, memo, amount_nanos FROM transfer WHERE {side} = ? AND at >= ? AND at < ?",  # noqa: S608
            (name, begins_us, ends_us),
        )
        found += [Receipt(id_, at, code, memo, sign * amount) for id_, at, code, memo, amount in rows]
    return sorted(found, key=lambda entry: (entry.at_us, entry.id))


async def _lines(store: Store, account_id: int, begins_us: int, ends_us: int, opened: Open) -> list[Line]:
    sql, values = calls_between(opened, begins_us, ends_us, "account_id = ?", (account_id,))
    rows = await store.fetch(
        "SELECT model, CAST(sum(requests) AS BIGINT), CAST(sum(tokens) AS BIGINT), "  # noqa: S608  fixed texts
        "CAST(sum(charged_nanos) AS BIGINT), CAST(sum(list_nanos) AS BIGINT) "
        f"FROM ({sql}) AS calls GROUP BY model ORDER BY model",
        values,
    )
    return [Line(*row) for row in rows]


async def _balance_before(store: Store, account_id: int, at_us: int, opened: Open) -> int:
    """Give the balance as it was at the first moment of a month: the sum of all that came before."""
    name = customer_account(account_id)
    sql, values = calls_between(opened, 0, at_us, "account_id = ?", (account_id,))
    rows = await store.fetch(
        "SELECT (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE credit_account = ? AND at < ?) "  # noqa: S608
        "- (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE debit_account = ? AND at < ?) "
        f"- (SELECT coalesce(sum(charged_nanos), 0) FROM ({sql}) AS calls)",
        (name, at_us, name, at_us, *values),
    )
    return int(rows[0][0])


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * US_PER_S


def _month_start(moment: datetime) -> datetime:
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _month_end(begins: datetime) -> datetime:
    return begins.replace(year=begins.year + begins.month // 12, month=begins.month % 12 + 1)
