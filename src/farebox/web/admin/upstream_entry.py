"""Entering upstreams: adding, changing and removing one, in force at once everywhere. Secrets go in and never out."""

from collections.abc import Container, Mapping
from typing import Final
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.audit_log import Facts, record
from farebox.accounts.sessions import Session
from farebox.errors import FareboxError, InvalidRequest, NotFound
from farebox.store.protocol import Statement
from farebox.upstreams.entries import (
    Entry,
    Record,
    add_entry,
    change_entry,
    find_entry,
    left_behind,
    remove_entry,
    reveal,
)
from farebox.upstreams.fields import (
    KINDS,
    Field,
    choices_of,
    fields_of,
    is_secret,
    read_fields,
    read_kind,
    read_name,
    texts_of,
    usual_of,
)
from farebox.upstreams.settings import UpstreamKind
from farebox.web.admin.guard import Admins, operator_of, read_reason
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_HERE: Final = "/admin/upstreams"


class Shown(Struct, frozen=True):
    """A field as the form shows it. A secret has no value, but the moment it was set at, if it is."""

    field: Field
    input: str
    value: str
    error: str
    secret: bool
    choices: list[str]
    usual: str
    set_at_us: int | None


class UpstreamEntries:
    """Takes what operators enter."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._seals = kit.seals
        self._clock = kit.clock
        self._offer = kit.offer
        self._backstage = kit.backstage
        self._has_secret = kit.house.has_secret

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route(f"{_HERE}/new", page(self.kinds)),
            Route(f"{_HERE}/new/of/{{kind}}", page(self.new, proof=True), methods=["GET", "POST"]),
            Route(f"{_HERE}/{{name}}/edit", page(self.edit, proof=True), methods=["GET", "POST"]),
            Route(f"{_HERE}/{{name}}/remove", page(self.remove), methods=["GET", "POST"]),
        ]

    async def kinds(self, request: Request, me: Session) -> Response:
        """Ask which kind a new one is."""
        return self._pages.render(request, "admin/upstream_kinds.html", me=me, kinds=KINDS)

    async def new(self, request: Request, me: Session) -> Response:
        """Ask for the settings of a kind; add the upstream."""
        try:
            kind = read_kind(request.path_params["kind"])
        except ValueError as error:
            raise HTTPException(404) from error
        if request.method == "GET":
            return await self._show(request, me, kind, {}, {})
        form = await read_form(request)
        settings, wrong = read_fields("new", kind, _said(kind, form), {}, self._sold())
        name = form.get("name", "").strip()
        try:
            settings = replace(settings, name=read_name(name))
        except ValueError as error:
            wrong["name"] = str(error)
        if any(one.name == name and one.source == "file" for one in self._backstage.upstreams()):
            wrong["name"] = "is that of an upstream in the configuration file already"
        refusal = ""
        if not wrong:
            try:
                line = self._record(request, me, form)
                await add_entry(self._store, self._seals, settings, self._clock(), line)
            except InvalidRequest as refused:
                refusal = str(refused)
        if wrong or refusal:
            return await self._show(request, me, kind, form, wrong, error=refusal)
        return await self._done()

    async def edit(self, request: Request, me: Session) -> Response:
        """Show the settings of an upstream that was entered; change them."""
        entry = await self._find(request)
        try:
            kind, texts = read_kind(str(entry.values.get("kind"))), texts_of(entry.shown)
        except ValueError as error:
            words = f"what is kept of this upstream cannot be read by this version of Farebox ({error})"
            return await self._show(request, me, "anthropic", {}, {}, entry=entry, error=words, readable=False)
        if request.method == "GET":
            return await self._show(request, me, kind, texts, {}, entry=entry)
        form = await read_form(request)
        said = _said(kind, form)
        forget = {name for name in entry.moments if form.get(f"forget_{name}") == "yes" and not said.get(name)}
        kept, refusal = self._kept(entry, said, forget)
        settings, wrong = read_fields(entry.name, kind, said, kept, self._sold(entry))
        blank = {name: type(getattr(settings, name))("") for name in kept if hasattr(settings, name)}
        settings = replace(settings, **blank)
        if form.get("base") != str(entry.changed_at_us):
            refusal = "somebody else has changed this upstream meanwhile: look again"
        if not wrong and not refusal:
            try:
                line = self._record(request, me, form)
                await change_entry(self._store, self._seals, entry, settings, self._clock(), line, forget)
            except FareboxError as refused:
                refusal = str(refused)
        if wrong or refusal:
            return await self._show(request, me, kind, form, wrong, entry=entry, error=refusal)
        return await self._done()

    async def remove(self, request: Request, me: Session) -> Response:
        """Forget an upstream. Calls under way at it end as they began. Opened again, it is the page with the form."""
        if request.method != "POST":
            return RedirectResponse(f"{_HERE}/{quote(request.path_params['name'], safe='')}/edit", 303)
        entry = await self._find(request)
        form = await read_form(request)
        try:
            if form.get("sure") != "yes":
                raise InvalidRequest("tick that you mean it")
            if form.get("base") != str(entry.changed_at_us):
                raise InvalidRequest("somebody else has changed this upstream meanwhile: look again")
            await remove_entry(self._store, entry, self._record(request, me, form))
        except InvalidRequest as refused:
            try:
                kind, texts = read_kind(str(entry.values.get("kind"))), texts_of(entry.shown)
            except ValueError:
                kind, texts = "anthropic", {}
            return await self._show(request, me, kind, texts, {}, entry=entry, unremoved=str(refused))
        return await self._done()

    def _kept(self, entry: Entry, said: Mapping[str, str], forget: Container[str]) -> tuple[dict[str, str], str]:
        """Give the secrets that stay as they are; and why they cannot be had, if so."""
        stay = [name for name in entry.moments if not said.get(name) and name not in forget]
        try:
            secrets = reveal(entry, self._seals) if stay else {}
        except FareboxError as error:
            return dict.fromkeys(stay, ""), f"{error}; or enter what is secret anew"
        return {name: secrets.get(name, "") for name in stay}, ""

    async def _find(self, request: Request) -> Entry:
        try:
            return await find_entry(self._store, request.path_params["name"])
        except NotFound as error:
            raise HTTPException(404) from error

    async def _done(self) -> Response:
        await self._backstage.follow_upstreams()
        return RedirectResponse(_HERE, 303)

    def _record(self, request: Request, me: Session, form: Mapping[str, str]) -> Record:
        """Make what writes the line of the audit log. Raises InvalidRequest when the form does not say why."""
        by, reason = operator_of(request, me), read_reason(form)

        def line(
            action: str, target: str, before: Facts | None, after: Facts | None, only_if: Statement | None
        ) -> Statement:
            return record(by.name, by.address, action, target, before, after, reason, only_if)

        return line

    def _sold(self, entry: Entry | None = None) -> dict[str, str]:
        """Give the ids of models by all their names: those that are sold, and those that were named before."""
        sold = {name: one.id for one in self._offer.models for name in (one.id, *one.aliases)}
        named = entry.values.get("models", []) if entry is not None else []
        return {str(name): str(name) for name in named} | sold

    async def _show(
        self,
        request: Request,
        me: Session,
        kind: UpstreamKind,
        texts: Mapping[str, str],
        wrong: Mapping[str, str],
        *,
        entry: Entry | None = None,
        error: str = "",
        unremoved: str = "",
        readable: bool = True,
    ) -> Response:
        moments = entry.moments if entry is not None else {}
        return self._pages.render(
            request,
            "admin/upstream.html",
            status=422 if wrong or error or unremoved else 200,
            me=me,
            kind=kind,
            about=KINDS.get(kind, ""),
            entry=entry,
            readable=readable,
            has_secret=self._has_secret,
            left=await left_behind(self._store, entry.name, self._clock()) if entry is not None else 0,
            fields=[_shown(field, kind, texts, wrong, moments) for field in fields_of(kind)],
            name=texts.get("name", ""),
            wrong=wrong,
            error=error,
            unremoved=unremoved,
            reason="" if unremoved else texts.get("reason", ""),
        )


def _said(kind: str, form: Mapping[str, str]) -> dict[str, str]:
    """Read the settings out of a form; secrets stand there under names that no page carries on."""
    return {field.name: form.get(_input(field.name), "") for field in fields_of(kind)}


def _input(name: str) -> str:
    return f"secret_{name}" if is_secret(name) else name


def _shown(
    field: Field, kind: str, texts: Mapping[str, str], wrong: Mapping[str, str], moments: Mapping[str, int]
) -> Shown:
    secret = is_secret(field.name)
    value = "" if secret else texts.get(field.name, "")
    return Shown(
        field=field,
        input=_input(field.name),
        value=value,
        error=wrong.get(field.name, ""),
        secret=secret,
        choices=choices_of(field.name),
        usual=usual_of(field, kind),
        set_at_us=moments.get(field.name),
    )
