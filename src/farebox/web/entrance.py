"""The way in: who has proved who they are gets a session, by way of the second factor where there is one."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from farebox.accounts.challenges import Challenges, HalfDone
from farebox.accounts.factors import SecondFactor
from farebox.accounts.people import People
from farebox.clock import Clock
from farebox.web.visitors import Visitors, agent_of, network_of


class Entrance:
    """Every kind of sign-in ends here: by password, by passkey, by another provider."""

    def __init__(
        self, visitors: Visitors, people: People, factor: SecondFactor, challenges: Challenges, clock: Clock
    ) -> None:
        self._visitors = visitors
        self._people = people
        self._factor = factor
        self._challenges = challenges
        self._clock = clock

    async def let_in(self, request: Request, account_id: int, wanted: str) -> Response:
        """Go on with somebody who has given one factor: to the page they want, or first to the second factor."""
        if not (await self._factor.of(account_id)).is_needed:
            return await self.admit(request, account_id, wanted)
        response = RedirectResponse("/login/second", 303)
        half = await self._challenges.begin(HalfDone(account_id, wanted), self._clock())
        self._visitors.keep_half(response, half)
        return response

    async def half_done(self, request: Request) -> HalfDone | None:
        """Give the sign-in that this browser has begun, if it has, and not too long ago."""
        return await self._challenges.look(self._visitors.half_of(request), self._clock())

    async def finish(self, request: Request, half: HalfDone) -> Response | None:
        """Let somebody in who has given the second factor too; None when this sign-in was finished or ended before."""
        if not await self._challenges.take(self._visitors.half_of(request)):
            return None
        response = await self.admit(request, half.account_id, half.wanted, factor_at_us=self._clock())
        self._visitors.forget_half(response)
        return response

    async def admit(
        self, request: Request, account_id: int, wanted: str, *, factor_at_us: int | None = None
    ) -> Response:
        """Begin a session, and tell its owner about it if this browser is new. `factor_at_us`: of a second factor."""
        response = RedirectResponse(wanted or "/dashboard", 303)
        await self._visitors.begin(request, response, account_id, factor_at_us=factor_at_us)
        browser = self._visitors.browser_of(request)
        self._visitors.know(response, browser)
        await self._people.note_browser(account_id, browser, agent_of(request), network_of(request), self._clock())
        return response
