"""API keys: made, given rules, rolled, rested and revoked by their owner; shown once."""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.keys import (
    Key,
    change_key,
    check_room,
    create_key,
    disable_key,
    enable_key,
    find_key,
    list_keys,
    revoke_key,
    roll_key,
)
from farebox.accounts.sessions import Session
from farebox.books.figures import Figures
from farebox.clock import US_PER_S
from farebox.errors import InvalidRequest, NotFound, PermissionDenied
from farebox.events.news import tell_of_key_made, tell_of_key_revoked
from farebox.web.key_forms import BEGINS, LIFETIMES, OWN_FIELDS, RESETS, KeyForm
from farebox.web.kit import Kit
from farebox.web.swap import samples
from farebox.web.usage import Asked, look_at_usage
from farebox.web.visitors import read_form

GRACES: Final = {"0": "at once", "1": "in an hour", "24": "in a day", "168": "in a week"}
"""When a key that is rolled stops working, by hours."""
_HOUR_US: Final = 3600 * US_PER_S


class Keys:
    """The keys of whoever is signed in. `forget_keys` is called when what one may do has changed."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._people = kit.people
        self._store = kit.store
        self._clock = kit.clock
        self._offer = kit.offer
        self._forget_keys = kit.backstage.forget_keys

    @property
    def _models(self) -> list[str]:
        return [model.id for model in self._offer.models]

    def routes(self) -> list[Route]:
        page, sure = self._visitors.signed_in, self._visitors.sure
        return [
            Route("/dashboard/keys", sure(self.keys, changes_only=True), methods=["GET", "POST"]),
            Route("/dashboard/keys/{key_id}", page(self.key), methods=["GET", "POST"]),
            Route("/dashboard/keys/{key_id}/disable", page(self.disable), methods=["POST"]),
            Route("/dashboard/keys/{key_id}/enable", page(self.enable), methods=["POST"]),
            Route("/dashboard/keys/{key_id}/roll", sure(self.roll, changes_only=True), methods=["GET", "POST"]),
            Route("/dashboard/keys/{key_id}/revoke", page(self.revoke), methods=["GET", "POST"]),
        ]

    async def keys(self, request: Request, me: Session) -> Response:
        if request.method == "GET":
            return await self._show_keys(request, me, KeyForm())
        now_us = self._clock()
        form = KeyForm.read(await self._read(request), self._models, now_us)
        try:
            if me.status != "active":
                raise PermissionDenied(f"this account is {me.status}: it can be looked at, but gets no new keys")
            if form.errors:
                return await self._show_keys(request, me, form, status=422)
            await check_room(self._store, me.account_id, now_us)
            key, text = await create_key(
                self._store, me.account_id, form.name, self._offer.key_prefix, now_us, form.rules
            )
        except (InvalidRequest, PermissionDenied) as refused:
            return await self._show_keys(
                request, me, form, error=str(refused), status=422 if isinstance(refused, InvalidRequest) else 403
            )
        await self._people.tell_of_key(me.email, key.name, key.hint, now_us)
        await self._store.write([tell_of_key_made(key, now_us)])
        return self._reveal(request, me, key, text)

    async def key(self, request: Request, me: Session) -> Response:
        key = await self._own(request, me)
        if key is None:
            return self._no_such_key(request, me)
        form = KeyForm.of(key)
        if request.method == "POST" and key.revoked_at_us is None:
            now_us = self._clock()
            form = KeyForm.read(await self._read(request), self._models, now_us, key)
            if not form.errors:
                await change_key(self._store, key, form.name, form.rules, now_us)
                self._forget_keys()
                return RedirectResponse(f"/dashboard/keys/{key.id}?saved=1", 303)
        return await self._show_key(request, me, key, form)

    async def disable(self, request: Request, me: Session) -> Response:
        key = await self._own(request, me)
        if key is None:
            return self._no_such_key(request, me)
        await disable_key(self._store, key.id, self._clock())
        self._forget_keys()
        return RedirectResponse(f"/dashboard/keys/{key.id}", 303)

    async def enable(self, request: Request, me: Session) -> Response:
        key = await self._own(request, me)
        if key is None:
            return self._no_such_key(request, me)
        await enable_key(self._store, key.id)
        self._forget_keys()
        return RedirectResponse(f"/dashboard/keys/{key.id}", 303)

    async def roll(self, request: Request, me: Session) -> Response:
        """Show what rolling does, and do it: the page of the new key is the one that shows it, once."""
        key = await self._own(request, me)
        if key is None or key.purpose != "client":
            return self._no_such_key(request, me)
        error, status, grace = "", 200, "24"
        if request.method == "POST":
            grace = (await read_form(request)).get("grace", grace)
            try:
                return await self._roll(request, me, key, grace)
            except InvalidRequest as refused:
                error, status = str(refused), 422
            except PermissionDenied as refused:
                error, status = str(refused), 403
        return self._pages.render(
            request, "roll.html", status=status, me=me, key=key, graces=GRACES, grace=grace, error=error
        )

    async def revoke(self, request: Request, me: Session) -> Response:
        key = await self._own(request, me)
        if key is None:
            return self._no_such_key(request, me)
        if request.method == "POST":
            await revoke_key(self._store, key.id, self._clock())
            await self._store.write([tell_of_key_revoked(key, self._clock())])
            self._forget_keys()
            return RedirectResponse("/dashboard/keys", 303)
        return self._pages.render(request, "revoke.html", me=me, key=key)

    async def _roll(self, request: Request, me: Session, key: Key, grace: str) -> Response:
        """Put a new key in another's place. Raises InvalidRequest and PermissionDenied."""
        if me.status != "active":
            raise PermissionDenied(f"this account is {me.status}: it can be looked at, but gets no new keys")
        if grace not in GRACES:
            raise InvalidRequest(f"the old key stops in {', '.join(GRACES)} hours, got {grace[:20]!r}")
        now_us = self._clock()
        await check_room(self._store, me.account_id, now_us)
        made, text = await roll_key(self._store, key, self._offer.key_prefix, int(grace) * _HOUR_US, now_us)
        self._forget_keys()
        await self._people.tell_of_key(me.email, made.name, made.hint, now_us)
        await self._store.write([tell_of_key_made(made, now_us)])
        return self._reveal(request, me, made, text, replaced=await find_key(self._store, str(key.id)))

    def _reveal(self, request: Request, me: Session, key: Key, text: str, replaced: Key | None = None) -> Response:
        model = key.models[0] if key.models else ""
        return self._pages.render(
            request,
            "key_made.html",
            me=me,
            key=key,
            text=text,
            samples=samples(self._offer, text, model),
            replaced=replaced,
        )

    async def _show_keys(
        self, request: Request, me: Session, form: KeyForm, *, error: str = "", status: int = 200
    ) -> Response:
        now_us = self._clock()
        keys = (await list_keys(self._store, me.account_id))[::-1]
        figures = await Figures.read(self._store, me.account_id, now_us)
        return self._pages.render(
            request,
            "keys.html",
            status=status,
            me=me,
            keys=[key for key in keys if key.purpose == "client" and key.is_open(now_us)],
            gone=[key for key in keys if key.purpose == "client" and not key.is_open(now_us)],
            playground=[key for key in keys if key.purpose == "playground" and key.is_open(now_us)],
            used=await figures.of_keys(),
            now=now_us,
            form=form,
            error=error,
            **self._choices(),
        )

    async def _show_key(self, request: Request, me: Session, key: Key, form: KeyForm) -> Response:
        now_us = self._clock()
        figures = await Figures.read(self._store, me.account_id, now_us)
        asked = Asked.read(request.query_params, key=str(key.id))
        used = (await figures.of_keys()).get(key.id)
        return self._pages.render(
            request,
            "key.html",
            status=422 if form.errors else 200,
            me=me,
            key=key,
            form=form,
            error="",
            saved="saved" in request.query_params and not form.errors,
            used=used,
            hints=key.hints(now_us, used.last_at_us if used else None),
            usage=await look_at_usage(figures, asked, {}, now_us),
            now=now_us,
            **self._choices(key),
        )

    def _choices(self, key: Key | None = None) -> dict[str, Any]:
        """Give what the form offers to choose from."""
        gone = [model for model in key.models if model not in self._models] if key else []
        return {"models": [*self._models, *gone], "lifetimes": LIFETIMES, "begins": BEGINS, "resets": RESETS}

    async def _read(self, request: Request) -> dict[str, str]:
        return await read_form(request, OWN_FIELDS + 2 * len(self._models))

    async def _own(self, request: Request, me: Session) -> Key | None:
        """Find the key that an address names, if it is one of theirs."""
        wanted = request.path_params["key_id"]
        try:
            key = await find_key(self._store, wanted) if wanted.isdecimal() else None
        except NotFound:
            return None
        return key if key is not None and key.account_id == me.account_id else None

    def _no_such_key(self, request: Request, me: Session) -> Response:
        words = "This account has no key of that number."
        return self._pages.render(
            request, "missing.html", status=404, me=me, title="No such key", words=words, back="/dashboard/keys"
        )
