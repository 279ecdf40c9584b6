"""Money that an operator moves by hand, at /admin or by command: written down, then booked, then told of.

The line in the audit log comes first, with the id of the entry, which was chosen before it was first asked for. A crash
after it leaves a line without its entry; asking again with the same id writes no second line and books the entry, once.
"""

from typing import Final

from farebox.accounts.accounts import Account, before_deposit, find_account, follow_top_ups
from farebox.accounts.audit_log import record, record_once
from farebox.accounts.operators import Operator, customer
from farebox.billing.ledger import Transfer, customer_id
from farebox.billing.plans import Plans
from farebox.books.corrections import Correction, reverse_of
from farebox.books.journal import JournalLine
from farebox.books.ledger import Ledger
from farebox.errors import InvalidRequest
from farebox.events.news import mail_of_credit, tell_of_credit
from farebox.money import decimal_usd, format_usd
from farebox.store.protocol import Store

_LOCK: Final = "UPDATE account SET notes = notes WHERE id = ?"
"""The same form sent twice at once waits for itself here, and finds its line written."""


class ByHand:
    """Books what operators ask for. `site_name` and `public_url` are what mails say."""

    def __init__(self, store: Store, ledger: Ledger, plans: Plans, *, site_name: str, public_url: str) -> None:
        self._store = store
        self._ledger = ledger
        self._plans = plans
        self._site_name = site_name
        self._public_url = public_url

    async def move(self, by: Operator, account: Account, wanted: Correction, now_us: int) -> bool:
        """Credit or debit a customer. Answers whether it was done now; if not, it had been before.

        Raises InvalidRequest when the ledger refuses; then nothing was moved.
        """
        transfer = wanted.transfer(actor_of(by))
        action = "account.debit" if wanted.change_nanos < 0 else "account.credit"
        facts = {"entry": transfer.id, "kind": wanted.kind, "amount_usd": decimal_usd(wanted.amount_nanos)}
        posted_now = await self._book(by, action, transfer, facts, wanted.reason)
        if not posted_now and wanted.kind == "deposit":
            account = await before_deposit(self._store, account.id, wanted.amount_nanos)
        if wanted.change_nanos > 0:
            after = await follow_top_ups(self._store, account, self._plans)
            news = tell_of_credit(after, wanted.amount_nanos, transfer.id, now_us)
            words = {"site_name": self._site_name, "public_url": self._public_url}
            mail = [mail_of_credit(after, wanted.amount_nanos, transfer.id, now_us, **words)] if posted_now else []
            await self._store.write([*mail, *news])
        return posted_now

    async def reverse(self, by: Operator, entry: JournalLine, reason: str) -> str:
        """Take an entry back by another one, at most once; what a deposit had earned goes with it. Answers its id.

        Raises InvalidRequest.
        """
        transfer = reverse_of(entry, actor_of(by), reason)
        facts = {"entry": transfer.id, "reverses": entry.id, "amount_usd": decimal_usd(entry.amount_nanos)}
        account_id = customer_id(transfer.debit_account) or customer_id(transfer.credit_account)
        if account_id is None or transfer.code != "deposit":
            await self._book(by, "ledger.reverse", transfer, facts, reason)
            return transfer.id
        before = await find_account(self._store, str(account_id))
        if not await self._book(by, "ledger.reverse", transfer, facts, reason):
            change = -transfer.amount_nanos if customer_id(transfer.debit_account) else transfer.amount_nanos
            before = await before_deposit(self._store, account_id, change)
        await follow_top_ups(self._store, before, self._plans)
        return transfer.id

    async def _book(self, by: Operator, action: str, transfer: Transfer, facts: dict[str, str], reason: str) -> bool:
        account_id = customer_id(transfer.debit_account) or customer_id(transfer.credit_account)
        target = customer(account_id) if account_id else transfer.credit_account
        line = record_once(by.name, by.address, action, target, facts, reason)
        await self._store.write([(_LOCK, (account_id or 0,)), line])
        posted = await self._ledger.post(transfer)
        if posted.refused:
            refused = {**facts, "refused": posted.refused}
            await self._store.write([record(by.name, by.address, f"{action}.refused", target, None, refused, reason)])
            raise InvalidRequest(f"nothing was moved: {await self._why(transfer, posted.refused)}")
        return posted.now

    async def _why(self, transfer: Transfer, refused: str) -> str:
        """Say in dollars what the ledger says in nano-dollars, where it is about too little money."""
        debited = customer_id(transfer.debit_account)
        if debited:
            free = (await find_account(self._store, str(debited))).free_nanos
            if free < transfer.amount_nanos:
                return f"only {format_usd(free)} is free, less than the amount asked for"
        return refused


def actor_of(by: Operator) -> str:
    """Name in an entry who has asked for it."""
    return f"operator:{by.name.removeprefix('cli:')}"
