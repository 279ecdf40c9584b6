"""The pages by which people come in: sign up, confirm the address, sign in and out, choose a new password."""

import asyncio
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.invitations import Invitation, look_at_invitation
from farebox.errors import AuthenticationFailed, InvalidRequest, RateLimited
from farebox.web.kit import Kit
from farebox.web.visitors import inside, network_of, read_form

LETTER_S: Final = 0.1
"""Longer than it takes to write a letter into the outbox."""


class SignIn:
    """Sign-up, sign-in and what belongs to them. Without JavaScript as with it: plain forms."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._people = kit.people
        self._entrance = kit.entrance
        self._passkeys = kit.passkeys
        self._clock = kit.clock
        self._store = kit.store
        self._offer = kit.offer
        self._forget_keys = kit.backstage.forget_keys
        self._providers = list(kit.providers.values())

    def routes(self) -> list[Route]:
        return [
            Route("/signup", self.sign_up, methods=["GET", "POST"]),
            Route("/verify", self.verify, methods=["GET", "POST"]),
            Route("/login", self.sign_in, methods=["GET", "POST"]),
            Route("/login/passkey", self.passkey, methods=["POST"]),
            Route("/logout", self.sign_out, methods=["POST"]),
            Route("/forgot", self.forgot, methods=["GET", "POST"]),
            Route("/reset", self.reset, methods=["GET", "POST"]),
            Route("/email", self.take_email, methods=["GET", "POST"]),
        ]

    async def sign_up(self, request: Request) -> Response:
        if self._offer.sign_up == "closed":
            return self._pages.render(request, "signup_closed.html", status=200 if request.method == "GET" else 403)
        form = await read_form(request) if request.method == "POST" else dict(request.query_params)
        token = form.get("invitation", "")
        invitation, refused = await self._invitation(token)
        if invitation is None and (token or not self._offer.open_to_all):
            status = 200 if request.method == "GET" else 403
            return self._pages.render(request, "signup_invited.html", status=status, error=refused)
        bound = invitation.email if invitation is not None else ""
        shown: dict[str, Any] = {"invitation": token, "bound": bound, "providers": self._providers}
        if request.method == "GET":
            return self._pages.render(request, "signup.html", email=bound, error="", **shown)
        email = bound or form.get("email", "")
        try:
            password, network = form.get("password", ""), network_of(request)
            await self._people.sign_up(email, password, network, self._clock(), token)
        except (InvalidRequest, RateLimited) as error:
            status = 429 if isinstance(error, RateLimited) else 422
            return self._pages.render(request, "signup.html", status=status, email=email, error=str(error), **shown)
        return self._pages.render(request, "mail_sent.html", title="Confirm your address", email=email.strip())

    async def _invitation(self, token: str) -> tuple[Invitation | None, str]:
        """Find the invitation of a link; else say what is wrong with it."""
        try:
            return (await look_at_invitation(self._store, token, self._clock()), "") if token else (None, "")
        except InvalidRequest as error:
            return None, str(error)

    async def verify(self, request: Request) -> Response:
        """Show a button first: programs that open links in mails must not use them up."""
        if request.method == "GET":
            return self._pages.render(request, "verify.html", token=request.query_params.get("token", ""), error="")
        token = (await read_form(request)).get("token", "")
        try:
            email = await self._people.verify(token, self._clock())
        except InvalidRequest as error:
            return self._pages.render(request, "verify.html", status=422, token="", error=str(error))
        return await self._login(request, email=email, told="verified")

    async def take_email(self, request: Request) -> Response:
        """Move an account to a new address, by the link that was mailed there. A button first, as above."""
        if request.method == "GET":
            return self._pages.render(request, "email.html", token=request.query_params.get("token", ""), error="")
        token = (await read_form(request)).get("token", "")
        try:
            email = await self._people.take_email(token, self._clock())
        except InvalidRequest as error:
            return self._pages.render(request, "email.html", status=422, token="", error=str(error))
        return await self._login(request, email=email, told="moved")

    async def sign_in(self, request: Request) -> Response:
        if request.method == "GET":
            return await self._login(request, wanted=inside(request.query_params.get("next", "")))
        form = await read_form(request)
        email, wanted = form.get("email", ""), inside(form.get("next", ""))
        try:
            account_id = await self._people.sign_in(email, form.get("password", ""), network_of(request), self._clock())
        except (AuthenticationFailed, RateLimited) as error:
            status = 429 if isinstance(error, RateLimited) else 422
            return await self._login(request, status, email=email, wanted=wanted, error=str(error))
        return await self._entrance.let_in(request, account_id, wanted)

    async def passkey(self, request: Request) -> Response:
        """Sign in by a passkey alone: it tells whose it is, and verifies its person, which is two factors."""
        form = await read_form(request)
        wanted, browser = inside(form.get("next", "")), self._visitors.browser_of(request)
        try:
            account_id = await self._passkeys.check(form.get("answer", ""), browser, self._clock())
        except InvalidRequest as error:
            return await self._login(request, 422, wanted=wanted, error=str(error))
        return await self._entrance.admit(request, account_id, wanted, factor_at_us=self._clock())

    async def sign_out(self, request: Request) -> Response:
        response = RedirectResponse("/", 303)
        await self._visitors.end(request, response)
        return response

    async def forgot(self, request: Request) -> Response:
        if request.method == "GET":
            return self._pages.render(request, "forgot.html")
        email = (await read_form(request)).get("email", "")
        # a letter takes its time: an address that has none is answered no sooner
        await asyncio.gather(self._people.send_reset(email, self._clock()), asyncio.sleep(LETTER_S))
        return self._pages.render(request, "mail_sent.html", title="Choose a new password", email=email.strip())

    async def reset(self, request: Request) -> Response:
        if request.method == "GET":
            return self._pages.render(request, "reset.html", token=request.query_params.get("token", ""), error="")
        form = await read_form(request)
        try:
            await self._people.reset(form.get("token", ""), form.get("password", ""), self._clock())
        except InvalidRequest as error:
            return self._pages.render(request, "reset.html", status=422, token=form.get("token", ""), error=str(error))
        self._forget_keys()
        return await self._login(request, told="reset")

    async def _login(
        self, request: Request, status: int = 200, *, email: str = "", wanted: str = "", error: str = "", told: str = ""
    ) -> Response:
        """Show the sign-in page, with what a browser needs to offer its passkeys."""
        browser = self._visitors.browser_of(request)
        options = await self._passkeys.ask(browser, self._clock()) if self._passkeys.host else ""
        response = self._pages.render(
            request,
            "login.html",
            status=status,
            email=email,
            next=wanted,
            error=error,
            told=told,
            options=options,
            providers=self._providers,
        )
        self._visitors.know(response, browser)
        return response
