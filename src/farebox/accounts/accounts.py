"""Customers: who they are, on which plan, whether they may call. Money moves only through the ledger."""

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from farebox.billing.plans import Plans
from farebox.errors import InvalidRequest, NotFound, StoreConflict
from farebox.store.protocol import Statement, Store

Status = Literal["active", "suspended", "closed"]

_EMAIL: Final = re.compile(
    r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]",
    re.ASCII,
)
_EMAIL_CHARS: Final = 254  # RFC 5321 4.5.3.1.3, less the angle brackets
_COLUMNS: Final = "id, email, plan, status, posted_nanos, held_nanos, topped_up_nanos, created_at"


class Account(msgspec.Struct, frozen=True):
    """An account as its owner and the operator see it. `balance_nanos` includes what is held."""

    id: int
    email: str
    plan: str
    status: Status
    balance_nanos: int
    held_nanos: int
    topped_up_nanos: int
    created_at_us: int

    @property
    def free_nanos(self) -> int:
        return self.balance_nanos - self.held_nanos


def clean_email(text: str) -> str:
    """Bring an email address to the form it is kept in: trimmed and in lower case. Raises InvalidRequest."""
    email = text.strip().lower()
    local = email.rpartition("@")[0]
    # "=?" begins an encoded word (RFC 2047): programs that write or read mail would make other addresses of it
    if len(email) > _EMAIL_CHARS or len(local) > 64 or "=?" in local or not _EMAIL.fullmatch(email):
        raise InvalidRequest(f"an email address looks like name@example.com, got {text[:80]!r}")
    return email


async def create_account(store: Store, email: str, plan: str, now_us: int, also: Sequence[Statement] = ()) -> Account:
    """Open an account with nothing in it. Raises InvalidRequest, and StoreConflict for an address in use.

    `also` is written with it.
    """
    address = clean_email(email)
    insert = ("INSERT INTO account (email, plan, created_at) VALUES (?, ?, ?)", (address, plan, now_us))
    try:
        await store.write([insert, *also])
    except StoreConflict as error:
        raise StoreConflict(f"there is an account {address} already") from error
    return await find_account(store, address)


async def find_account(store: Store, who: str) -> Account:
    """Find an account by email address or id. Raises NotFound."""
    wanted = who.strip()
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 19:
        found = await _select(store, "WHERE id = ?", (int(wanted),))
    else:
        found = await _select(store, "WHERE email = ?", (wanted.lower(),))
    if not found:
        raise NotFound(f"there is no account {wanted!r}; `farebox account list` names them")
    return found[0]


async def list_accounts(store: Store) -> list[Account]:
    """Give all accounts, oldest first."""
    return await _select(store, "ORDER BY id", ())


async def set_status(store: Store, account_id: int, status: Status) -> None:
    """Suspend an account or let it call again. Calls in flight end as they would."""
    await store.write([("UPDATE account SET status = ? WHERE id = ?", (status, account_id))])


async def follow_top_ups(store: Store, before: Account, plans: Plans) -> Account:
    """After a deposit, move an account to the plan it has now earned, if its plan was the earned one before.

    A plan that was set by hand stays. The guard in the UPDATE closes the race with an operator who sets one.
    """
    now = await find_account(store, str(before.id))
    earned = plans.earned(now.topped_up_nanos).name
    if earned == now.plan or before.plan != plans.earned(before.topped_up_nanos).name:
        return now
    await store.write([("UPDATE account SET plan = ? WHERE id = ? AND plan = ?", (earned, now.id, before.plan))])
    return await find_account(store, str(before.id))


async def before_deposit(store: Store, account_id: int, amount_nanos: int) -> Account:
    """Give an account as it was before a deposit that is in it already: its process may have died before it said so.

    Of one that was taken back, the amount is below zero.
    """
    now = await find_account(store, str(account_id))
    return msgspec.structs.replace(now, topped_up_nanos=now.topped_up_nanos - amount_nanos)


async def _select(store: Store, where: str, params: tuple[Any, ...]) -> list[Account]:
    rows = await store.fetch(f"SELECT {_COLUMNS} FROM account {where}", params)  # noqa: S608  fixed texts
    return [Account(*row) for row in rows]
