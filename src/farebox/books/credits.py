"""Payments and their entries, compared: each was credited, taken back and credited again as its row says, once each.

For payment P, `deposit:P:N` (odd N) gives it to the customer and `reversal:P:N` (even N) takes it back;
what could not be taken back is the house's, as `loss:P:N` (or as `reversal:P:N`, where it was all of it and that is how
it turned out), and what of that returns is `found:P:N`. Those credited before there were rows of payments have
`topup:T` in place of `deposit:P:1`.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Final

import msgspec

from farebox.billing.ledger import customer_account, customer_id
from farebox.store.protocol import Reading

_PAGE: Final = 1_000
_PAID: Final = """
    SELECT p.id, p.account_id, p.units, p.state, p.epoch, p.worth_nanos, p.locked_units, p.taken_nanos, p.transfer_id,
      t.id, t.debit_account, t.credit_account, t.amount_nanos, t.code
    FROM (SELECT * FROM payment WHERE id > ? ORDER BY id LIMIT ?) p
    LEFT JOIN (SELECT 'deposit:' AS word UNION ALL SELECT 'reversal:' UNION ALL SELECT 'loss:' UNION ALL
      SELECT 'found:' UNION ALL SELECT 'topup:') w ON 1 = 1
    LEFT JOIN transfer t
      ON t.id >= CASE WHEN w.word <> 'topup:' THEN w.word || p.id || ':'
        WHEN p.id = p.rail || ':' || p.topup_id THEN 'topup:' || p.topup_id ELSE 'topup;' END
      AND t.id < CASE WHEN w.word <> 'topup:' THEN w.word || p.id || ';'
        WHEN p.id = p.rail || ':' || p.topup_id THEN 'topup:' || p.topup_id || '!' ELSE 'topup;' END
    ORDER BY p.id
"""
"""Rows with their entries: one statement, one snapshot. ";" follows ":", and "!" comes before all that ids are of."""
_ENTRIES: Final = "SELECT id FROM transfer WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
_OLD: Final = """
    SELECT id FROM transfer WHERE id > 'topup:' AND id < 'topup;'
      AND id NOT IN (SELECT 'topup:' || topup_id FROM payment WHERE id = rail || ':' || topup_id) LIMIT 1000
"""
_UNPAID: Final = """
    SELECT id FROM topup t WHERE state = 'credited'
      AND NOT EXISTS (SELECT 1 FROM payment p WHERE p.topup_id = t.id AND p.epoch > 0) LIMIT 1000
"""
_WORDS: Final = ("deposit", "found", "loss", "reversal")
_ODD: Final = {"crediting", "credited"}
_CASH, _ADJUSTMENTS = "house:cash", "house:adjustments"


class _Payment(msgspec.Struct, frozen=True):
    id: str
    account_id: int | None
    units: str
    state: str
    epoch: int
    worth_nanos: int | None
    locked_units: str
    taken_nanos: int | None
    transfer_id: str | None


class _Entry(msgspec.Struct, frozen=True):
    id: str
    debit_account: str
    credit_account: str
    amount_nanos: int
    code: str


async def compare_payments(store: Reading, tell: Callable[[str], None]) -> int:
    """Compare all payments with their entries, and hear of what is wrong; answers how many there are."""
    last, count = "", 0
    while rows := await store.fetch(_PAID, (last, _PAGE)):
        for _, grouped in groupby(rows, key=lambda row: row[0]):
            found = list(grouped)
            payment = _Payment(*found[0][:9])
            entries = {row[9]: _Entry(*row[9:]) for row in found if row[9] and _is_about(row[9], payment.id)}
            if wrong := _wrong(payment, entries):
                tell(f"payment {payment.id} {wrong}")
            count += 1
            last = payment.id
    for word in _WORDS:
        await _find_unowned(store, word, tell)
    for (entry_id,) in await store.fetch(_OLD):
        tell(f"transfer {entry_id} credits a top-up that nothing came for")
    for (topup_id,) in await store.fetch(_UNPAID):
        tell(f"top-up {topup_id} is said to be credited, and nothing came for it")
    return count


async def _find_unowned(store: Reading, word: str, tell: Callable[[str], None]) -> None:
    """Look for entries about payments that are not there. A payment's row is written before its entries."""
    last = f"{word}:"
    while rows := await store.fetch(_ENTRIES, (last, f"{word};", _PAGE)):
        about = {entry_id: _about(entry_id) for (entry_id,) in rows}
        marks = ", ".join("?" * len(about))
        there = await store.fetch(f"SELECT id FROM payment WHERE id IN ({marks})", tuple(about.values()))  # noqa: S608
        known = {payment_id for (payment_id,) in there}
        for entry_id, payment_id in about.items():
            if payment_id not in known:
                tell(f"transfer {entry_id} is about a payment that is not there")
        last = rows[-1][0]


def _about(entry_id: str) -> str:
    """Read which payment an entry is about."""
    return entry_id.partition(":")[2].rpartition(":")[0]


