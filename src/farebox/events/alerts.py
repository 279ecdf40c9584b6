"""Alerts: a mail, and an event for webhooks, when a balance falls below an amount or a day's spend passes one.

Each tells once, and again after the balance was back, or on the next day. Calls are never added up for it but once
for a day: what a day's spend came to is what was in the balance as it began, and what was moved since, less what is
in it now.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from farebox.accounts.mail import letter
from farebox.clock import DAY_US, day_of
from farebox.errors import InvalidRequest
from farebox.events.webhooks import event
from farebox.money import MAX_NANOS, decimal_usd, format_usd
from farebox.store.protocol import Row, Statement, Store

Kind = Literal["balance", "used_up", "daily_spend"]

USED_UP_NANOS: Final = 10_000_000
"""A balance of less than a cent is used up: hardly a call fits into it."""
_AT_ONCE: Final = 200
_KEEP: Final = (
    "INSERT INTO alert (account_id, kind, at_nanos) VALUES (?, ?, ?) "
    "ON CONFLICT (account_id, kind) DO UPDATE SET at_nanos = excluded.at_nanos, told_at = NULL"
)
_MOVED: Final = (
    "(SELECT coalesce(sum(t.amount_nanos), 0) FROM transfer t "
    "WHERE t.credit_account = 'customer:' || CAST(a.id AS TEXT) AND t.at >= ?) "
    "- (SELECT coalesce(sum(t.amount_nanos), 0) FROM transfer t "
    "WHERE t.debit_account = 'customer:' || CAST(a.id AS TEXT) AND t.at >= ?)"
)
"""What came into a customer's balance by transfers since a moment, less what went out of it."""
_ARM: Final = (
    "UPDATE alert SET told_at = NULL WHERE told_at IS NOT NULL AND kind <> 'daily_spend' AND EXISTS "
    "(SELECT 1 FROM account a WHERE a.id = alert.account_id AND a.posted_nanos >= alert.at_nanos)"
)
_BEGIN_DAY: Final = (
    "UPDATE alert SET day = ?, told_at = NULL, base_nanos = (SELECT a.posted_nanos "  # noqa: S608  fixed texts
    "+ (SELECT coalesce(sum(u.charged_nanos), 0) FROM usage u WHERE u.account_id = a.id AND u.at >= ?) "
    f"- ({_MOVED}) FROM account a WHERE a.id = alert.account_id) "
    "WHERE kind = 'daily_spend' AND (day IS NULL OR day <> ?)"
)
_CROSSED: Final = (
    "SELECT id, account_id, kind, at_nanos, email, posted_nanos, spent_nanos FROM ("  # noqa: S608  fixed texts
    "SELECT l.id, l.account_id, l.kind, l.at_nanos, a.email, a.posted_nanos, "
    f"CASE WHEN l.kind = 'daily_spend' THEN l.base_nanos - a.posted_nanos + ({_MOVED}) ELSE 0 END AS spent_nanos "
    "FROM alert l JOIN account a ON a.id = l.account_id WHERE l.told_at IS NULL AND a.status <> 'closed') AS armed "
    "WHERE CASE WHEN kind = 'daily_spend' THEN spent_nanos > at_nanos ELSE posted_nanos < at_nanos END "
    "ORDER BY id LIMIT ?"
)


class Alert(msgspec.Struct, frozen=True):
    """What one account wants to be told. `told_at_us` None: it waits for its moment."""

    kind: Kind
    at_nanos: int
    told_at_us: int | None


async def alerts_of(store: Store, account_id: int) -> dict[Kind, Alert]:
    """Give what an account wants to be told."""
    rows = await store.fetch("SELECT kind, at_nanos, told_at FROM alert WHERE account_id = ?", (account_id,))
    return {row[0]: Alert(*row) for row in rows}


async def set_alerts(store: Store, account_id: int, wanted: Mapping[Kind, int | None]) -> None:
    """Set alerts at these amounts, or take them away where there is None; one that is changed is armed anew.

    Raises InvalidRequest for an amount that none can have.
    """
    before = await alerts_of(store, account_id)
    statements: list[Statement] = []
    for kind, at_nanos in wanted.items():
        if at_nanos is None:
            statements.append(("DELETE FROM alert WHERE account_id = ? AND kind = ?", (account_id, kind)))
        elif not 0 < at_nanos <= MAX_NANOS:
            raise InvalidRequest(f"an alert is set at an amount above nothing, got {format_usd(at_nanos)}")
        elif kind not in before or before[kind].at_nanos != at_nanos:
            statements.append((_KEEP, (account_id, kind, at_nanos)))
    if statements:
        await store.write(statements)


class Lookout:
    """Finds what people want to be told: one question for all alerts. A job of the process that leads."""

    def __init__(self, store: Store, *, site_name: str, public_url: str) -> None:
        self._store = store
        self._site_name = site_name
        self._public_url = public_url

    async def look(self, now_us: int) -> int:
        """Tell of everything that was crossed since the last look. Answers how many were told."""
        day = now_us // DAY_US
        begins_at = day * DAY_US
        await self._store.write([(_ARM, ()), (_BEGIN_DAY, (day, begins_at, begins_at, begins_at, day))])
        crossed = await self._store.fetch(_CROSSED, (begins_at, begins_at, _AT_ONCE))
        for row in crossed:
            await self._tell(row, now_us)
        return len(crossed)

    async def _tell(self, row: Row, now_us: int) -> None:
        alert_id, account_id, kind, at_nanos, email, posted_nanos, spent_nanos = row
        day = day_of(now_us)
        balance, limit = format_usd(posted_nanos), format_usd(at_nanos)
        spent = f"Since the day began (UTC), {format_usd(spent_nanos)} was spent"
        subject, words, name = {
            "balance": (
                f"Your balance at {self._site_name} is below {limit}",
                f"The balance of your account is {balance}, less than the {limit} you wanted to hear of.",
                "balance.low",
            ),
            "used_up": (
                f"Your balance at {self._site_name} is used up",
                f"The balance of your account is {balance}. Calls that it does not cover are refused.",
                "balance.exhausted",
            ),
            "daily_spend": (
                f"You have spent more than {limit} at {self._site_name} today",
                f"{spent}, more than the {limit} you wanted to hear of. The balance is {balance}. Nothing was stopped.",
                "spend.daily",
            ),
        }[kind]
        data = {"balance_usd": decimal_usd(posted_nanos), "limit_usd": decimal_usd(at_nanos)}
        if kind == "daily_spend":
            data |= {"spent_usd": decimal_usd(spent_nanos), "day": day}
        body = (
            f"{words}\n\nWhat it was spent on: {self._public_url}/dashboard/usage\n"
            f"Change what you are told: {self._public_url}/dashboard/settings/alerts\n"
        )
        await self._store.write(
            [
                ("UPDATE alert SET told_at = ? WHERE id = ?", (now_us, alert_id)),
                letter(email, subject, body, now_us),
                event(account_id, name, data, now_us, once=f"{alert_id}:{now_us}"),
            ]
        )
