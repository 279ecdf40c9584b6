"""What a BTCPay Server says came, for the daily comparison: every invoice of ours that its own list says was paid.

That list also names invoices that the books know nothing of, such as those made after the backup that they come from.
"""

from collections.abc import Sequence
from typing import Final

from farebox.clock import DAY_US, US_PER_S
from farebox.errors import RailTrouble
from farebox.payments.btcpay import BITCOIN, BY_LIGHTNING, NAME, ORDER
from farebox.payments.btcpay_api import CHAIN, BtcpayApi, Invoice, Method
from farebox.payments.btcpay_watcher import MONITORED_US
from farebox.payments.reconcile import Holding
from farebox.payments.records import select_payments, select_topups
from farebox.store.protocol import Store

_FRESH_US: Final = DAY_US + 2 * 3600 * US_PER_S
"""A payment that came no longer ago may not have been found yet: the watcher asks about old invoices once a day."""


class BtcpayView:
    """See ChainView. An "address" is where an invoice was to be paid."""

    def __init__(self, store: Store, api: BtcpayApi) -> None:
        self._store = store
        self._api = api
        self._invoices: dict[str, str] = {}
        """By address, as of the last time that addresses were asked for."""

    async def addresses(self, asset: str) -> list[str]:
        since_us = max(0, await self._now_us() - MONITORED_US)
        found: dict[str, str] = {}
        topups = await select_topups(
            self._store, "WHERE rail = ? AND reference <> '' AND ends_at > ?", (NAME, since_us)
        )
        known = {one.reference: one for one in topups}
        payments = await select_payments(self._store, "WHERE rail = ? AND seen_at > ?", (NAME, since_us))
        credited = {one.topup_id for one in payments}
        for invoice in await self._api.invoices_since(since_us // US_PER_S):
            topup = known.get(invoice.id)
            if topup is not None and topup.asset == asset and (_is_paid(invoice) or topup.id in credited):
                found[topup.address] = invoice.id
            elif topup is None and invoice.order_id.startswith(ORDER) and _is_paid(invoice):
                for method in await self._api.methods(invoice.id) or []:
                    if _asset_of(method) == asset and method.payments:
                        found[method.destination] = invoice.id
        self._invoices = found
        return sorted(found)

    async def holdings(self, asset: str, addresses: Sequence[str]) -> dict[str, Holding]:
        settled_by_us = await self._now_us() - _FRESH_US
        told = {}
        for address in addresses:
            invoice_id = self._invoices.get(address, "")
            methods = await self._api.methods(invoice_id)
            if methods is None:
                raise RailTrouble(f"invoice {invoice_id} was listed, and is not there")
            prefix = f"{NAME}:{self._api.store}:{invoice_id}:"
            where = "WHERE rail = ? AND address = ? AND asset = ?"
            booked = {one.id for one in await select_payments(self._store, where, (NAME, address, asset))}
            came = [one for method in methods if _asset_of(method) == asset for one in method.payments]
            units = sum(
                one.satoshis
                for one in came
                if one.status == "Settled"
                and (f"{prefix}{one.method}:{one.id}" in booked or one.received_us < settled_by_us)
            )
            told[address] = Holding(units, has_sent=False)
        return told

    async def _now_us(self) -> int:
        """Give when the watcher has last got through. Raises RailTrouble where it never has."""
        rows = await self._store.fetch("SELECT looked_at FROM watcher WHERE name = ?", (NAME,))
        if not rows or rows[0][0] is None:
            raise RailTrouble("BTCPay Server has not been asked yet")
        return int(rows[0][0])


def _is_paid(invoice: Invoice) -> bool:
    """Whether something may have come, by the label of an invoice."""
    return invoice.status not in {"New", "Expired"} or invoice.additional != "None"


def _asset_of(method: Method) -> str:
    return (BITCOIN if method.id == CHAIN else BY_LIGHTNING).code
