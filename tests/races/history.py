"""Whether what several nodes were told of one account can be true: is there an order that explains every answer?

The order must keep to the clock (what ended before another began comes first), and in it each command must be answered
as one alone at the books would be. Then nothing was overdrawn, nothing done twice, and nobody refused while there was
enough (linearizability; the search is Wing and Gong's, 1993, with Lowe's memory of what has failed).
"""

from typing import Final

import msgspec

from farebox.billing.ledger import Admit, Resize, Settle, Transfer, customer_id
from tests.races.node import Event


class Balance(msgspec.Struct, frozen=True):
    """An account at one moment: what is free, its holds (amount, and whether it has expired), and what is done."""

    free: int
    holds: frozenset[tuple[bytes, int, bool]] = frozenset()
    settled: frozenset[tuple[bytes, int]] = frozenset()
    posted: frozenset[str] = frozenset()

    def after(self, event: Event) -> "Balance | None":
        """Give the balance after a command; None where it would have been answered otherwise."""
        command = event.command
        if isinstance(command, Transfer):
            return self._transfer(command, event)
        if isinstance(command, Admit):
            return self._admit(command, event)
        hold = next((one for one in self.holds if one[0] == command.request_id), None)
        if isinstance(command, Settle):
            return self._settle(command, hold, event)
        if isinstance(command, Resize):
            if hold is None:
                return self if event.said == "gone" else None
            granted = min(command.amount_nanos, hold[1] + self.free)
            return self._moved(hold, granted, expired=False) if _is(event, "resized", granted) else None
        if hold is None or hold[2]:
            return self if event.said == "not held" else None
        return self._moved(hold, 0, expired=True) if _is(event, "expired", hold[1]) else None

    def _admit(self, command: Admit, event: Event) -> "Balance | None":
        known = {one[0] for one in self.holds} | {one[0] for one in self.settled}
        if command.request_id in known:
            return self if event.said == "duplicate" else None
        if event.free != self.free:
            return None
        if command.least_nanos > self.free or self.free <= 0:
            return self if event.said == "insufficient" else None
        amount = min(command.amount_nanos, self.free)
        if not _is(event, "admitted", amount):
            return None
        return _replace(self, free=self.free - amount, holds=self.holds | {(command.request_id, amount, False)})

    def _settle(self, command: Settle, hold: tuple[bytes, int, bool] | None, event: Event) -> "Balance | None":
        if hold is None:
            before = (command.request_id, event.amount) in self.settled
            return self if before and event.said == "settled before" else None
        charged = 0 if command.waive else min(command.cost_nanos, self.free + hold[1])
        if not _is(event, "settled late" if hold[2] else "settled", charged):
            return None
        return _replace(
            self,
            free=self.free + hold[1] - charged,
            holds=self.holds - {hold},
            settled=self.settled | {(command.request_id, charged)},
        )

    def _transfer(self, command: Transfer, event: Event) -> "Balance | None":
        if command.id in self.posted:
            return self if event.said == "posted before" else None
        amount = command.amount_nanos if customer_id(command.debit_account) is None else -command.amount_nanos
        if self.free + amount < 0:
            return self if event.said == "refused" else None
        if event.said != "posted":
            return None
        return _replace(self, free=self.free + amount, posted=self.posted | {command.id})

    def _moved(self, hold: tuple[bytes, int, bool], amount: int, *, expired: bool) -> "Balance":
        holds = self.holds - {hold} | {(hold[0], amount, expired)}
        return _replace(self, free=self.free + hold[1] - amount, holds=holds)


def explain(before: Balance, events: list[Event]) -> Balance:
    """Find an order that explains all answers; gives the balance after it. Raises AssertionError if there is none."""
    failed: set[tuple[int, Balance]] = set()
    all_of_them: Final = (1 << len(events)) - 1

    def search(done: int, balance: Balance) -> Balance | None:
        if done == all_of_them:
            return balance
        if (done, balance) in failed:
            return None
        left = [place for place in range(len(events)) if not done >> place & 1]
        first_end = min(events[place].ended_ns for place in left)
        for place in left:
            if events[place].began_ns <= first_end and (then := balance.after(events[place])) is not None:
                found = search(done | 1 << place, then)
                if found is not None:
                    return found
        failed.add((done, balance))
        return None

    found = search(0, before)
    assert found is not None, "no order explains these answers:\n" + _told(before, events)
    return found


def _is(event: Event, said: str, amount: int) -> bool:
    return event.said == said and event.amount == amount


def _replace(balance: Balance, **changes: object) -> Balance:
    return msgspec.structs.replace(balance, **changes)


def _told(before: Balance, events: list[Event]) -> str:
    """Write the answers as they came, in microseconds."""
    start = min(event.began_ns for event in events)
    lines = [
        f"  {(event.began_ns - start) // 1000:>8} to {(event.ended_ns - start) // 1000:>8}: {event.said} "
        f"{event.amount} (free {event.free}) for {event.command}"
        for event in sorted(events, key=lambda event: event.ended_ns)
    ]
    return "\n".join([f"  before: {before}", *lines])
