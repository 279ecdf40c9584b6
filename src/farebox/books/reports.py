"""Reports from the books: calls and entries of money. Read only; long ones come in pages."""

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from farebox.billing.ledger import customer_account
from farebox.books.retention import first_kept
from farebox.books.sums import FOREVER, calls_between, first_open, sold_between
from farebox.clock import DAY_US, day_of
from farebox.ids import show_request_id
from farebox.store.protocol import Store

_PAGE: Final = 1000
_EVERYTHING: Final = 2**62

_CALL_COLUMNS: Final = (
    "request_id, at, account_id, key_id, kind, model, asked_model, input_tokens, cache_write_5m_tokens, "
    "cache_write_1h_tokens, cache_read_tokens, output_tokens, web_searches, cost_nanos, list_nanos, "
    "charged_nanos, shortfall_nanos, waived_nanos, status, outcome, stop_reason, message_id, upstream, "
    "attempts, streamed, first_byte_us, duration_us"
)


class Call(msgspec.Struct, frozen=True):
    """A usage row: one admitted call and what became of it."""

    request_id: bytes
    at_us: int
    account_id: int
    key_id: int
    kind: str
    model: str
    asked_model: str
    input_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int
    output_tokens: int
    web_searches: int
    cost_nanos: int
    list_nanos: int
    charged_nanos: int
    shortfall_nanos: int
    waived_nanos: int
    status: int
    outcome: str
    stop_reason: str | None
    message_id: str | None
    upstream: str | None
    attempts: int
    streamed: int
    first_byte_us: int | None
    duration_us: int


class Entry(msgspec.Struct, frozen=True):
    """One movement of money. `balance_nanos` is the customer's after it, in a report about one customer."""

    at_us: int
    id: str
    debit_account: str
    credit_account: str
    amount_nanos: int
    code: str
    actor: str
    memo: str
    balance_nanos: int | None = None


async def count_calls(store: Store, *, account_id: int | None = None, since_us: int = 0) -> int:
    """Count the calls that `calls` would give without a limit, from their sums."""
    opened, begin_us = await first_open(store), max(since_us, await first_kept(store))
    if account_id is None:
        sql, values = sold_between(opened, begin_us, FOREVER)
    else:
        sql, values = calls_between(opened, begin_us, FOREVER, "account_id = ?", (account_id,))
    counted = f"SELECT coalesce(sum(requests), 0) FROM ({sql}) AS calls"  # noqa: S608  fixed texts
    return int((await store.fetch(counted, values))[0][0])


async def calls(
    store: Store, *, account_id: int | None = None, since_us: int = 0, limit: int | None = None
) -> AsyncIterator[Call]:
    """Give the last `limit` calls, or all, oldest first."""
    where, params = _about(account_id, since_us)
    at, request_id = since_us, b""
    if limit is not None:
        first = await store.fetch(
            f"SELECT at, request_id FROM usage WHERE {where} "  # noqa: S608  fixed texts
            "ORDER BY at DESC, request_id DESC LIMIT 1 OFFSET ?",
            (*params, limit - 1),
        )
        at, request_id = first[0] if first else (at, request_id)
    # the cursor stands where the moment asked for does, or after it: one bound, so that each page begins at its place
    owned, owner = ("account_id = ? AND", (account_id,)) if account_id is not None else ("", ())
    page = (
        f"SELECT {_CALL_COLUMNS} FROM usage WHERE {owned} (at, request_id) >= (?, ?) "  # noqa: S608  fixed texts
        "ORDER BY at, request_id LIMIT ?"
    )
    while rows := await store.fetch(page, (*owner, at, request_id, _PAGE)):
        for row in rows:
            yield Call(*row)
        if len(rows) < _PAGE:
            return
        request_id, at = rows[-1][0] + b"\0", rows[-1][1]  # the least id after the last one given


async def entries(
    store: Store, *, account_id: int | None = None, since_us: int = 0, limit: int | None = None
) -> list[Entry]:
    """Give the last `limit` movements of money, oldest first; one customer's with the balance after each."""
    most = _EVERYTHING if limit is None else limit
    kept_us = await first_kept(store)
    found = await _transfers(store, account_id, since_us, most)
    found += await _charges(store, account_id, max(since_us, kept_us), most)
    if since_us < kept_us:
        found += await _days(store, account_id, since_us, kept_us)
    found = sorted(found, key=lambda entry: (entry.at_us, entry.id))[-most:]
    if account_id is None or not found:
        return found
    return _with_balances(found, account_id, await _balance_at(store, account_id, found[-1].at_us, kept_us))


