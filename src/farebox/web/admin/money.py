"""Crediting and debiting by hand: a form, a preview with exact amounts, and the entry, made once however often sent."""

import uuid
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.accounts import Account, follow_top_ups
from farebox.accounts.audit_log import record, record_once
from farebox.accounts.operators import Operator, customer
from farebox.accounts.sessions import Session
from farebox.billing.plans import Plans
from farebox.books.corrections import KINDS, Correction, post_by_hand, read_id, read_kind
from farebox.errors import InvalidRequest
from farebox.money import decimal_usd, parse_usd
from farebox.web.admin.customer import account_of
from farebox.web.admin.guard import Admins, operator_of, read_reason
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

WORDS: Final = {
    "deposit": "Deposit: money came in, and counts towards a plan",
    "credit": "Correction in the customer's favour",
    "promotion": "Gift: no money came in",
    "refund": "Refund of a charge",
    "debit": "Debit: take money away",
}
_FIELD_CHARS: Final = 600


class Money:
    """Entries by hand."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._ledger = kit.ledger
        self._plans = Plans(kit.offer.plans)
        self._forget_keys = kit.backstage.forget_keys

    def routes(self) -> list[Route]:
        return [Route("/admin/customers/{account_id}/money", self._admins.page(self.money), methods=["GET", "POST"])]

    async def money(self, request: Request, me: Session) -> Response:
        """Ask; then show what it would do, with the id of the entry; then make it."""
        account = await account_of(self._store, request)
        given = await read_form(request) if request.method == "POST" else dict(request.query_params)
        form = {name: given.get(name, "")[:_FIELD_CHARS] for name in ("kind", "amount", "reason", "id")}
        if request.method == "GET":
            return self._ask(request, me, account, form)
        try:
            correction = _read(form, account)
            if not form["id"]:
                self._refuse_too_much(account, correction)
                return self._ask(request, me, account, form, correction=correction)
            now = await self._make(operator_of(request, me), account, correction)
        except InvalidRequest as error:
            return self._ask(request, me, account, form, error=str(error))
        return RedirectResponse(f"/admin/customers/{account.id}?done={'money' if now else 'money-before'}#money", 303)

    async def _make(self, by: Operator, account: Account, correction: Correction) -> bool:
        """Write down what is wanted, once; then make the entry, once. Answers whether it was made now.

        A crash between the two leaves a line in the audit log without its entry; the form sent again makes it.
        """
        transfer = correction.transfer(f"operator:{by.name}")
        facts = {"entry": transfer.id, "kind": correction.kind, "amount_usd": decimal_usd(correction.amount_nanos)}
        action = "account.debit" if correction.kind == "debit" else "account.credit"
        target = customer(account.id)
        await self._store.write([record_once(by.name, by.address, action, target, facts, correction.reason)])
        try:
            now = await post_by_hand(self._ledger, transfer)
        except InvalidRequest as error:
            refused = {**facts, "refused": str(error)}
            await self._store.write([record(by.name, by.address, "account.entry_refused", target, None, refused)])
            raise
        if correction.kind == "deposit":
            await follow_top_ups(self._store, account, self._plans)
            self._forget_keys()
        return now

    def _refuse_too_much(self, account: Account, correction: Correction) -> None:
        """Say before the preview what the ledger would say after it."""
        if -correction.change_nanos > account.free_nanos:
            raise InvalidRequest(f"only ${decimal_usd(account.free_nanos)} of the balance is free: not held for a call")

    def _ask(
        self,
        request: Request,
        me: Session,
        account: Account,
        form: dict[str, str],
        *,
        correction: Correction | None = None,
        error: str = "",
    ) -> Response:
        return self._pages.render(
            request,
            "admin/money.html",
            status=422 if error else 200,
            me=me,
            account=account,
            form=form,
            kinds={kind: WORDS[kind] for kind in KINDS},
            correction=correction,
            error=error,
        )


def _read(form: dict[str, str], account: Account) -> Correction:
    """Read what is wanted; a form without an id gets one. Raises InvalidRequest."""
    try:
        amount_nanos = parse_usd(form["amount"])
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    if amount_nanos == 0:
        raise InvalidRequest("an amount is more than nothing")
    chosen = read_id(form["id"]) if form["id"] else uuid.uuid4().hex
    return Correction(chosen, account.id, read_kind(form["kind"]), amount_nanos, read_reason(form))
