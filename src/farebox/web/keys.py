"""API keys: made, renamed and revoked by their owner, shown once."""

from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.keys import Key, create_key, find_key, list_keys, rename_key, revoke_key
from farebox.accounts.sessions import Session
from farebox.books.figures import Figures, Use
from farebox.clock import DAY_US
from farebox.errors import InvalidRequest, NotFound, PermissionDenied
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_LIFETIMES: Final = {"": None, "7": 7, "30": 30, "90": 90, "365": 365}
_MOST: Final = 100


class Keys:
    """The keys of whoever is signed in. `forget_keys` is called when one ceases to work."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._people = kit.people
        self._store = kit.store
        self._clock = kit.clock
        self._prefix = kit.offer.key_prefix
        self._forget_keys = kit.backstage.forget_keys

    def routes(self) -> list[Route]:
        page = self._visitors.signed_in
        return [
            Route("/dashboard/keys", page(self.keys), methods=["GET", "POST"]),
            Route("/dashboard/keys/{key_id}", page(self.rename), methods=["GET", "POST"]),
            Route("/dashboard/keys/{key_id}/revoke", page(self.revoke), methods=["GET", "POST"]),
        ]

    async def keys(self, request: Request, me: Session) -> Response:
        error, made, name, lifetime, status = "", None, "", "", 200
        if request.method == "POST":
            form = await read_form(request)
            name, lifetime = form.get("name", ""), form.get("lifetime", "")
            try:
                made = await self._make(me, name, lifetime)
            except InvalidRequest as refused:
                error, status = str(refused), 422
            except PermissionDenied as refused:
                error, status = str(refused), 403
        keys = await list_keys(self._store, me.account_id)
        return self._pages.render(
            request,
            "keys.html",
            status=status,
            me=me,
            keys=keys[::-1],
            used=await self._used(me),
            now=self._clock(),
            made=made,
            name=name if error else "",
            lifetime=lifetime if error else "",
            error=error,
        )

    async def rename(self, request: Request, me: Session) -> Response:
        key = await self._own(request, me)
        if key is None:
            return self._no_such_key(request, me)
        error, name = "", key.name
        if request.method == "POST":
            name = (await read_form(request)).get("name", "")
            try:
                await rename_key(self._store, key.id, name)
            except InvalidRequest as refused:
                error = str(refused)
            else:
                return RedirectResponse("/dashboard/keys", 303)
        used = (await self._used(me)).get(key.id)
        return self._pages.render(
            request,
            "key.html",
            status=422 if error else 200,
            me=me,
            key=key,
            name=name,
            error=error,
            used=used,
            now=self._clock(),
        )

    async def revoke(self, request: Request, me: Session) -> Response:
        key = await self._own(request, me)
        if key is None:
            return self._no_such_key(request, me)
        if request.method == "POST":
            await revoke_key(self._store, key.id, self._clock())
            self._forget_keys()
            return RedirectResponse("/dashboard/keys", 303)
        return self._pages.render(request, "revoke.html", me=me, key=key)

    async def _make(self, me: Session, name: str, lifetime: str) -> str:
        """Make a key; answers the text that is never shown again. Raises InvalidRequest and PermissionDenied."""
        if me.status != "active":
            raise PermissionDenied(f"this account is {me.status}: it can be looked at, but gets no new keys")
        if lifetime not in _LIFETIMES:
            raise InvalidRequest(f"a key works for 7, 30, 90 or 365 days or until it is revoked, got {lifetime[:20]!r}")
        now_us = self._clock()
        active = [key for key in await list_keys(self._store, me.account_id) if key.status(now_us) == "active"]
        if len(active) >= _MOST:
            raise InvalidRequest(f"an account has at most {_MOST} active keys; revoke one first")
        days = _LIFETIMES[lifetime]
        ends_at_us = now_us + days * DAY_US if days else None
        key, text = await create_key(self._store, me.account_id, name, self._prefix, now_us, ends_at_us)
        await self._people.tell_of_key(me.email, key.name, key.hint, now_us)
        return text

    async def _used(self, me: Session) -> dict[int, Use]:
        figures = await Figures.read(self._store, me.account_id, self._clock())
        return await figures.of_keys()

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
