"""An operator for tests of the pages at /admin, and the means to read what those pages do."""

import csv
import io
import json
from typing import Any, Final

from farebox.accounts.accounts import find_account
from farebox.accounts.operators import Operator, change_role
from farebox.books.audit import audit
from tests.stage import Stage
from tests.web.browse import Browser, Page, enter

OPERATOR: Final = "olga@example.com"


async def enter_admin(stage: Stage, email: str = OPERATOR) -> Browser:
    """Sign an operator in, who has given a second factor just now."""
    if not await stage.rows("SELECT 1 FROM account WHERE email = ?", email):
        await stage.person(email)
    account = await find_account(stage.gateway.store, email)
    await change_role(stage.gateway.store, Operator("cli:test", ""), account, "admin", "a test")
    browser = await enter(stage, email)
    give = "UPDATE session SET factor_at = ? WHERE account_id = ?"
    await stage.gateway.store.write([(give, (stage.gateway.clock(), account.id))])
    return browser


async def forget_proof(stage: Stage) -> None:
    """Let the last proof of every session be too old for changes."""
    await stage.gateway.store.write([("UPDATE session SET sure_at = sure_at - ?", (16 * 60_000_000,))])


async def written(stage: Stage, action: str) -> list[dict[str, Any]]:
    """Give the lines of the audit log about an action, oldest first."""
    columns = "actor, address, target, before, after, reason"
    rows = await stage.rows(f"SELECT {columns} FROM audit_log WHERE action = ? ORDER BY id", action)
    return [
        {
            name: json.loads(value) if name in {"before", "after"} and value else value
            for name, value in zip(columns.split(", "), row, strict=True)
        }
        for row in rows
    ]


def table(page: Page) -> list[dict[str, str]]:
    """Read a CSV file."""
    return list(csv.DictReader(io.StringIO(page.text)))


async def books_hold(stage: Stage) -> None:
    assert [check for check in await audit(stage.gateway.store) if not check.ok] == []


def dollars(nanos: int) -> str:
    """Write an amount as pages do."""
    whole, rest = divmod(nanos, 10**9)
    return f"${whole}.{f'{rest:09d}'.rstrip('0').ljust(2, '0')}"
