"""Plan and limits: how fast an account may go, how fast it goes at the moment, and what the next plan takes."""

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.billing.plans import Plan, Plans, limits_of
from farebox.billing.ratelimit import level
from farebox.store.protocol import Store
from farebox.web.kit import Kit

_READ: Final = (
    "SELECT plan, requests_full_ns, tokens_full_ns, open_holds, topped_up_nanos, requests_per_minute, "
    "tokens_per_minute, concurrent FROM account WHERE id = ?"
)


class Use(msgspec.Struct, frozen=True):
    """One limit and what is used of it now. `full_in_us`: until all of it is free again."""

    name: str
    limit: int
    used: int
    full_in_us: int
    own: bool
    """Whether it is the account's own, in the place of its plan's."""

    @property
    def share(self) -> int:
        return min(100, 100 * self.used // self.limit) if self.limit else 100


class Limits:
    """The limits of whoever is signed in."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store
        self._clock = kit.clock
        self._plans = kit.offer.plans
        self._limits = kit.offer.limits

    def routes(self) -> list[Route]:
        return [Route("/dashboard/limits", self._visitors.signed_in(self.limits))]

    async def limits(self, request: Request, me: Session) -> Response:
        now_us = self._clock()
        plan, topped_up, uses = await read_uses(self._store, self._plans, me.account_id, now_us)
        keys = await self._store.fetch(
            "SELECT id, name, requests_per_minute FROM api_key WHERE account_id = ? AND revoked_at IS NULL "
            "AND (expires_at IS NULL OR expires_at > ?) AND requests_per_minute IS NOT NULL ORDER BY id",
            (me.account_id, now_us),
        )
        return self._pages.render(
            request,
            "limits.html",
            me=me,
            plan=plan,
            uses=uses,
            plans=self._plans,
            next=next_plan(self._plans, plan, topped_up),
            by_hand=is_by_hand(self._plans, plan, topped_up),
            topped_up=topped_up,
            keys=keys,
            limits=self._limits,
        )


async def read_uses(store: Store, plans: tuple[Plan, ...], account_id: int, now_us: int) -> tuple[Plan, int, list[Use]]:
    """Give an account's plan, what it has topped up in all, and what is used of its limits: requests, tokens, calls."""
    ((name, requests_full, tokens_full, open_holds, topped_up, *own),) = await store.fetch(_READ, (account_id,))
    plan = Plans(plans).get(name)
    mine = limits_of(plan, *own)
    uses = [
        _bucket("Requests a minute", requests_full, mine.requests_per_minute, now_us, own=own[0] is not None),
        _bucket("Tokens a minute", tokens_full, mine.tokens_per_minute, now_us, own=own[1] is not None),
        Use("Calls at once", mine.concurrent, open_holds, 0, own[2] is not None),
    ]
    return plan, topped_up, uses


def next_plan(plans: tuple[Plan, ...], plan: Plan, topped_up_nanos: int) -> Plan | None:
    """Give the plan that the next top-ups lead to; None where there is none, or this one was set by hand."""
    if is_by_hand(plans, plan, topped_up_nanos):
        return None
    above = [one for one in plans if one.top_up_nanos is not None and one.top_up_nanos > topped_up_nanos]
    return min(above, key=lambda one: one.top_up_nanos or 0, default=None)


def is_by_hand(plans: tuple[Plan, ...], plan: Plan, topped_up_nanos: int) -> bool:
    """Tell whether a plan is another one than the top-ups have earned: then they do not change it."""
    return plan.name != Plans(plans).earned(topped_up_nanos).name


def _bucket(name: str, full_at_ns: int, per_minute: int, now_us: int, *, own: bool) -> Use:
    now = level(full_at_ns, now_us * 1000, per_minute)
    return Use(name, per_minute, per_minute - now.remaining, max(0, now.full_at_us - now_us), own)
