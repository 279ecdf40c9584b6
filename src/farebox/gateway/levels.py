"""What rate-limit headers say on answers that no bucket was asked for: each account's buckets as last seen."""

from typing import Final

from farebox.accounts.keyring import Caller
from farebox.billing.plans import Plans
from farebox.billing.ratelimit import Level, level
from farebox.gateway.answers import limit_headers
from farebox.http.exchange import Headers

_REMEMBERED: Final = 50_000


class Levels:
    """The last known levels of each account."""

    def __init__(self, plans: Plans) -> None:
        self._plans = plans
        self._seen: dict[int, tuple[int, int]] = {}

    def saw(self, account_id: int, requests: Level | None, tokens: Level | None) -> None:
        """Remember what the ledger answered."""
        if requests is None or tokens is None:
            return
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[account_id] = (requests.full_at_us * 1000, tokens.full_at_us * 1000)

    def headers(self, caller: Caller, now_us: int) -> Headers:
        """Give the rate-limit headers of an account as they must be by now."""
        plan = caller.limits(self._plans.get(caller.plan))
        seen = self._seen.get(caller.account_id, (caller.requests_full_ns, caller.tokens_full_ns))
        now_ns = now_us * 1000
        return limit_headers(
            level(seen[0], now_ns, plan.requests_per_minute), level(seen[1], now_ns, plan.tokens_per_minute)
        )