def _is_about(entry_id: str, payment_id: str) -> bool:
    return entry_id.startswith("topup:") or _about(entry_id) == payment_id


def _wrong(payment: _Payment, entries: dict[str, _Entry]) -> str | None:
    """Say what is wrong with a payment; None when it is right: also where its last entries are still to be posted."""
    try:
        units, locked = int(payment.units), int(payment.locked_units)
    except ValueError:
        return f"is of {payment.units!r} units, {payment.locked_units!r} of them by its quote, which are no amounts"
    if locked > units or locked < 0:
        return f"is of {units} units, {locked} of them by its quote"
    if (payment.state in _ODD) != bool(payment.epoch % 2) or (payment.state == "reversing" and not payment.epoch):
        return f"is {payment.state} in its epoch {payment.epoch}"
    if (payment.worth_nanos is None) == bool(payment.epoch):
        return f"is worth {payment.worth_nanos} in its epoch {payment.epoch}"
    return _Life(payment, entries).wrong()


class _Life:
    """One payment's entries, gone through in their order."""

    def __init__(self, payment: _Payment, entries: dict[str, _Entry]) -> None:
        self._payment = payment
        self._worth = payment.worth_nanos or 0
        self._left = dict(entries)
        self._credited_by: str | None = None
        self._given = self._worth
        """What the next credit gives to the customer: first its worth, later what was taken back from them."""

    def wrong(self) -> str | None:
        payment = self._payment
        begun = payment.state in {"crediting", "reversing"}
        whose = ""
        for epoch in range(1, payment.epoch + 1):
            pending = begun and epoch == payment.epoch
            wrong, account = (self._credit if epoch % 2 else self._return)(epoch, pending=pending)
            if wrong:
                return wrong
            if account and epoch % 2 == 0 and whose and account != whose:
                return f"was credited to {whose} and taken back from {account}"
            whose = account or ("" if epoch % 2 else whose)
        now = payment.state in _ODD or payment.state == "reversing"
        if now and whose and whose != customer_account(payment.account_id or 0):
            return f"of account {payment.account_id} was credited to {whose}"
        if payment.transfer_id != self._credited_by:
            return f"names {payment.transfer_id!r} as what credited it, and that is {self._credited_by!r}"
        if self._left:
            return f"has entries that it cannot have: {', '.join(sorted(self._left))}"
        return None

    def _credit(self, epoch: int, *, pending: bool) -> tuple[str | None, str]:
        name = f"deposit:{self._payment.id}:{epoch}"
        old = f"topup:{self._payment.id.partition(':')[2]}"
        if epoch == 1 and old in self._left:
            name = old
        if self._given:
            self._credited_by = name
        entry, found = self._take(name), self._take(f"found:{self._payment.id}:{epoch}")
        rest = self._worth - self._given
        for one, amount in ((entry, self._given), (found, rest)):
            if one is None and amount and not pending:
                return f"is {self._payment.state}, and {amount} of it were not booked in its epoch {epoch}", ""
            if one is not None and one.amount_nanos != amount:
                return f"was to be booked with {amount}, and {one.amount_nanos} were, by {one.id}", ""
        if found and not _is(found, _CASH, _ADJUSTMENTS, "loss"):
            return _odd(found), ""
        if entry is None:
            return None, ""
        account = entry.credit_account
        right = customer_id(account) is not None and _is(entry, _CASH, account, "deposit")
        return (None, account) if right else (_odd(entry), "")

    def _return(self, epoch: int, *, pending: bool) -> tuple[str | None, str]:
        entry = self._take(f"reversal:{self._payment.id}:{epoch}")
        loss = self._take(f"loss:{self._payment.id}:{epoch}")
        if entry is not None and loss is None and customer_id(entry.debit_account) is None:
            entry, loss = None, entry  # all of it had been spent by then, and its loss has taken the id
        taken, lost = (one.amount_nanos if one else 0 for one in (entry, loss))
        self._given = taken
        if taken + lost > self._worth or (taken + lost < self._worth and (loss is not None or not pending)):
            return f"is worth {self._worth}, of which {taken} were taken back and {lost} are a loss", ""
        if epoch == self._payment.epoch and not pending and self._payment.taken_nanos != taken:
            return f"says that {self._payment.taken_nanos} were taken back, and that was {taken}", ""
        if loss and not _is(loss, _ADJUSTMENTS, _CASH, "loss"):
            return _odd(loss), ""
        if entry is None:
            return None, ""
        account = entry.debit_account
        right = customer_id(account) is not None and _is(entry, account, _CASH, "deposit")
        return (None, account) if right else (_odd(entry), "")

    def _take(self, name: str) -> _Entry | None:
        return self._left.pop(name, None)


def _is(entry: _Entry, debit_account: str, credit_account: str, code: str) -> bool:
    return (entry.debit_account, entry.credit_account, entry.code) == (debit_account, credit_account, code)


def _odd(entry: _Entry) -> str:
    return f"has {entry.id} from {entry.debit_account} to {entry.credit_account} as {entry.code}"
