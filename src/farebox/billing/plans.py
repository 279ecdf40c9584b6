"""Plans: how fast an account may go. A plan follows from what was topped up in all, or is set by the operator."""

from collections.abc import Iterable, Iterator

import msgspec


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one plan. `top_up_nanos` is what must have been topped up in all to get it; None: only by hand."""

    name: str
    requests_per_minute: int
    tokens_per_minute: int
    concurrent: int
    top_up_nanos: int | None = None


def limits_of(
    plan: Plan, requests_per_minute: int | None, tokens_per_minute: int | None, concurrent: int | None
) -> Plan:
    """Give a plan with an account's own limits in the place of some of its own; None: the plan's."""
    if requests_per_minute is None and tokens_per_minute is None and concurrent is None:
        return plan
    return Plan(
        plan.name,
        plan.requests_per_minute if requests_per_minute is None else requests_per_minute,
        plan.tokens_per_minute if tokens_per_minute is None else tokens_per_minute,
        plan.concurrent if concurrent is None else concurrent,
        plan.top_up_nanos,
    )


class Plans:
    """All plans by name. The first is what a new account gets."""

    def __init__(self, plans: Iterable[Plan]) -> None:
        self._plans = {plan.name: plan for plan in plans}
        if not self._plans:
            raise ValueError("at least one plan is needed")
        self.default = next(iter(self._plans.values()))

    def __iter__(self) -> Iterator[Plan]:
        return iter(self._plans.values())

    def get(self, name: str) -> Plan:
        """Find a plan; an account whose plan is no longer offered gets the default one."""
        return self._plans.get(name, self.default)

    def names(self) -> list[str]:
        return list(self._plans)

    def earned(self, topped_up_nanos: int) -> Plan:
        """Give the best plan that a total of top-ups earns."""
        earned = [
            plan
            for plan in self._plans.values()
            if plan.top_up_nanos is not None and plan.top_up_nanos <= topped_up_nanos
        ]
        return max(earned, key=lambda plan: plan.top_up_nanos or 0, default=self.default)
