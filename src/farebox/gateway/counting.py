"""How often an account may have tokens counted: one bucket for its own questions and for those asked on its behalf."""

from typing import Final

from farebox.billing.ratelimit import spend, wait_ns
from farebox.clock import Clock

_REMEMBERED: Final = 50_000


class CountLimit:
    """Token counts are free, but not without end: the upstream limits them too, for all customers together."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._full_at: dict[int, int] = {}

    def take(self, account_id: int) -> int:
        """Take one count; answers 0, or how many seconds from now there is one again."""
        now_ns = self._clock() * 1000
        full_at = max(now_ns, self._full_at.get(account_id, 0))
        wait = wait_ns(full_at, now_ns, 1, self.per_minute)
        if wait:
            return -(-wait // 1_000_000_000)
        if len(self._full_at) >= _REMEMBERED:
            self._full_at = {account: state for account, state in self._full_at.items() if state > now_ns}
        self._full_at[account_id] = spend(full_at, 1, self.per_minute)
        return 0
