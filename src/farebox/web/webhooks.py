"""Webhooks: which of a customer's servers is told of which events, and what came of it."""

from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest, NotFound
from farebox.events.courier import TRIES
from farebox.events.webhooks import EVENTS, MOST, Webhook
from farebox.web.kit import Kit
from farebox.web.visitors import SignedInPage, read_form

_START: Final = "/dashboard/settings/webhooks"
_SHOWN: Final = 50


class WebhookRoom:
    """The webhooks of whoever is signed in. A secret is shown once, on the page that made it."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._webhooks = kit.webhooks
        self._clock = kit.clock

    def routes(self) -> list[Route]:
        page, sure = self._visitors.signed_in, self._visitors.sure
        one = f"{_START}/{{webhook_id}}"
        changes: tuple[tuple[str, SignedInPage], ...] = (
            ("edit", self.edit),
            ("roll", self.roll),
            ("delete", self.delete),
        )
        steps: tuple[tuple[str, SignedInPage], ...] = (
            ("test", self.test),
            ("disable", self.disable),
            ("enable", self.enable),
            ("deliveries/{delivery_id}/again", self.send_again),
        )
        return [
            Route(_START, page(self.all)),
            Route(f"{_START}/new", sure(self.add), methods=["GET", "POST"]),
            Route(one, page(self.one)),
            *(Route(f"{one}/{path}", sure(act), methods=["POST"]) for path, act in changes),
            *(Route(f"{one}/{path}", page(act), methods=["POST"]) for path, act in steps),
        ]

    async def all(self, request: Request, me: Session) -> Response:
        webhooks = await self._webhooks.all_of(me.account_id)
        return self._pages.render(request, "webhooks.html", me=me, webhooks=webhooks, most=MOST)

    async def add(self, request: Request, me: Session) -> Response:
        error, url, wanted = "", "", tuple(EVENTS)
        if request.method == "POST":
            form = await read_form(request)
            url, wanted = form.get("url", ""), tuple(name for name in EVENTS if form.get(name))
            try:
                webhook, secret = await self._webhooks.add(me.account_id, url, wanted, self._clock())
            except InvalidRequest as refused:
                error = str(refused)
            else:
                return await self._show(request, me, webhook, secret=secret)
        return self._pages.render(
            request,
            "webhook_new.html",
            status=422 if error else 200,
            me=me,
            url=url,
            wanted=wanted,
            events=EVENTS,
            error=error,
        )

    async def one(self, request: Request, me: Session) -> Response:
        webhook = await self._own(request, me)
        return self._no_such(request, me) if webhook is None else await self._show(request, me, webhook)

    async def edit(self, request: Request, me: Session) -> Response:
        webhook = await self._own(request, me)
        if webhook is None:
            return self._no_such(request, me)
        form = await read_form(request)
        try:
            await self._webhooks.change(webhook, form.get("url", ""), [name for name in EVENTS if form.get(name)])
        except InvalidRequest as refused:
            return await self._show(request, me, webhook, error=str(refused))
        return _back_to(webhook)

    async def roll(self, request: Request, me: Session) -> Response:
        webhook = await self._own(request, me)
        if webhook is None:
            return self._no_such(request, me)
        secret = await self._webhooks.roll(webhook, self._clock())
        return await self._show(request, me, webhook, secret=secret, rolled=True)

    async def delete(self, request: Request, me: Session) -> Response:
        webhook = await self._own(request, me)
        if webhook is None:
            return self._no_such(request, me)
        await self._webhooks.delete(webhook)
        return RedirectResponse(_START, 303)

    async def test(self, request: Request, me: Session) -> Response:
        webhook = await self._own(request, me)
        if webhook is None:
            return self._no_such(request, me)
        try:
            await self._webhooks.test(webhook, self._clock())
        except InvalidRequest as refused:
            return await self._show(request, me, webhook, error=str(refused))
        return _back_to(webhook)

    async def disable(self, request: Request, me: Session) -> Response:
        webhook = await self._own(request, me)
        if webhook is None:
            return self._no_such(request, me)
        await self._webhooks.disable(webhook, self._clock())
        return _back_to(webhook)

    async def enable(self, request: Request, me: Session) -> Response:
        webhook = await self._own(request, me)
        if webhook is None:
            return self._no_such(request, me)
        await self._webhooks.enable(webhook)
        return _back_to(webhook)

    async def send_again(self, request: Request, me: Session) -> Response:
        webhook = await self._own(request, me)
        if webhook is None:
            return self._no_such(request, me)
        try:
            await self._webhooks.send_again(webhook, request.path_params["delivery_id"], self._clock())
        except NotFound:
            return self._no_such(request, me)
        except InvalidRequest as refused:
            return await self._show(request, me, webhook, error=str(refused))
        return _back_to(webhook)

    async def _show(
        self,
        request: Request,
        me: Session,
        webhook: Webhook,
        *,
        secret: str = "",
        rolled: bool = False,
        error: str = "",
    ) -> Response:
        return self._pages.render(
            request,
            "webhook.html",
            status=422 if error else 200,
            me=me,
            webhook=webhook,
            deliveries=await self._webhooks.deliveries(webhook, _SHOWN),
            events=EVENTS,
            tries=TRIES,
            secret=secret,
            rolled=rolled,
            error=error,
        )

    async def _own(self, request: Request, me: Session) -> Webhook | None:
        """Find the webhook that an address names, if it is one of theirs."""
        wanted = request.path_params["webhook_id"]
        if not (wanted.isascii() and wanted.isdecimal() and len(wanted) < 19):
            return None
        try:
            return await self._webhooks.find(me.account_id, int(wanted))
        except NotFound:
            return None

    def _no_such(self, request: Request, me: Session) -> Response:
        words = "This account has no such webhook, or nothing like that was sent to it."
        return self._pages.render(
            request, "missing.html", status=404, me=me, title="No such webhook", words=words, back=_START
        )


def _back_to(webhook: Webhook) -> Response:
    return RedirectResponse(f"{_START}/{webhook.id}", 303)
