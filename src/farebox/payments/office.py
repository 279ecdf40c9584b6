"""The back office of payments: how all stands, and what an operator decides. Each act goes into the audit log."""

from typing import Final

import msgspec

from farebox.accounts.accounts import find_account
from farebox.accounts.audit_log import record
from farebox.accounts.operators import Operator, customer
from farebox.errors import InvalidRequest, NotFound
from farebox.payments.addresses import Addresses, DepositAddress, Gap
from farebox.payments.deposits import Deposits
from farebox.payments.incidents import Incident, closed, find_incident, open_incidents
from farebox.payments.rates.rates import Rates, SourceHealth
from farebox.payments.reconcile import Outcome, Reconciler, last_outcomes
from farebox.payments.records import Payment, Topup, TopupState, select_payments, select_topups
from farebox.payments.watching import Health, health_of
from farebox.store.protocol import Store

STATES: Final[tuple[TopupState, ...]] = ("waiting", "seen", "confirming", "credited", "expired", "reversed")


class KeyGap(msgspec.Struct, frozen=True):
    """A key in the books, what it is for, and how far its addresses have been used."""

    key_id: int
    family: str
    fingerprint: str
    gap: Gap


class Office:
    """What operators see and do about payments."""

    def __init__(
        self, store: Store, deposits: Deposits, addresses: Addresses, rates: Rates, reconciler: Reconciler
    ) -> None:
        self._store = store
        self._deposits = deposits
        self._addresses = addresses
        self._rates = rates
        self._reconciler = reconciler

    async def incidents(self) -> list[Incident]:
        """Give the incidents that nobody has closed."""
        return await open_incidents(self._store)

    async def watchers(self) -> list[Health]:
        """Tell how the watchers are."""
        return await health_of(self._store)

    async def sources(self, now_us: int) -> list[SourceHealth]:
        """Tell how the sources of rates are."""
        return await self._rates.health(now_us)

    async def topups(self, state: str, before_us: int | None, most: int) -> list[Topup]:
        """Give the latest top-ups in a state, or in any, newest first."""
        until = 2**62 if before_us is None else before_us
        where = "WHERE (state = ? OR ? = '') AND created_at < ? ORDER BY created_at DESC LIMIT ?"
        return await select_topups(self._store, where, (state, state, until, most))

    async def counts(self) -> dict[str, int]:
        """Count the top-ups in each state."""
        rows = await self._store.fetch("SELECT state, count(*) FROM topup GROUP BY state")
        return dict(sorted((str(state), int(count)) for state, count in rows))

    async def strays(self, most: int = 200) -> list[Payment]:
        """Give the payments of which nobody knows whose they are."""
        return await select_payments(self._store, "WHERE state = 'stray' ORDER BY seen_at LIMIT ?", (most,))

    async def gaps(self) -> list[KeyGap]:
        """Tell of each key how far its addresses have been given out."""
        rows = await self._store.fetch("SELECT id, family, fingerprint FROM watch_key ORDER BY id")
        return [
            KeyGap(key_id, family, fingerprint, await self._addresses.gap(key_id))
            for key_id, family, fingerprint in rows
        ]

    async def to_sweep(self) -> list[DepositAddress]:
        """Give the addresses that money came to."""
        return await self._addresses.export()

    async def outcomes(self) -> list[Outcome]:
        """Give the last comparison of chain and books."""
        return await last_outcomes(self._store)

    async def compare(self, by: Operator, now_us: int) -> list[Outcome]:
        """Compare chain and books now."""
        outcomes = await self._reconciler.compare(now_us)
        facts = {"differences": sum(len(one.differences) for one in outcomes)}
        await self._store.write([record(by.name, by.address, "payments.reconcile", "payments", None, facts, "")])
        return outcomes

    async def assign(self, by: Operator, payment_id: str, who: str, reason: str, now_us: int) -> Payment:
        """Say whose a stray payment is; it is credited like any other. Raises InvalidRequest and NotFound."""
        payment = await self.find_payment(payment_id)
        account = await find_account(self._store, who)
        if account.status == "closed":
            raise InvalidRequest(f"{account.email} is closed: it takes no money")
        if payment.state != "stray":
            raise InvalidRequest(f"this payment is {payment.state} already: only one that is nobody's can be assigned")
        facts = {"payment": payment.id, "units": payment.units, "asset": payment.asset}
        target = customer(account.id)
        await self._store.write([record(by.name, by.address, "payment.assign", target, None, facts, reason)])
        if not await self._deposits.assign(payment, account.id, by.name, now_us):
            raise InvalidRequest("somebody else has just assigned this payment: look again")
        return await self.find_payment(payment_id)

    async def close_incident(self, by: Operator, incident_id: int, words: str, now_us: int) -> Incident:
        """Close an incident, saying what was done about it. Raises InvalidRequest and NotFound."""
        incident = await find_incident(self._store, incident_id)
        if incident.closed_at_us is not None:
            raise InvalidRequest(f"this incident is closed already, by {incident.closed_by}: {incident.closing}")
        facts = {"incident": incident.id, "kind": incident.kind, "about": incident.ref}
        line = record(by.name, by.address, "incident.close", "payments", None, facts, words)
        await self._store.write([closed(incident_id, by.name, words, now_us), line])
        return incident

    async def find_payment(self, payment_id: str) -> Payment:
        """Find a payment. Raises NotFound."""
        rows = await select_payments(self._store, "WHERE id = ?", (payment_id,))
        if not rows:
            raise NotFound("there is no such payment")
        return rows[0]
