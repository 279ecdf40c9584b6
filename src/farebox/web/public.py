"""The public site: what this is, what it costs, how it is used."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.billing.plans import Plans
from farebox.billing.pricing import Model
from farebox.web.pages import Pages
from farebox.web.visitors import Visitors


class Public:
    """Pages for everybody."""

    def __init__(self, pages: Pages, visitors: Visitors, models: tuple[Model, ...], plans: Plans) -> None:
        self._pages = pages
        self._visitors = visitors
        self._models = models
        self._plans = plans

    def routes(self) -> list[Route]:
        return [Route("/", self.home), Route("/models", self.models)]

    async def home(self, request: Request) -> Response:
        me = await self._visitors.who(request)
        return self._pages.render(request, "home.html", me=me, models=self._models, plans=list(self._plans))

    async def models(self, request: Request) -> Response:
        me = await self._visitors.who(request)
        return self._pages.render(request, "models.html", me=me, models=self._models)
