"""Entries that an operator makes by hand: credits, gifts, debits, and the reverse of an entry.

Each has its id before it is first asked for, so that asking twice moves money once. An entry is never changed: its
reverse is another one, made at most once, of the same code, so that what a deposit earned goes with it.
"""

import re
from typing import Final, Literal, get_args

import msgspec

from farebox.billing.ledger import Transfer
from farebox.books.journal import USAGE, JournalLine
from farebox.books.ledger import credit, debit
from farebox.errors import InvalidRequest

Kind = Literal["deposit", "credit", "promotion", "refund", "debit"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_ID: Final = re.compile(r"[0-9a-f]{32}")
_REVERSE: Final = "reverse:"
_OF_PAYMENTS: Final = ("deposit:", "reversal:", "loss:", "found:")


class Correction(msgspec.Struct, frozen=True):
    """What an operator wants to move, and why. `id` was chosen before it was first asked for."""

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
    return text


def read_id(text: str) -> str:
    """Read the id that a preview has chosen. Raises InvalidRequest."""
    if not _ID.fullmatch(text):
        raise InvalidRequest("this form has lost the id of its entry; begin again")
    return text


def reverse_of(entry: JournalLine, actor: str, reason: str) -> Transfer:
    """Make the entry that takes another one back: the same amount the other way round. Raises InvalidRequest."""
    if entry.code == USAGE:
        raise InvalidRequest("a charge is never taken back: give the customer a refund")
    if is_reverse(entry.id):
        raise InvalidRequest("this is a reverse itself: credit or debit the customer instead")
    if entry.id.startswith(_OF_PAYMENTS):
        raise InvalidRequest("this entry is of a payment, and undone when its chain does: debit the customer instead")
    return Transfer(
        id=reverse_id(entry.id),
        debit_account=entry.credit_account,
        credit_account=entry.debit_account,
        amount_nanos=entry.amount_nanos,
        code=entry.code,
        actor=actor,
        memo=f"reverses {entry.id}: {reason}",
    )


def reverse_id(entry_id: str) -> str:
    """Give the id of an entry's reverse, whether it has been made or not."""
    return _REVERSE + entry_id


def is_reverse(entry_id: str) -> bool:
    return entry_id.startswith(_REVERSE)
