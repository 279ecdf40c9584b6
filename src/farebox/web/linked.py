"""Sign-in with other providers: the way there and back, and which of them open an account."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.identities import Away
from farebox.accounts.providers import Persona, Provider, ProviderFailed
from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest
from farebox.web.kit import Kit
from farebox.web.visitors import inside

_LINKED: Final = "/dashboard/settings/linked"
_OURS: Final = frozenset({None, "same-origin", "none"})
_TOKEN_CHARS: Final = 100
_CODE_CHARS: Final = 4000


class LinkedRoom:
    """Everything about providers. Without one in the configuration there is a page that says so."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._entrance = kit.entrance
        self._identities = kit.identities
        self._providers = kit.providers
        self._sign_up = kit.offer.sign_up
        self._clock = kit.clock

    def routes(self) -> list[Route]:
        page, sure = self._visitors.signed_in, self._visitors.sure
        shown = Route(_LINKED, page(self.linked))
        if not self._providers:
            return [shown]
        return [
            shown,
            Route("/login/with/{provider}", self.leave),
            Route("/login/from/{provider}", self.come_back),
            Route(f"{_LINKED}/{{provider}}", self.link),
            Route(f"{_LINKED}/{{provider}}/unlink", sure(self.unlink), methods=["POST"]),
        ]

    async def leave(self, request: Request) -> Response:
        """Send somebody to a provider, to sign in with it or to open an account."""
        query = request.query_params
        away = Away(
            provider=request.path_params["provider"],
            verifier="",
            nonce="",
            wanted=inside(query.get("next", "")),
            invitation=query.get("invitation", "")[:_TOKEN_CHARS],
        )
        try:
            return await self._send(request, away)
        except ProviderFailed as error:
            return self._refuse(request, str(error), 503)

    async def link(self, request: Request) -> Response:
        """Send somebody who is signed in to a provider, to link it. Only a link on a page of this site leads here.

        Who must prove first who they are comes back to that page: a form may not lead away from this site, also not
        by way of a redirect (Content-Security-Policy, form-action).
        """
        me = await self._visitors.who(request)
        if me is None:
            return RedirectResponse(f"/login?next={_LINKED}", 303)
        if me.viewing is not None:
            raise HTTPException(403)
        if not me.is_sure(self._clock()):
            return RedirectResponse(f"/confirm?next={_LINKED}", 303)
        if request.headers.get("sec-fetch-site") not in _OURS:
            return RedirectResponse(_LINKED, 303)
        away = Away(provider=request.path_params["provider"], verifier="", nonce="", linking=me.account_id)
        try:
            return await self._send(request, away)
        except ProviderFailed as error:
            return await self._show(request, me, str(error), 503)

    async def come_back(self, request: Request) -> Response:
        """Take back who was sent to a provider. What they bring counts once, and in their own browser alone."""
        provider = self._provider(request)
        query = request.query_params
        browser = self._visitors.browser_of(request)
        away = await self._identities.come_back(query.get("state", "")[:_TOKEN_CHARS], browser, self._clock())
        if away is None or away.provider != provider.name:
            return self._refuse(request, "that took too long, or was begun in another browser; try again")
        me = await self._visitors.who(request)
        if away.linking is not None and (me is None or me.viewing or me.account_id != away.linking):
            return self._refuse(request, "you are not signed in any more; sign in and link it again")
        code = query.get("code", "")
        try:
            if "error" in query or not 0 < len(code) <= _CODE_CHARS:
                raise InvalidRequest(f"{provider.shown} did not let you through; try again")
            persona = await provider.arrive(code, away.verifier, away.nonce, self._clock())
            if away.linking is not None and me is not None:
                await self._identities.link(me.account_id, me.email, provider, persona, self._clock())
                return RedirectResponse(_LINKED, 303)
            return await self._let_in(request, provider, persona, away)
        except (ProviderFailed, InvalidRequest) as error:
            status = 503 if isinstance(error, ProviderFailed) else 422
            if away.linking is not None and me is not None:
                return await self._show(request, me, str(error), status)
            return self._refuse(request, str(error), status)

    async def linked(self, request: Request, me: Session) -> Response:
        return await self._show(request, me)

    async def unlink(self, request: Request, me: Session) -> Response:
        await self._identities.unlink(me.account_id, self._provider(request).name)
        return RedirectResponse(_LINKED, 303)

    async def _send(self, request: Request, away: Away) -> Response:
        """Send somebody away, and remember whom. Raises ProviderFailed."""
        provider, now_us = self._provider(request), self._clock()
        departure = await provider.depart(now_us)
        browser = self._visitors.browser_of(request)
        kept = Away(
            provider=provider.name,
            verifier=departure.verifier,
            nonce=departure.nonce,
            wanted=away.wanted,
            invitation=away.invitation,
            linking=away.linking,
        )
        await self._identities.leave(departure, kept, browser, now_us)
        response = RedirectResponse(departure.url, 303)
        self._visitors.know(response, browser)
        return response

    async def _let_in(self, request: Request, provider: Provider, persona: Persona, away: Away) -> Response:
        """Sign in to the account that is linked, or open one. A second factor is asked for as after a password."""
        found = await self._identities.account_of(provider, persona)
        if found is None:
            if self._sign_up == "closed" or (self._sign_up == "invitation" and not away.invitation):
                raise InvalidRequest(
                    f"no account here is linked to that {provider.shown} account; sign in and link it under settings"
                )
            account_id = await self._identities.sign_up(provider, persona, away.invitation, self._clock())
            return await self._entrance.admit(request, account_id, away.wanted)
        account_id, status = found
        if status == "closed":
            raise InvalidRequest("this account has been closed")
        return await self._entrance.let_in(request, account_id, away.wanted)

    def _provider(self, request: Request) -> Provider:
        provider = self._providers.get(request.path_params["provider"])
        if provider is None:
            raise HTTPException(404)
        return provider

    async def _show(self, request: Request, me: Session, error: str = "", status: int = 200) -> Response:
        return self._pages.render(
            request,
            "linked.html",
            status=status,
            me=me,
            providers=list(self._providers.values()),
            identities=await self._identities.of(me.account_id),
            error=error,
        )

    def _refuse(self, request: Request, words: str, status: int = 422) -> Response:
        return self._pages.render(request, "not_linked.html", status=status, words=words)
