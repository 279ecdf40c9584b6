"""Crediting and debiting by hand: a form, a preview with exact amounts, and the entry, made once however often sent."""

import uuid
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.accounts import Account
from farebox.accounts.sessions import Session
from farebox.books.corrections import KINDS, Correction, read_id, read_kind
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
        self._clock = kit.clock
        self._by_hand = kit.by_hand
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
            now = await self._by_hand.move(operator_of(request, me), account, correction, self._clock())
        except InvalidRequest as error:
            return self._ask(request, me, account, form, error=str(error))
        self._forget_keys()
        return RedirectResponse(f"/admin/customers/{account.id}?done={'money' if now else 'money-before'}", 303)

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
