"""One customer: everything there is to know, and what an operator may change, each change with its reason."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.accounts import operators
from farebox.accounts.accounts import Account, find_account
from farebox.accounts.audit_log import Sought, audit_lines
from farebox.accounts.keys import list_keys
from farebox.accounts.operators import Operator, OwnLimits
from farebox.accounts.sessions import Session
from farebox.books.figures import Figures
from farebox.books.statement import page_of_statement
from farebox.errors import InvalidRequest, NotFound
from farebox.store.protocol import Store
from farebox.web.admin.guard import Admins, operator_of, read_reason
from farebox.web.kit import Kit
from farebox.web.usage import Asked, look_at_usage
from farebox.web.visitors import read_form

_LINES: Final = 10
_KEYS: Final = 20
_MOST: Final = 10**12
"""A limit above this is no limit."""
_TOLD: Final = {
    "suspend": "Suspended: calls are refused from now on.",
    "resume": "Calls are let in again.",
    "plan": "The plan has been changed.",
    "limits": "The limits have been changed.",
    "sign-out": "Every session has ended.",
    "reset-factor": "The second factor is gone, and every session has ended.",
    "verify": "The address counts as confirmed.",
    "notes": "The notes are kept.",
    "money": "The entry has been made.",
    "money-before": "That entry had been made before; nothing was moved again.",
}

Form = Mapping[str, str]


class Act(NamedTuple):
    """Something that is changed: by whom, about whom, as a form says."""

    by: Operator
    account: Account
    form: Form
    reason: str


class CustomerRoom:
    """The page of one customer and its forms. `forget_keys` is called when it matters to calls."""

    def __init__(self, kit: Kit, admins: Admins) -> None:
        self._admins = admins
        self._pages = kit.pages
        self._store = kit.store
        self._clock = kit.clock
        self._factor = kit.factor
        self._sessions = kit.visitors.sessions
        self._topups = kit.till.topups
        self._plans = kit.offer.plans
        self._words = {"site_name": kit.house.site_name, "public_url": kit.offer.public_url}
        self._forget_keys = kit.backstage.forget_keys
        self._acts: Mapping[str, Callable[[Act], Awaitable[None]]] = {
            "suspend": self._suspend,
            "resume": self._resume,
            "plan": self._plan,
            "limits": self._limits,
            "sign-out": self._sign_out,
            "reset-factor": self._reset_factor,
            "verify": self._verify,
            "notes": self._notes,
        }

    def routes(self) -> list[Route]:
        page = self._admins.page
        return [
            Route("/admin/customers/{account_id}", page(self.show)),
            Route("/admin/customers/{account_id}/{act}", page(self.act), methods=["POST"]),
        ]

    async def show(self, request: Request, me: Session) -> Response:
        return await self._show(request, me, await account_of(self._store, request))

    async def act(self, request: Request, me: Session) -> Response:
        """Change something, and write down who did, from where and why."""
        account = await account_of(self._store, request)
        name = request.path_params["act"]
        if name not in self._acts:
            raise HTTPException(404)
        form = await read_form(request)
        try:
            reason = read_reason(form) if name != "notes" else ""
            await self._acts[name](Act(operator_of(request, me), account, form, reason))
        except InvalidRequest as error:
            return await self._show(request, me, account, failed=name, error=str(error))
        self._forget_keys()
        return RedirectResponse(f"/admin/customers/{account.id}?done={name}", 303)

    async def _suspend(self, act: Act) -> None:
        await operators.change_status(self._store, act.by, act.account, "suspended", act.reason)

    async def _resume(self, act: Act) -> None:
        await operators.change_status(self._store, act.by, act.account, "active", act.reason)

    async def _plan(self, act: Act) -> None:
        plan = act.form.get("plan", "")
        known = [one.name for one in self._plans]
        if plan not in known:
            raise InvalidRequest(f"there is no plan {plan[:40]!r}; there are {', '.join(known)}")
        await operators.change_plan(self._store, act.by, act.account, plan, act.reason)

    async def _limits(self, act: Act) -> None:
        requests, tokens = _limit(act.form, "requests_per_minute", 1), _limit(act.form, "tokens_per_minute", 1)
        limits = OwnLimits(requests, tokens, _limit(act.form, "concurrent", 0))
        await operators.change_limits(self._store, act.by, act.account.id, limits, act.reason)

    async def _sign_out(self, act: Act) -> None:
        await operators.sign_out(self._store, act.by, act.account.id, act.reason)

    async def _reset_factor(self, act: Act) -> None:
        await operators.reset_factor(self._store, act.by, act.account, act.reason, self._clock(), **self._words)

    async def _verify(self, act: Act) -> None:
        await operators.verify_address(self._store, act.by, act.account, self._clock(), act.reason)

    async def _notes(self, act: Act) -> None:
        notes = act.form.get("notes", "").replace("\r\n", "\n").strip()
        await operators.change_notes(self._store, act.by, act.account.id, notes)

    async def _show(
        self, request: Request, me: Session, account: Account, *, failed: str = "", error: str = ""
    ) -> Response:
        now_us = self._clock()
        keys = await list_keys(self._store, account.id)
        figures = await Figures.read(self._store, account.id, now_us)
        range_ = request.query_params.get("range", "")
        asked = Asked("spend", "model", range_ if range_ in {"24h", "7d", "30d", "90d"} else "30d")
        month = await look_at_usage(figures, Asked("spend", "model", "30d"), {}, now_us)
        rows = await self._store.fetch(
            "SELECT verified_at, role, notes FROM account WHERE id = ?",
            (account.id,),
        )
        statement = await page_of_statement(self._store, account.id, None, _LINES)
        return self._pages.render(
            request,
            "admin/customer.html",
            status=422 if error else 200,
            me=me,
            account=account,
            verified_at=rows[0][0],
            role=rows[0][1],
            notes=rows[0][2],
            factors=await self._factor.of(account.id),
            own=await operators.own_limits(self._store, account.id),
            plans=self._plans,
            usage=await look_at_usage(figures, asked, {}, now_us),
            spent=month.total,
            keys=keys[::-1][:_KEYS],
            keys_in_all=len(keys),
            used=await figures.of_keys(),
            now=now_us,
            lines=statement.lines,
            topups=(await self._topups.all_of(account.id))[:_LINES],
            sessions=await self._sessions.all_of(account.id, now_us),
            audit=await audit_lines(self._store, Sought(target=operators.customer(account.id)), limit=_LINES),
            done=_TOLD.get(request.query_params.get("done", ""), "") if not error else "",
            failed=failed,
            error=error,
        )


async def account_of(store: Store, request: Request) -> Account:
    """Find the account that an address names, by its id or its own address. Raises HTTPException for no account."""
    wanted = request.path_params["account_id"]
    try:
        if wanted.isprintable():
            return await find_account(store, wanted)
    except NotFound:
        pass
    raise HTTPException(404)


def _limit(form: Form, name: str, least: int) -> int | None:
    """Read one limit of a form; nothing there means the plan's."""
    text = form.get(name, "").strip().replace(",", "").replace("_", "")
    if not text:
        return None
    words = name.replace("_", " ")
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= _MOST):
        raise InvalidRequest(f"{words} is a whole number from {least}, or nothing for the plan's; got {text[:20]!r}")
    return int(text)
