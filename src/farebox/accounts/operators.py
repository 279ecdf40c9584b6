"""What operators change about accounts. Each change is one write together with its line in the audit log."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from farebox.accounts.accounts import Account, Status, clean_email, create_account
from farebox.accounts.audit_log import Facts, record, record_opening
from farebox.accounts.mail import letter
from farebox.errors import InvalidRequest
from farebox.store.protocol import Statement, Store

NOTES_CHARS: Final = 10_000


class Operator(msgspec.Struct, frozen=True):
    """Who changes something: an operator's address or "cli:" and a user, and from where."""

    name: str
    address: str


class OwnLimits(msgspec.Struct, frozen=True):
    """An account's own limits instead of its plan's; None: the plan's."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


def customer(account_id: int) -> str:
    """Name a customer as the target of a change, as the ledger names its account."""
    return f"customer:{account_id}"


async def open_by_hand(store: Store, by: Operator, email: str, plan: str, now_us: int) -> Account:
    """Open an account for somebody. Raises InvalidRequest, and StoreConflict for an address in use."""
    address = clean_email(email)
    return await create_account(store, address, plan, now_us, [record_opening(by.name, by.address, address, plan)])


async def change_status(store: Store, by: Operator, account: Account, status: Status, reason: str) -> None:
    """Suspend an account or let it call again. Calls in flight end as they would. Raises InvalidRequest."""
    if account.status == "closed":
        raise InvalidRequest(f"{account.email} has been closed by its owner, for good")
    action = "account.suspend" if status == "suspended" else "account.resume"
    change = ("UPDATE account SET status = ? WHERE id = ? AND status <> 'closed'", (status, account.id))
    await _write(store, by, action, account.id, [change], {"status": account.status}, {"status": status}, reason)


async def change_plan(store: Store, by: Operator, account: Account, plan: str, reason: str) -> None:
    """Put an account on a plan by hand, whatever it has topped up."""
    change = ("UPDATE account SET plan = ? WHERE id = ?", (plan, account.id))
    await _write(store, by, "account.plan", account.id, [change], {"plan": account.plan}, {"plan": plan}, reason)


async def own_limits(store: Store, account_id: int) -> OwnLimits:
    """Read an account's own limits."""
    columns = ", ".join(OwnLimits.__struct_fields__)
    rows = await store.fetch(f"SELECT {columns} FROM account WHERE id = ?", (account_id,))  # noqa: S608  fixed texts
    return OwnLimits(*rows[0])


async def change_limits(store: Store, by: Operator, account_id: int, limits: OwnLimits, reason: str) -> None:
    """Give an account limits of its own, or the plan's again."""
    before = await own_limits(store, account_id)
    sets = ", ".join(f"{name} = ?" for name in OwnLimits.__struct_fields__)
    after = msgspec.structs.astuple(limits)
    change = (f"UPDATE account SET {sets} WHERE id = ?", (*after, account_id))  # noqa: S608  fixed texts
    await _write(store, by, "account.limits", account_id, [change], _facts(before), _facts(limits), reason)


async def change_role(store: Store, by: Operator, account: Account, role: str, reason: str) -> None:
    """Make somebody an operator, or a customer again; every session of theirs ends."""
    rows = await store.fetch("SELECT role FROM account WHERE id = ?", (account.id,))
    changes: list[Statement] = [
        ("UPDATE account SET role = ? WHERE id = ?", (role, account.id)),
        ("DELETE FROM session WHERE account_id = ?", (account.id,)),
    ]
    await _write(store, by, "account.role", account.id, changes, {"role": rows[0][0]}, {"role": role}, reason)


async def verify_address(store: Store, by: Operator, account: Account, now_us: int, reason: str) -> None:
    """Take an address for proved."""
    change = ("UPDATE account SET verified_at = ? WHERE id = ? AND verified_at IS NULL", (now_us, account.id))
    facts = {"email": account.email, "confirmed": True}
    before = {"email": account.email, "confirmed": False}
    await _write(store, by, "account.verify", account.id, [change], before, facts, reason)


async def sign_out(store: Store, by: Operator, account_id: int, reason: str) -> None:
    """End every session of an account."""
    count = await store.fetch("SELECT count(*) FROM session WHERE account_id = ?", (account_id,))
    change = ("DELETE FROM session WHERE account_id = ?", (account_id,))
    before, after = {"sessions": count[0][0]}, {"sessions": 0}
    await _write(store, by, "account.sign_out", account_id, [change], before, after, reason)


async def reset_factor(
    store: Store, by: Operator, account: Account, reason: str, now_us: int, *, site_name: str, public_url: str
) -> None:
    """Take away an account's second factors, and end its sessions: a password alone is enough to come in again.

    Its owner is told by mail. `site_name` and `public_url` are what the mail says.
    """
    account_id = account.id
    rows = await store.fetch(
        "SELECT (SELECT count(*) FROM totp WHERE account_id = ? AND set_at IS NOT NULL), "
        "(SELECT count(*) FROM passkey WHERE account_id = ?)",
        (account_id, account_id),
    )
    tables = ("totp", "recovery_code", "passkey", "session")
    changes: list[Statement] = [
        (f"DELETE FROM {table} WHERE account_id = ?", (account_id,))  # noqa: S608  fixed texts
        for table in tables
    ]
    body = (
        f"The operator of {site_name} has taken the second factor and all passkeys off your account, and ended every "
        "session. The password alone is enough to sign in now.\n\n"
        f"If you did not ask for it, choose a new password: {public_url}/forgot\n"
    )
    changes.append(letter(account.email, f"No second factor any more at {site_name}", body, now_us))
    before, after = {"app": rows[0][0], "passkeys": rows[0][1]}, {"app": 0, "passkeys": 0}
    await _write(store, by, "account.reset_factor", account_id, changes, before, after, reason)


async def change_notes(store: Store, by: Operator, account_id: int, notes: str) -> None:
    """Keep what operators note about a customer. Raises InvalidRequest."""
    if len(notes) > NOTES_CHARS or "\0" in notes:
        raise InvalidRequest(f"notes are at most {NOTES_CHARS:,} characters, got {len(notes):,}")
    rows = await store.fetch("SELECT notes FROM account WHERE id = ?", (account_id,))
    change = ("UPDATE account SET notes = ? WHERE id = ?", (notes, account_id))
    await _write(store, by, "account.notes", account_id, [change], {"notes": rows[0][0]}, {"notes": notes}, "")


async def look_as(store: Store, by: Operator, session: bytes, account_id: int, reason: str) -> None:
    """Let an operator's session look at the site as a customer sees it, without changing anything."""
    change = ("UPDATE session SET viewing = ? WHERE hash = ?", (account_id, session))
    await _write(store, by, "account.view", account_id, [change], None, {"looking": True}, reason)


async def look_away(store: Store, by: Operator, session: bytes, account_id: int) -> None:
    """End that look."""
    change = ("UPDATE session SET viewing = NULL WHERE hash = ?", (session,))
    await _write(store, by, "account.view_end", account_id, [change], {"looking": True}, {"looking": False}, "")


def _facts(limits: OwnLimits) -> dict[str, Any]:
    return msgspec.structs.asdict(limits)


async def _write(
    store: Store,
    by: Operator,
    action: str,
    account_id: int,
    changes: Sequence[Statement],
    before: Facts | None,
    after: Facts,
    reason: str,
) -> None:
    line = record(by.name, by.address, action, customer(account_id), before, after, reason)
    await store.write([*changes, line])
