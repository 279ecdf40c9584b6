"""The public site: what this is, what it costs, whether it works, and under which terms."""

from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from farebox.web.assets import Assets
from farebox.web.backstage import Service
from farebox.web.docs.markdown import read_plain
from farebox.web.offer import Offer
from farebox.web.packing import packed
from farebox.web.pages import Pages
from farebox.web.prices import columns, estimate, in_order
from farebox.web.swap import LANGUAGES, swaps
from farebox.web.visitors import Visitors

TEXTS: Final = {"terms": "Terms of service", "privacy": "Privacy", "refunds": "Refunds"}
"""The operator's own pages, with their titles where the text has none."""
_EXCERPT: Final = 4


class Public:
    """Pages for everybody. `service` tells how a model is served at the moment."""

    def __init__(
        self, pages: Pages, visitors: Visitors, assets: Assets, offer: Offer, service: Callable[[str], Service]
    ) -> None:
        self._pages = pages
        self._visitors = visitors
        self._assets = assets
        self._offer = offer
        self._service = service
        self._swaps = swaps(offer)
        self._texts = {name: read_plain(text, TEXTS[name]) for name, text in offer.texts.items()}

    def routes(self) -> list[Route]:
        return [
            Route("/", self.home),
            Route("/models", self.models),
            Route("/status", self.status),
            *(Route(f"/{name}", self.text) for name in self._texts),
            Route("/robots.txt", self.robots),
            Route("/favicon.ico", self.icon),
        ]

    async def home(self, request: Request) -> Response:
        language = request.query_params.get("lang", "")
        return packed(
            request,
            self._pages.render(
                request,
                "home.html",
                me=await self._visitors.who(request),
                few=self._offer.models[:_EXCERPT],
                offer=self._offer,
                swaps=self._swaps,
                language=language if language in LANGUAGES else self._swaps[0].language,
            ),
        )

    async def models(self, request: Request) -> Response:
        query = request.query_params
        order = query.get("sort", "")
        return packed(
            request,
            self._pages.render(
                request,
                "models.html",
                me=await self._visitors.who(request),
                models=in_order(self._offer.models, order),
                columns=columns(order),
                estimate=estimate(query, self._offer.catalogue, self._offer.sample),
                asked="model" in query,
            ),
        )

    async def status(self, request: Request) -> Response:
        rows = [(model, self._service(model.id)) for model in self._offer.models]
        me = await self._visitors.who(request)
        return packed(request, self._pages.render(request, "status.html", me=me, rows=rows))

    async def text(self, request: Request) -> Response:
        text = self._texts[request.url.path.strip("/")]
        me = await self._visitors.who(request)
        return packed(request, self._pages.render(request, "text.html", me=me, text=text))

    async def robots(self, _: Request) -> Response:
        """Let search engines read what is public."""
        return PlainTextResponse("User-agent: *\nDisallow: /dashboard\nDisallow: /api/\n")

    async def icon(self, _: Request) -> Response:
        """Send those who look for an icon where browsers did in 1999 to the one there is."""
        return RedirectResponse(self._assets.url("icon.svg"), 308)
