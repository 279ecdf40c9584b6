"""The manual's addresses: pages, their Markdown twins, the lists for machines, and the API as OpenAPI."""

import asyncio
from functools import partial
from typing import Final
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.web.docs.book import CONTENTS, Book, Page
from farebox.web.docs.markdown import LANGUAGES
from farebox.web.offer import Offer
from farebox.web.packing import packed
from farebox.web.pages import Pages
from farebox.web.visitors import Visitors

_FIRST: Final = CONTENTS["Begin"][0]
_MARKDOWN: Final = "text/markdown; charset=utf-8"


class Docs:
    """Pages for everybody who writes a client, or has one written. New prices make a new edition of the book."""

    def __init__(self, pages: Pages, visitors: Visitors, offer: Offer, site_name: str, support_email: str) -> None:
        self._pages = pages
        self._visitors = visitors
        self._offer = offer
        self._write = partial(Book, offer, site_name, support_email)
        self._edition, self._newest = offer.catalogue.version, self._write()

    def routes(self) -> list[Route]:
        return [
            Route("/docs", self.start),
            Route("/docs/{page}.md", self.twin),
            Route("/docs/{page}", self.page),
            Route("/llms.txt", self.index),
            Route("/llms-full.txt", self.whole),
            Route("/openapi.json", self.openapi),
        ]

    @property
    def _book(self) -> Book:
        if self._edition != self._offer.catalogue.version:
            self._edition, self._newest = self._offer.catalogue.version, self._write()
        return self._newest

    async def start(self, request: Request) -> Response:
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/docs/{_FIRST}{query}", 307)

    async def page(self, request: Request) -> Response:
        pages = await self._written()
        page = _find(pages, request)
        slugs = list(pages)
        at = slugs.index(page.slug)
        language = request.query_params.get("lang", "")
        chosen = language if language in LANGUAGES.values() else ""
        return packed(
            request,
            self._pages.render(
                request,
                "docs.html",
                me=await self._visitors.who(request),
                page=page,
                contents={group: [pages[slug] for slug in found] for group, found in CONTENTS.items()},
                before=pages[slugs[at - 1]] if at else None,
                after=pages[slugs[at + 1]] if at + 1 < len(slugs) else None,
                language=chosen,
                query=f"?{urlencode({'lang': chosen})}" if chosen else "",
            ),
        )

    async def twin(self, request: Request) -> Response:
        page = _find(await self._written(), request)
        return packed(request, Response(page.source, media_type=_MARKDOWN))

    async def index(self, request: Request) -> Response:
        await self._written()
        return packed(request, Response(self._book.index, media_type="text/plain"))

    async def whole(self, request: Request) -> Response:
        await self._written()
        return packed(request, Response(self._book.whole, media_type="text/plain"))

    async def openapi(self, request: Request) -> Response:
        return packed(request, Response(self._book.openapi, media_type="application/json"))

    async def _written(self) -> dict[str, Page]:
        """Give all pages; the first time they are written on a thread, so that no call waits for it."""
        book = self._book
        return await asyncio.to_thread(lambda: book.pages)


def _find(pages: dict[str, Page], request: Request) -> Page:
    page = pages.get(request.path_params["page"])
    if page is None:
        raise HTTPException(404)
    return page
