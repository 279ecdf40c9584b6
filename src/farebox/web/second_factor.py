"""Settings of the second factor: set an app up, see its recovery codes once, make new ones, turn it off."""

import re
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.recovery import COUNT
from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest, RateLimited
from farebox.web.kit import Kit
from farebox.web.qr import draw_qr
from farebox.web.visitors import network_of, read_form

_CODE: Final = re.compile(r"\b[a-z2-7]{4}(?:-[a-z2-7]{4}){3}\b", re.ASCII)


class SecondFactorRoom:
    """The second factor of whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._people = kit.people
        self._factor = kit.factor
        self._clock = kit.clock
        self._public_url = kit.offer.public_url

    def routes(self) -> list[Route]:
        page, sure = self._visitors.signed_in, self._visitors.sure
        start = "/dashboard/settings/second-factor"
        return [
            Route(start, page(self.show)),
            Route(f"{start}/app", sure(self.set_up), methods=["GET", "POST"]),
            Route(f"{start}/codes", sure(self.renew_codes), methods=["POST"]),
            Route(f"{start}/file", page(self.file), methods=["POST"]),
            Route(f"{start}/off", page(self.turn_off), methods=["POST"]),
        ]

    async def show(self, request: Request, me: Session) -> Response:
        return await self._show(request, me)

    async def set_up(self, request: Request, me: Session) -> Response:
        """Show a secret for an app to take; with a right code of it, turn it on and show the recovery codes."""
        if (await self._factor.of(me.account_id)).app_since_us is not None:
            return await self._show(request, me)
        now_us = self._clock()
        if request.method == "GET":
            return self._set_up(request, me, "", "")
        form = await read_form(request)
        try:
            codes = await self._factor.turn_on(me, form.get("offer", ""), form.get("code", ""), now_us)
        except InvalidRequest as error:
            return self._set_up(request, me, form.get("offer", ""), str(error))
        response = self._codes(request, me, codes, first=True)
        await self._visitors.renew(response, me, factor_at_us=now_us)
        return response

    async def renew_codes(self, request: Request, me: Session) -> Response:
        try:
            codes = await self._factor.renew_codes(me, self._clock())
        except InvalidRequest as error:
            return await self._show(request, me, failed="codes", error=str(error))
        return self._codes(request, me, codes, first=False)

    async def file(self, request: Request, me: Session) -> Response:
        """Give codes back as a file to keep: those in the form of the page that shows them. They are kept nowhere."""
        codes = _CODE.findall((await read_form(request)).get("codes", ""))[:COUNT]
        text = f"Recovery codes of {me.email} at {self._public_url}\nEach works once.\n\n" + "\n".join(codes) + "\n"
        headers = {"content-disposition": 'attachment; filename="recovery-codes.txt"'}
        return Response(text, headers=headers, media_type="text/plain")

    async def turn_off(self, request: Request, me: Session) -> Response:
        """Turn it off, knowing the password and a code."""
        form = await read_form(request)
        network, now_us = network_of(request), self._clock()
        try:
            await self._people.confirm_alone(me.email, form.get("password", ""), network, now_us)
            await self._factor.turn_off(me, form.get("code", ""), network, now_us)
        except (InvalidRequest, RateLimited) as error:
            return await self._show(request, me, failed="off", error=str(error))
        return await self._show(request, me, told="off")

    def _set_up(self, request: Request, me: Session, sealed: str, error: str) -> Response:
        try:
            offer = self._factor.offer(me, self._clock(), sealed)
        except InvalidRequest as refused:
            offer, error = self._factor.offer(me, self._clock()), str(refused)
        return self._pages.render(
            request,
            "factor_app.html",
            status=422 if error else 200,
            me=me,
            offer=offer,
            secret=" ".join(offer.secret[at : at + 4] for at in range(0, len(offer.secret), 4)),
            qr=draw_qr(offer.uri),
            error=error,
        )

    def _codes(self, request: Request, me: Session, codes: list[str], *, first: bool) -> Response:
        """Show recovery codes, the only time they can be seen."""
        return self._pages.render(request, "factor_codes.html", me=me, codes=codes, first=first)

    async def _show(
        self, request: Request, me: Session, *, told: str = "", failed: str = "", error: str = ""
    ) -> Response:
        factors = await self._factor.of(me.account_id)
        return self._pages.render(
            request,
            "factor.html",
            status=422 if error else 200,
            me=me,
            factors=factors,
            told=told,
            failed=failed,
            error=error,
        )
