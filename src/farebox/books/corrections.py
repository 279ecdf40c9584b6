"""Entries that an operator makes by hand: credits, gifts, debits, and the reverse of an entry.

Each has its id before it is first asked for, so that asking twice moves money once. An entry is never changed: its
reverse is another one, made at most once, of the same code, so that what a deposit earned goes with it.
"""

import re
from typing import Final, Literal, cast, get_args

import msgspec

from farebox.billing.ledger import Transfer
from farebox.books.ledger import Ledger, credit, debit
from farebox.errors import InvalidRequest
from farebox.store.protocol import Reading

Kind = Literal["deposit", "credit", "promotion", "refund", "debit"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_ID: Final = re.compile(r"[0-9a-f]{32}")
_REVERSE: Final = "reverse:"
_COLUMNS: Final = "id, debit_account, credit_account, amount_nanos, code, actor, memo"


class Correction(msgspec.Struct, frozen=True):
    """What an operator wants to move, and why. `id` is 32 hex digits, chosen with the preview."""

    id: str
    account_id: int
    kind: Kind
    amount_nanos: int
    reason: str

    @property
    def change_nanos(self) -> int:
        """What it does to the balance."""
        return -self.amount_nanos if self.kind == "debit" else self.amount_nanos

    def transfer(self, actor: str) -> Transfer:
        transfer_id = f"operator:{self.id}"
        if self.kind == "debit":
            return debit(transfer_id, self.account_id, self.amount_nanos, actor=actor, memo=self.reason)
        return credit(transfer_id, self.account_id, self.amount_nanos, code=self.kind, actor=actor, memo=self.reason)


def read_kind(text: str) -> Kind:
    """Read what kind of entry is wanted. Raises InvalidRequest."""
    if text not in KINDS:
        raise InvalidRequest(f"an entry is one of {', '.join(KINDS)}, got {text[:20]!r}")
    return cast("Kind", text)


def read_id(text: str) -> str:
    """Read the id that a preview has chosen. Raises InvalidRequest."""
    if not _ID.fullmatch(text):
        raise InvalidRequest("this form has lost the id of its entry; begin again")
    return text


async def find_transfer(store: Reading, transfer_id: str) -> Transfer | None:
    """Find an entry."""
    rows = await store.fetch(f"SELECT {_COLUMNS} FROM transfer WHERE id = ?", (transfer_id,))  # noqa: S608  fixed texts
    names = _COLUMNS.split(", ")
    return Transfer(**dict(zip(names, rows[0], strict=True))) if rows else None


def reverse_of(transfer: Transfer, actor: str, reason: str) -> Transfer:
    """Make the entry that takes another one back: the same amount the other way round."""
    return Transfer(
        id=_REVERSE + transfer.id,
        debit_account=transfer.credit_account,
        credit_account=transfer.debit_account,
        amount_nanos=transfer.amount_nanos,
        code=transfer.code,
        actor=actor,
        memo=f"reverses {transfer.id}: {reason}",
    )


def is_reverse(transfer_id: str) -> bool:
    return transfer_id.startswith(_REVERSE)


async def post_by_hand(ledger: Ledger, transfer: Transfer) -> bool:
    """Make an entry. Answers whether it was made now; if not, it had been before. Raises InvalidRequest."""
    posted = await ledger.post(transfer)
    if posted.refused:
        raise InvalidRequest(f"nothing was moved: {posted.refused}")
    return posted.now
