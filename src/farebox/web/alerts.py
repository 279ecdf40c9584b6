"""Alerts: at which balance and which spend of a day people are told by mail."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest
from farebox.events.alerts import USED_UP_NANOS, Kind, alerts_of, set_alerts
from farebox.money import decimal_usd, parse_usd
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_AMOUNT_CHARS: Final = 24


class AlertRoom:
    """The alerts of whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store

    def routes(self) -> list[Route]:
        return [Route("/dashboard/settings/alerts", self._visitors.signed_in(self.alerts), methods=["GET", "POST"])]

    async def alerts(self, request: Request, me: Session) -> Response:
        error, told, typed = "", "", {}
        if request.method == "POST":
            form = await read_form(request)
            typed = {name: form.get(name, "").strip()[:_AMOUNT_CHARS] for name in ("balance", "daily_spend")}
            try:
                await set_alerts(self._store, me.account_id, _wanted(typed, used_up=bool(form.get("used_up"))))
            except InvalidRequest as refused:
                error = str(refused)
            else:
                told, typed = "saved", {}
        alerts = await alerts_of(self._store, me.account_id)
        shown = {kind: decimal_usd(alert.at_nanos) for kind, alert in alerts.items()} | typed
        return self._pages.render(
            request,
            "alerts.html",
            status=422 if error else 200,
            me=me,
            alerts=alerts,
            shown=shown,
            told=told,
            error=error,
        )


def _wanted(typed: dict[str, str], *, used_up: bool) -> dict[Kind, int | None]:
    """Read the form. Raises InvalidRequest."""
    try:
        return {
            "balance": parse_usd(typed["balance"]) if typed["balance"] else None,
            "daily_spend": parse_usd(typed["daily_spend"]) if typed["daily_spend"] else None,
            "used_up": USED_UP_NANOS if used_up else None,
        }
    except ValueError as error:
        raise InvalidRequest(f"an amount is in dollars, such as 5 or 12.50: {error}") from error
