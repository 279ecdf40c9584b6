"""Today: what the business does now, and whether the books are right."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.web.admin.guard import Admins
from farebox.web.kit import Kit


class Today:
    """The first page an operator sees."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages

    def routes(self) -> list[Route]:
        return [Route("/admin", self._admins.page(self.today))]

    async def today(self, request: Request, me: Session) -> Response:
        return self._pages.render(request, "admin/today.html", me=me)
