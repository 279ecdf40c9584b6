"""Models and prices: what is sold, what it leaves, and new versions, which supersede old ones and never change them."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.audit_log import REASON_CHARS, record
from farebox.accounts.sessions import Session
from farebox.billing.pricing import Model, check_names
from farebox.books.prices import Version, last_sold, price_versions, publish_prices
from farebox.errors import InvalidRequest, StoreConflict
from farebox.web.admin.guard import Admins, operator_of
from farebox.web.admin.price_form import Change, changes, loses, read_prices, sample, show_form
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_HERE: Final = "/admin/models"
_VERSIONS: Final = 20
_LOOKED_BACK: Final = 50
_FIELDS_MOST: Final = 200
_EVERY: Final = 2**31


class Superseded(Struct, frozen=True):
    """A version, and what it changed about the one before it; None: there is none before it."""

    version: Version
    changes: list[Change] | None


class Models:
    """Shows prices and publishes new versions of them."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._prices = kit.offer.prices
        self._cost_percent = kit.house.cost_percent

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route(_HERE, page(self.all)),
            Route(f"{_HERE}/history", page(self.history)),
            Route(f"{_HERE}/of/{{model_id}}", page(self.model), methods=["GET", "POST"]),
            Route(f"{_HERE}/of/{{model_id}}/hide", page(self.hide), methods=["POST"]),
        ]

    async def all(self, request: Request, me: Session) -> Response:
        now = self._prices.now
        (newest, *before) = await price_versions(self._store, _EVERY, _LOOKED_BACK)
        gone = {model.id: model for one in reversed(before) for model in one.models if model.id not in now.models}
        return self._pages.render(
            request,
            "admin/models.html",
            me=me,
            rows=[(model, self._sample(model), self._loses(model)) for model in now.prices.models],
            gone=list(gone.values()),
            version=newest,
            percent=self._cost_percent,
        )

    async def history(self, request: Request, me: Session) -> Response:
        text = request.query_params.get("before", "")
        before = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else _EVERY
        found = await price_versions(self._store, before, _VERSIONS + 1)
        versions = [
            Superseded(one, changes(found[place + 1].models, one.models) if place + 1 < len(found) else None)
            for place, one in enumerate(found[:_VERSIONS])
        ]
        older = versions[-1].version.version if len(found) > _VERSIONS else None
        return self._pages.render(request, "admin/prices.html", me=me, versions=versions, older=older)

    async def model(self, request: Request, me: Session) -> Response:
        model_id = request.path_params["model_id"]
        now = self._prices.now
        model = now.models.get(model_id) or await last_sold(self._store, model_id)
        if model is None:
            raise HTTPException(404)
        if request.method == "GET":
            return self._show(request, me, model, {})
        form = await read_form(request, _FIELDS_MOST)
        fresh, errors = read_prices(form, model)
        if errors:
            return self._show(request, me, model, form, errors=errors)
        models = tuple(fresh if one.id == model_id else one for one in now.prices.models)
        if model_id not in now.models:
            models = (*models, fresh)
        if form.get("step") != "publish":
            return self._show(request, me, model, form, fresh=fresh, after=models)
        try:
            await self._publish(request, me, form, models)
        except InvalidRequest as refused:
            return self._show(request, me, model, form, fresh=fresh, after=models, error=str(refused))
        return RedirectResponse(_HERE, 303)

    async def hide(self, request: Request, me: Session) -> Response:
        """Take a model off sale: a version without it. Calls in flight end under the version they came under."""
        model_id = request.path_params["model_id"]
        now = self._prices.now
        model = now.models.get(model_id)
        if model is None:
            raise HTTPException(404)
        form = await read_form(request)
        try:
            if len(now.models) == 1:
                raise InvalidRequest("this is the only model: without it nothing would be sold")
            await self._publish(request, me, form, tuple(one for one in now.prices.models if one.id != model_id))
        except InvalidRequest as refused:
            return self._show(request, me, model, {}, error=str(refused))
        return RedirectResponse(_HERE, 303)

    async def _publish(self, request: Request, me: Session, form: Mapping[str, str], models: tuple[Model, ...]) -> None:
        """Bring a new version into force at once, with its line in the audit log. Raises InvalidRequest."""
        now = self._prices.now
        base = form.get("base", "")
        if base != str(now.version):
            raise InvalidRequest(f"the prices have been changed meanwhile (version {now.version}): look again")
        different = changes(now.prices.models, models)
        if not different:
            raise InvalidRequest("nothing is different from the prices in force")
        reason = form.get("reason", "").strip()[:REASON_CHARS]
        if not reason:
            raise InvalidRequest("say why, for the audit log")
        try:
            check_names(models)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        by = operator_of(request, me)
        before = {f"{one.model}: {one.what}": one.before for one in different}
        after = {f"{one.model}: {one.what}": one.after for one in different}
        line = record(by.name, by.address, "prices.publish", f"prices:{now.version + 1}", before, after, reason)
        try:
            await publish_prices(self._store, now.version, models, self._clock(), [line])
        except StoreConflict as error:
            await self._prices.follow()
            raise InvalidRequest("the prices have been changed in this very moment: look again") from error
        await self._prices.follow()

    def _show(
        self,
        request: Request,
        me: Session,
        model: Model,
        form: Mapping[str, str],
        *,
        fresh: Model | None = None,
        after: tuple[Model, ...] = (),
        errors: Mapping[str, str] | None = None,
        error: str = "",
    ) -> Response:
        now = self._prices.now
        return self._pages.render(
            request,
            "admin/model.html",
            status=422 if errors or error else 200,
            me=me,
            model=model,
            sold=model.id in now.models,
            version=now.version,
            groups=show_form(model, form, errors or {}),
            search=form.get("web_search", ""),
            errors=errors or {},
            error=error,
            reason=form.get("reason", ""),
            was=self._sample(model),
            then=self._sample(fresh) if fresh else None,
            losing=self._loses(fresh or model),
            different=changes(now.prices.models, after) if fresh else [],
            percent=self._cost_percent,
        )

    def _sample(self, model: Model) -> object:
        return sample(model, self._cost_percent)

    def _loses(self, model: Model) -> list[str]:
        return loses(model, self._cost_percent)
