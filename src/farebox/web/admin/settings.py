"""Settings: what is configured and where that was said. They are changed in the file or the environment, not here."""

from itertools import groupby

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts.audit_log import record
from farebox.accounts.mail import letter
from farebox.accounts.sessions import Session
from farebox.web.admin.guard import Admins, operator_of
from farebox.web.kit import Kit


class SettingsRoom:
    """The settings in force, and a letter to try the mail server with."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._house = kit.house
        self._sign_up = kit.offer.sign_up

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route("/admin/settings", page(self.settings)),
            Route("/admin/settings/mail", page(self.try_mail), methods=["POST"]),
        ]

    async def settings(self, request: Request, me: Session) -> Response:
        tables = [(name, list(rows)) for name, rows in groupby(self._house.settings, key=lambda row: row[0])]
        return self._pages.render(
            request,
            "admin/settings.html",
            me=me,
            tables=tables,
            sign_up=self._sign_up,
            mail_host=self._house.mail_host,
            factor=self._house.admin_factor,
        )

    async def try_mail(self, request: Request, me: Session) -> Response:
        """Write a letter to the operator; the outbox tells what the mail server says to it."""
        by = operator_of(request, me)
        words = f"This letter was asked for at {self._house.site_name}, to see whether mail arrives. It has.\n"
        line = record(by.name, by.address, "mail.try", "outbox", None, {"to": me.email})
        await self._store.write(
            [letter(me.email, f"A letter from {self._house.site_name} to try mail with", words, self._clock()), line]
        )
        return RedirectResponse("/admin/outbox", 303)
