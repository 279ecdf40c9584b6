"""Who may see the operator's pages: an operator who has given a second factor, and lately for a change.

For everybody else there is nothing at /admin.
"""

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from farebox.accounts.audit_log import REASON_CHARS
from farebox.accounts.operators import Operator
from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest
from farebox.web.kit import Kit
from farebox.web.visitors import Page, SignedInPage, address_of, to_confirm


class Admins:
    """Makes pages that only operators see."""

    def __init__(self, kit: Kit) -> None:
        self._visitors = kit.visitors
        self._pages = kit.pages
        self._factor = kit.factor
        self._clock = kit.clock
        self._factor_required = kit.house.admin_factor == "required"

    def page(self, page: SignedInPage, *, changes: bool = True, proof: bool = False) -> Page:
        """Make a page for operators. Whatever is no GET is a change, which needs a proof of the last minutes.

        `changes=False`: it is none, whatever its method. `proof`: to look at it needs that proof as well, so that a
        form which takes a secret is hardly ever kept aside while somebody proves who they are.
        """

        async def guarded(request: Request) -> Response:
            me = await self._visitors.who(request)
            if me is None or me.role != "admin" or me.status != "active":
                raise HTTPException(404)
            lacks_factor = self._factor_required and me.factor_at_us is None
            if lacks_factor and not (await self._factor.of(me.account_id)).is_needed:
                return self._pages.render(request, "admin/factor.html", status=403, me=me)
            is_change = proof or (changes and request.method not in {"GET", "HEAD"})
            if lacks_factor or (is_change and not me.is_sure(self._clock())):
                return to_confirm(request)
            return await page(request, me)

        return guarded


def read_reason(form: Mapping[str, str]) -> str:
    """Read why something is changed. Raises InvalidRequest where a form does not say."""
    reason = " ".join(form.get("reason", "").split())
    if not (reason and reason.isprintable() and len(reason) <= REASON_CHARS):
        raise InvalidRequest(f"say why, in 1 to {REASON_CHARS} characters: it goes into the audit log")
    return reason


def operator_of(request: Request, me: Session) -> Operator:
    """Name who changes something, for the audit log."""
    return Operator(me.email, address_of(request))
