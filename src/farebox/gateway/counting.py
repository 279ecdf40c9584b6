"""How often somebody may ask for what is free: tokens to be counted, questions about an account, quotes."""

from typing import Final

from farebox.billing.ratelimit import spend, wait_ns
from farebox.clock import Clock

_REMEMBERED: Final = 50_000


class CountLimit:
    """A bucket for each who asks. Of token counts: the upstream limits those too, for all customers together."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._full_at: dict[int, int] = {}

    def take(self, who: int, amount: int = 1) -> int:
        """Take one, or as many as a large question counts for; answers 0, or in how many seconds there is enough."""
        now_ns = self._clock() * 1000
        full_at = max(now_ns, self._full_at.get(who, 0))
        wait = wait_ns(full_at, now_ns, amount, self.per_minute)
        if wait:
            return -(-wait // 1_000_000_000)
        if len(self._full_at) >= _REMEMBERED:
            self._full_at = {one: state for one, state in self._full_at.items() if state > now_ns}
        self._full_at[who] = spend(full_at, amount, self.per_minute)
        return 0
