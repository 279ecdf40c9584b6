"""The audit log: who changed what, from where, and why. It is read here and nowhere changed."""

from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.audit_log import Line, Sought, all_audit_lines, audit_lines, known_actions
from farebox.accounts.sessions import Session
from farebox.clock import DAY_US, day_of, iso
from farebox.web.admin.guard import Admins
from farebox.web.exports import MOST_ROWS, Cell, export, format_of
from farebox.web.kit import Kit

_PAGE: Final = 50
_FIELD_CHARS: Final = 254
_SINCE: Final = {"24h": DAY_US, "7d": 7 * DAY_US, "30d": 30 * DAY_US, "90d": 90 * DAY_US}
_COLUMNS: Final = ("at", "id", "actor", "address", "action", "target", "before", "after", "reason")


class AuditLog:
    """Everything that operators did."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route("/admin/audit", page(self.log)),
            Route("/admin/audit.csv", page(self.export)),
            Route("/admin/audit.json", page(self.export)),
        ]

    async def log(self, request: Request, me: Session) -> Response:
        asked = _asked(request.query_params)
        before = request.query_params.get("before", "")
        before_id = int(before) if before.isascii() and before.isdecimal() and len(before) < 19 else None
        found = await audit_lines(self._store, self._sought(asked), before_id, _PAGE + 1)
        shown = found[:_PAGE]
        return self._pages.render(
            request,
            "admin/audit.html",
            me=me,
            lines=shown,
            older=shown[-1].id if len(found) > _PAGE else None,
            newest=before_id is None,
            asked=asked,
            query=urlencode({name: value for name, value in asked.items() if value}),
            actions=await known_actions(self._store),
            spans=list(_SINCE),
        )

    async def export(self, request: Request, me: Session) -> Response:  # noqa: ARG002  a page's signature
        rows = _rows(all_audit_lines(self._store, self._sought(_asked(request.query_params)), MOST_ROWS))
        return export(rows, _COLUMNS, f"audit-{day_of(self._clock())}", format_of(request))

    def _sought(self, asked: dict[str, str]) -> Sought:
        since_us = self._clock() - _SINCE[asked["since"]] if asked["since"] in _SINCE else 0
        return Sought(asked["actor"], asked["action"], asked["target"], since_us)


def _asked(query: QueryParams) -> dict[str, str]:
    """Read the filters; nothing that cannot be printed is looked for."""
    return {
        name: "".join(char for char in query.get(name, "")[:_FIELD_CHARS] if char.isprintable()).strip()
        for name in ("actor", "action", "target", "since")
    }


async def _rows(lines: AsyncIterator[Line]) -> AsyncIterator[Mapping[str, Cell]]:
    async for line in lines:
        yield {
            "at": iso(line.at_us),
            "id": line.id,
            "actor": line.actor,
            "address": line.address,
            "action": line.action,
            "target": line.target,
            "before": line.before,
            "after": line.after,
            "reason": line.reason,
        }
