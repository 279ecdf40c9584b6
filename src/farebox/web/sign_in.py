"""The pages by which people come in: sign up, confirm the address, sign in and out, choose a new password."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.people import People
from farebox.clock import Clock
from farebox.errors import AuthenticationFailed, InvalidRequest, RateLimited
from farebox.web.pages import Pages
from farebox.web.visitors import Visitors, agent_of, inside, network_of, read_form


class SignIn:
    """Sign-up, sign-in and what belongs to them. Without JavaScript as with it: plain forms."""

    def __init__(self, pages: Pages, visitors: Visitors, people: People, clock: Clock, *, open_to_all: bool) -> None:
        self._pages = pages
        self._visitors = visitors
        self._people = people
        self._clock = clock
        self._open_to_all = open_to_all

    def routes(self) -> list[Route]:
        return [
            Route("/signup", self.sign_up, methods=["GET", "POST"]),
            Route("/verify", self.verify, methods=["GET", "POST"]),
            Route("/login", self.sign_in, methods=["GET", "POST"]),
            Route("/logout", self.sign_out, methods=["POST"]),
            Route("/forgot", self.forgot, methods=["GET", "POST"]),
            Route("/reset", self.reset, methods=["GET", "POST"]),
            Route("/email", self.take_email, methods=["GET", "POST"]),
        ]

    async def sign_up(self, request: Request) -> Response:
        if not self._open_to_all:
            return self._pages.render(request, "signup_closed.html", status=200 if request.method == "GET" else 403)
        if request.method == "GET":
            return self._pages.render(request, "signup.html", email="", error="")
        form = await read_form(request)
        email = form.get("email", "")
        try:
            await self._people.sign_up(email, form.get("password", ""), self._clock())
        except InvalidRequest as error:
            return self._pages.render(request, "signup.html", status=422, email=email, error=str(error))
        return self._pages.render(request, "mail_sent.html", title="Confirm your address", email=email.strip())

    async def verify(self, request: Request) -> Response:
        """Show a button first: programs that open links in mails must not use them up."""
        if request.method == "GET":
            return self._pages.render(request, "verify.html", token=request.query_params.get("token", ""), error="")
        token = (await read_form(request)).get("token", "")
        try:
            email = await self._people.verify(token, self._clock())
        except InvalidRequest as error:
            return self._pages.render(request, "verify.html", status=422, token="", error=str(error))
        return self._pages.render(request, "login.html", email=email, next="", error="", told="verified")

    async def take_email(self, request: Request) -> Response:
        """Move an account to a new address, by the link that was mailed there. A button first, as above."""
        if request.method == "GET":
            return self._pages.render(request, "email.html", token=request.query_params.get("token", ""), error="")
        token = (await read_form(request)).get("token", "")
        try:
            email = await self._people.take_email(token, self._clock())
        except InvalidRequest as error:
            return self._pages.render(request, "email.html", status=422, token="", error=str(error))
        return self._pages.render(request, "login.html", email=email, next="", error="", told="moved")

    async def sign_in(self, request: Request) -> Response:
        if request.method == "GET":
            wanted = inside(request.query_params.get("next", ""))
            return self._pages.render(request, "login.html", email="", next=wanted, error="", told="")
        form = await read_form(request)
        email, wanted = form.get("email", ""), inside(form.get("next", ""))
        try:
            account_id = await self._people.sign_in(email, form.get("password", ""), network_of(request), self._clock())
        except (AuthenticationFailed, RateLimited) as error:
            status = 429 if isinstance(error, RateLimited) else 422
            return self._pages.render(
                request, "login.html", status=status, email=email, next=wanted, error=str(error), told=""
            )
        response = RedirectResponse(wanted or "/dashboard", 303)
        await self._visitors.begin(request, response, account_id)
        browser = self._visitors.know(request, response)
        await self._people.note_browser(account_id, browser, agent_of(request), network_of(request), self._clock())
        return response

    async def sign_out(self, request: Request) -> Response:
        response = RedirectResponse("/", 303)
        await self._visitors.end(request, response)
        return response

    async def forgot(self, request: Request) -> Response:
        if request.method == "GET":
            return self._pages.render(request, "forgot.html")
        email = (await read_form(request)).get("email", "")
        await self._people.send_reset(email, self._clock())
        return self._pages.render(request, "mail_sent.html", title="Choose a new password", email=email.strip())

    async def reset(self, request: Request) -> Response:
        if request.method == "GET":
            return self._pages.render(request, "reset.html", token=request.query_params.get("token", ""), error="")
        form = await read_form(request)
        try:
            await self._people.reset(form.get("token", ""), form.get("password", ""), self._clock())
        except InvalidRequest as error:
            return self._pages.render(request, "reset.html", status=422, token=form.get("token", ""), error=str(error))
        return self._pages.render(request, "login.html", email="", next="", error="", told="reset")
