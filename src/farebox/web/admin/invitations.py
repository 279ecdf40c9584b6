"""Invitations: made, shown once as a link, taken back."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.audit_log import record
from farebox.accounts.invitations import (
    DAYS,
    MOST_DAYS,
    Invited,
    create_invitation,
    list_invitations,
    revoke_invitation,
)
from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest, NotFound
from farebox.web.admin.guard import Admins, operator_of
from farebox.web.kit import Kit
from farebox.web.visitors import read_form

_SHOWN: Final = 200
_FIELD_CHARS: Final = 300


class InvitationRoom:
    """Invitations to open an account."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._public_url = kit.offer.public_url
        self._sign_up = kit.offer.sign_up
        self._site_name = kit.house.site_name

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route("/admin/invitations", page(self.invitations), methods=["GET", "POST"]),
            Route("/admin/invitations/{invitation_id}/revoke", page(self.revoke), methods=["POST"]),
        ]

    async def invitations(self, request: Request, me: Session) -> Response:
        """List them; or make one, whose link is shown this once."""
        form, error, made = {"email": "", "note": "", "days": str(DAYS)}, "", None
        if request.method == "POST":
            given = await read_form(request)
            form = {name: given.get(name, "")[:_FIELD_CHARS].strip() for name in form}
            try:
                made = await self._make(request, me, form)
            except InvalidRequest as refused:
                error = str(refused)
        now_us = self._clock()
        return self._pages.render(
            request,
            "admin/invitations.html",
            status=422 if error else 200,
            me=me,
            invitations=[(one, one.state(now_us)) for one in await list_invitations(self._store, _SHOWN)],
            made=made,
            form=form if error else {"email": "", "note": "", "days": str(DAYS)},
            most_days=MOST_DAYS,
            sign_up=self._sign_up,
            error=error,
        )

    async def revoke(self, request: Request, me: Session) -> Response:
        wanted = request.path_params["invitation_id"]
        if not (wanted.isascii() and wanted.isdecimal() and len(wanted) < 19):
            raise HTTPException(404)
        by = operator_of(request, me)
        before, after = {"state": "open"}, {"state": "revoked"}
        line = record(by.name, by.address, "invitation.revoke", f"invitation:{int(wanted)}", before, after)
        try:
            await revoke_invitation(self._store, int(wanted), self._clock(), [line])
        except NotFound as error:
            raise HTTPException(404) from error
        return RedirectResponse("/admin/invitations", 303)

    async def _make(self, request: Request, me: Session, form: dict[str, str]) -> Invited:
        days = form["days"]
        if not (days.isascii() and days.isdecimal() and len(days) <= len(str(MOST_DAYS))):
            raise InvalidRequest(f"an invitation works for 1 to {MOST_DAYS} days, got {days[:20]!r}")
        by = operator_of(request, me)
        facts = {"email": form["email"] or "whoever has the link", "days": int(days)}
        line = record(by.name, by.address, "invitation.make", "invitations", None, facts, form["note"])
        return await create_invitation(
            self._store,
            self._public_url,
            self._site_name,
            by=me.email,
            now_us=self._clock(),
            email=form["email"],
            note=form["note"],
            days=int(days),
            also=[line],
        )
