"""The second step of a sign-in, after the password was right: a code, a recovery code or a passkey.

There is no session before it.
"""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.challenges import HalfDone
from farebox.errors import InvalidRequest, RateLimited, Refusal
from farebox.web.kit import Kit
from farebox.web.visitors import network_of, read_form


class SecondStep:
    """Ends sign-ins that need more than a password."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._entrance = kit.entrance
        self._people = kit.people
        self._factor = kit.factor
        self._passkeys = kit.passkeys
        self._clock = kit.clock

    def routes(self) -> list[Route]:
        return [Route("/login/second", self.second, methods=["GET", "POST"])]

    async def second(self, request: Request) -> Response:
        half = await self._entrance.half_done(request)
        if half is None:
            return RedirectResponse("/login", 303)
        if request.method == "GET":
            return await self._ask(request, half)
        form = await read_form(request)
        try:
            await self._check(request, half, form)
        except (InvalidRequest, RateLimited) as error:
            return await self._ask(request, half, error)
        return await self._entrance.finish(request, half) or RedirectResponse("/login", 303)

    async def _check(self, request: Request, half: HalfDone, form: dict[str, str]) -> None:
        if not form.get("answer"):
            email = await self._people.email_of(half.account_id)
            await self._factor.check(half.account_id, email, form.get("code", ""), network_of(request), self._clock())
            return
        browser = self._visitors.browser_of(request)
        if await self._passkeys.check(form["answer"], browser, self._clock()) != half.account_id:
            raise InvalidRequest("this is a passkey of another account")

    async def _ask(self, request: Request, half: HalfDone, error: Refusal | None = None) -> Response:
        """Show the ways there are. The challenge for a passkey is new each time."""
        factors = await self._factor.of(half.account_id)
        browser = self._visitors.browser_of(request)
        options = await self._passkeys.ask(browser, self._clock(), half.account_id) if factors.passkeys else ""
        response = self._pages.render(
            request,
            "second_step.html",
            status=200 if error is None else 429 if isinstance(error, RateLimited) else 422,
            factors=factors,
            options=options,
            error=str(error or ""),
        )
        self._visitors.know(response, browser)
        return response
