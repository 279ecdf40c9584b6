"""Add funds: choose amount and coin, see what to pay and where, watch it arrive."""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.accounts import find_account
from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest, NotFound, RailTrouble
from farebox.money import NANOS_PER_USD, decimal_usd, parse_usd
from farebox.payments.btcpay import NAME as BTCPAY
from farebox.payments.intake import QUOTE_GRACE_US
from farebox.payments.quoting import worth
from farebox.payments.rails import Asset, Rail
from farebox.payments.records import OVER_PERCENT, Payment, Topup
from farebox.payments.simulated import simulated_payment
from farebox.web.kit import Kit
from farebox.web.qr import draw_qr
from farebox.web.visitors import read_form

_PRESETS: Final = tuple(dollars * NANOS_PER_USD for dollars in (10, 25, 50, 100))


class TopupRoom:
    """The top-ups of whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._visitors = kit.visitors
        self._topups = kit.till.topups
        self._deposits = kit.till.deposits
        self._test_wallets = kit.till.test_wallets

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/topup", page(self.choose), methods=["GET", "POST"]),
            Route("/dashboard/topup/{topup_id}", page(self.pay)),
            Route("/dashboard/topup/{topup_id}/simulate", page(self.simulate), methods=["POST"]),
            Route("/dashboard/topup/{topup_id}/pay", page(self.pay_from_test_wallet), methods=["POST"]),
        ]

    async def choose(self, request: Request, me: Session) -> Response:
        error, amount, coin = "", request.query_params.get("amount", "25")[:20], ""
        if request.method == "POST":
            form = await read_form(request)
            amount, coin = form.get("amount", "")[:20], form.get("coin", "")
            try:
                topup_id = await self._open(me, coin, amount)
            except InvalidRequest as refused:
                error = str(refused)
            else:
                return RedirectResponse(f"/dashboard/topup/{topup_id}", 303)
        offers = await self._topups.offers(self._clock())
        return self._pages.render(
            request,
            "topup.html",
            status=422 if error else 200,
            me=me,
            account=await find_account(self._store, str(me.account_id)),
            offers=offers,
            chosen=next((one.id for one in offers if not one.why_not and coin in {"", one.id}), ""),
            topups=await self._topups.tell_all(await self._topups.all_of(me.account_id), self._clock()),
            unasked=[(one, self._topups.asset_paid(one)) for one in await self._topups.unasked(me.account_id)],
            presets=_PRESETS,
            most=self._topups.most_nanos,
            amount=amount,
            error=error,
        )

    async def pay(self, request: Request, me: Session) -> Response:
        topup = await self._own(request, me)
        if topup is None:
            return self._no_such_topup(request, me)
        told = await self._topups.tell(topup, self._clock())
        asset, due = told.asset, told.missing_units or int(topup.asked_units)
        rail = self._topups.rails.get(topup.rail)
        return self._pages.render(
            request,
            "pay.html",
            me=me,
            told=told,
            topup=topup,
            coin=asset,
            now=self._clock(),
            rail=rail,
            simulated=rail is not None and rail.simulated,
            test_wallet=topup.rail in self._test_wallets,
            coin_can_be_sent=topup.rail != BTCPAY,
            gone=any(one.state == "gone" for one in told.payments),
            unpriced=any(_is_unpriced(one) for one in told.payments),
            at_market=any(one.counts and one.seen_at_us > topup.ends_at_us + QUOTE_GRACE_US for one in told.payments),
            over_percent=OVER_PERCENT,
            due=due,
            due_nanos=min(topup.amount_nanos, worth(due, topup.rate_nanos, asset.decimals)),
            again=decimal_usd(topup.amount_nanos),
            **self._codes(rail, asset, topup, due),
        )

    def _codes(self, rail: Rail | None, asset: Asset, topup: Topup, due: int) -> dict[str, Any]:
        """Draw what a wallet reads. Of tokens the bare address first: many wallets misread the other (EIP-681)."""
        uri = rail.uri(asset, topup.address, due) if rail is not None else topup.address
        if "/transfer?" in uri:
            return {"qr": draw_qr(topup.address), "qr_with_amount": draw_qr(uri)}
        return {"qr": draw_qr(uri), "qr_with_amount": None}

    async def simulate(self, request: Request, me: Session) -> Response:
        """Pay a top-up of the simulated rail: all, half or double of it."""
        topup = await self._own(request, me)
        rail = self._topups.rails.get(topup.rail) if topup is not None else None
        if topup is None or rail is None or not rail.simulated:
            return self._no_such_topup(request, me)
        asked = int(topup.asked_units)
        paid = {"all": asked, "half": asked // 2, "double": asked * 2}.get((await read_form(request)).get("pay", ""), 0)
        if topup.state == "waiting" and paid:
            await self._deposits.apply([simulated_payment(topup, paid, self._clock())], self._clock())
        return RedirectResponse(f"/dashboard/topup/{topup.id}", 303)

    async def pay_from_test_wallet(self, request: Request, me: Session) -> Response:
        """Pay a top-up for real, on a chain where coins are worth nothing: all, half or double of it."""
        topup = await self._own(request, me)
        wallet = self._test_wallets.get(topup.rail) if topup is not None else None
        if topup is None or wallet is None:
            return self._no_such_topup(request, me)
        asked = int(topup.asked_units)
        units = {"all": asked, "half": asked // 2, "double": asked * 2}.get(
            (await read_form(request)).get("pay", ""), 0
        )
        if units:
            try:
                await wallet.pay(self._topups.asset_of(topup), topup.address, units)
            except RailTrouble as trouble:
                words = f"The test wallet could not pay: {trouble}."
                return self._pages.render(
                    request,
                    "missing.html",
                    status=502,
                    me=me,
                    title="Not paid",
                    words=words,
                    back=f"/dashboard/topup/{topup.id}",
                )
        return RedirectResponse(f"/dashboard/topup/{topup.id}", 303)

    async def _open(self, me: Session, coin: str, amount: str) -> str:
        if me.status != "active":
            raise InvalidRequest(f"this account is {me.status}: it takes no money")
        try:
            nanos = parse_usd(amount)
        except ValueError as error:
            raise InvalidRequest("an amount is in dollars, such as 25 or 12.50") from error
        return await self._topups.open(me.account_id, coin, nanos, self._clock())

    async def _own(self, request: Request, me: Session) -> Topup | None:
        try:
            return await self._topups.find(me.account_id, request.path_params["topup_id"])
        except NotFound:
            return None

    def _no_such_topup(self, request: Request, me: Session) -> Response:
        words = "This account has no such top-up."
        return self._pages.render(
            request, "missing.html", status=404, me=me, title="No such top-up", words=words, back="/dashboard/topup"
        )


def _is_unpriced(payment: Payment) -> bool:
    """Whether a payment is confirmed, and only waits until somebody can say what it is worth."""
    deep = bool(payment.final) or 0 < payment.needed <= payment.confirmations
    return payment.state == "confirming" and deep
