"""Announcements: what everybody is told on every page, now or later."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.announcements import WORDS_CHARS, Wanted, announce, list_announcements, take_down
from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest, NotFound
from farebox.web.admin.guard import Admins, operator_of
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_HERE = "/admin/announcements"


class AnnouncementRoom:
    """Makes announcements and takes them down."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._announcements = kit.announcements

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route(_HERE, page(self.all), methods=["GET", "POST"]),
            Route(f"{_HERE}/{{announcement_id}}/end", page(self.end), methods=["POST"]),
        ]

    async def all(self, request: Request, me: Session) -> Response:
        error, wanted = "", Wanted()
        if request.method == "POST":
            form = await read_form(request)
            wanted = Wanted(**{name: form.get(name, "") for name in Wanted.__struct_fields__})
            try:
                await announce(self._store, operator_of(request, me), wanted, self._clock())
            except InvalidRequest as refused:
                error = str(refused)
            else:
                await self._announcements.refresh(self._clock())
                return RedirectResponse(_HERE, 303)
        return self._pages.render(
            request,
            "admin/announcements.html",
            status=422 if error else 200,
            me=me,
            announcements=await list_announcements(self._store),
            wanted=wanted,
            most=WORDS_CHARS,
            error=error,
            now=self._clock(),
        )

    async def end(self, request: Request, me: Session) -> Response:
        wanted = request.path_params["announcement_id"]
        if not (wanted.isascii() and wanted.isdecimal() and len(wanted) < 19):
            raise HTTPException(404)
        try:
            await take_down(self._store, operator_of(request, me), int(wanted), self._clock())
        except NotFound as error:
            raise HTTPException(404) from error
        await self._announcements.refresh(self._clock())
        return RedirectResponse(_HERE, 303)