async def _transfers(store: Store, account_id: int | None, since_us: int, most: int) -> list[Entry]:
    about: str = "at >= ?"
    params: tuple[int | str, ...] = (since_us,)
    if account_id is not None:
        name = customer_account(account_id)
        about, params = "at >= ? AND (debit_account = ? OR credit_account = ?)", (since_us, name, name)
    rows = await store.fetch(
        "SELECT at, id, debit_account, credit_account, amount_nanos, code, actor, memo FROM transfer "  # noqa: S608
        f"WHERE {about} ORDER BY at DESC, id DESC LIMIT ?",
        (*params, most),
    )
    return [Entry(*row) for row in rows]


async def _charges(store: Store, account_id: int | None, since_us: int, most: int) -> list[Entry]:
    """Read usage rows as what they are: entries from a customer to revenue."""
    where, params = _about(account_id, since_us)
    rows = await store.fetch(
        "SELECT at, request_id, account_id, charged_nanos, model FROM usage "  # noqa: S608  fixed texts
        f"WHERE {where} AND charged_nanos > 0 ORDER BY at DESC, request_id DESC LIMIT ?",
        (*params, most),
    )
    return [
        Entry(
            at_us=at,
            id=show_request_id(request_id),
            debit_account=customer_account(owner),
            credit_account="house:revenue",
            amount_nanos=charged,
            code="usage",
            actor="gateway",
            memo=model,
        )
        for at, request_id, owner, charged, model in rows
    ]


async def _days(store: Store, account_id: int | None, since_us: int, kept_us: int) -> list[Entry]:
    """Read the charges of days whose calls were let go: one entry a day, at its end."""
    whose, params = ("account_id = ? AND ", (account_id,)) if account_id is not None else ("", ())
    rows = await store.fetch(
        "SELECT day, account_id, CAST(sum(requests) AS BIGINT), CAST(sum(charged_nanos) AS BIGINT) "  # noqa: S608
        f"FROM usage_day WHERE {whose}day >= ? AND day < ? GROUP BY day, account_id HAVING sum(charged_nanos) > 0",
        (*params, since_us // DAY_US, kept_us // DAY_US),
    )
    return [
        Entry(
            at_us=(day + 1) * DAY_US - 1,
            id=day_of(day * DAY_US),
            debit_account=customer_account(owner),
            credit_account="house:revenue",
            amount_nanos=charged,
            code="usage_day",
            actor="gateway",
            memo=f"{requests:,} calls",
        )
        for day, owner, requests, charged in rows
    ]


def _with_balances(found: list[Entry], account_id: int, balance: int) -> list[Entry]:
    """Go back from the balance after the last entry."""
    name = customer_account(account_id)
    told = []
    for entry in reversed(found):
        told.append(msgspec.structs.replace(entry, balance_nanos=balance))
        balance -= entry.amount_nanos if entry.credit_account == name else -entry.amount_nanos
    return told[::-1]


async def _balance_at(store: Store, account_id: int, at_us: int, kept_us: int) -> int:
    """Sum all entries of a customer up to a moment."""
    name = customer_account(account_id)
    # what was charged on a day whose calls were let go stands at its end
    until_us = at_us + 1 if at_us >= kept_us else (at_us + 1) // DAY_US * DAY_US
    sql, values = calls_between(await first_open(store), 0, until_us, "account_id = ?", (account_id,))
    balance = (
        "SELECT (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE credit_account = ? AND at <= ?)"  # noqa: S608
        " - (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE debit_account = ? AND at <= ?)"
        f" - (SELECT coalesce(sum(charged_nanos), 0) FROM ({sql}) AS calls)"
    )
    return int((await store.fetch(balance, (name, at_us, name, at_us, *values)))[0][0])


async def totals(store: Store) -> dict[str, int]:
    """Sum every house account, and all customers together. The amounts add up to zero by construction."""
    sold, values = sold_between(await first_open(store), 0, FOREVER)
    rows = await store.fetch(
        "SELECT credit_account, sum(amount_nanos) FROM transfer GROUP BY credit_account "  # noqa: S608  fixed texts
        "UNION ALL SELECT debit_account, -sum(amount_nanos) FROM transfer GROUP BY debit_account "
        f"UNION ALL SELECT 'house:revenue', sum(charged_nanos) FROM ({sold}) AS sold "
        f"UNION ALL SELECT 'customer:usage', -sum(charged_nanos) FROM ({sold}) AS sold",
        values * 2,
    )
    sums: dict[str, int] = {}
    for name, nanos in rows:
        key = "customers" if name.startswith("customer:") else name
        sums[key] = sums.get(key, 0) + int(nanos or 0)
    return dict(sorted(sums.items()))


def _about(account_id: int | None, since_us: int) -> tuple[str, tuple[int, ...]]:
    """Write the condition that chooses usage rows, and its values."""
    if account_id is None:
        return "at >= ?", (since_us,)
    return "account_id = ? AND at >= ?", (account_id, since_us)
