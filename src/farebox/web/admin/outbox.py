"""The outbox: every letter the site has written, what became of it, and sending it again."""

from typing import Final, cast
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.mail import Letter
from farebox.accounts.outbox import (
    STATES,
    State,
    find_letter,
    has_link,
    note_reading,
    page_of_letters,
    send_again,
    state_of,
    without_links,
)
from farebox.accounts.sessions import Session
from farebox.errors import NotFound
from farebox.web.admin.guard import Admins, operator_of
from farebox.web.kit import Kit

_PAGE: Final = 50
_ADDRESS_CHARS: Final = 254


class Outbox:
    """Letters. Where mail is sent by a server, links in them are nobody's business but their recipients'."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._mail_host = kit.house.mail_host

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route("/admin/outbox", page(self.letters)),
            Route("/admin/outbox/{letter_id}", page(self.letter)),
            Route("/admin/outbox/{letter_id}/again", page(self.again), methods=["POST"]),
        ]

    async def letters(self, request: Request, me: Session) -> Response:
        query = request.query_params
        asked = {
            "state": query.get("state", "") if query.get("state", "") in STATES else "",
            "to": "".join(char for char in query.get("to", "")[:_ADDRESS_CHARS] if char.isprintable()).strip().lower(),
        }
        before = query.get("before", "")
        before_id = int(before) if before.isascii() and before.isdecimal() and len(before) < 19 else None
        state = cast("State", asked["state"])
        found = await page_of_letters(self._store, state, asked["to"], before_id, _PAGE + 1)
        shown = found[:_PAGE]
        return self._pages.render(
            request,
            "admin/outbox.html",
            me=me,
            letters=[(one, state_of(one)) for one in shown],
            older=shown[-1].id if len(found) > _PAGE else None,
            newest=before_id is None,
            asked=asked,
            query=urlencode({name: value for name, value in asked.items() if value}),
            states=STATES,
            mail_host=self._mail_host,
        )

    async def letter(self, request: Request, me: Session) -> Response:
        """Show a letter; its link only where there is no other way for it to reach its recipient."""
        letter = await self._letter(request)
        by_hand = has_link(letter) and not self._mail_host
        if by_hand:
            await note_reading(self._store, operator_of(request, me), letter)
        return self._pages.render(
            request,
            "admin/letter.html",
            me=me,
            letter=letter,
            state=state_of(letter),
            body=letter.body if by_hand else without_links(letter),
            by_hand=by_hand,
            is_masked=has_link(letter) and not by_hand,
            mail_host=self._mail_host,
        )

    async def again(self, request: Request, me: Session) -> Response:
        letter = await self._letter(request)
        await send_again(self._store, operator_of(request, me), letter, self._clock())
        return RedirectResponse(f"/admin/outbox/{letter.id}", 303)

    async def _letter(self, request: Request) -> Letter:
        wanted = request.path_params["letter_id"]
        try:
            if wanted.isascii() and wanted.isdecimal() and len(wanted) < 19:
                return await find_letter(self._store, int(wanted))
        except NotFound:
            pass
        raise HTTPException(404)
