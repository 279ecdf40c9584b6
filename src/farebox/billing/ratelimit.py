"""Token buckets as one integer each: the generic cell rate algorithm (GCRA, ITU-T I.371).

A bucket of N per minute holds N and refills evenly. Its whole state is the theoretical arrival time: the moment
it will be full again. A cost of n moves that by n × 60 s / N, rounded up, so the rate is never exceeded;
the bucket is empty when that moment is a full minute away. No resets, no edges, exact in integers.
"""

from typing import Final

import msgspec

WINDOW_NS: Final = 60_000_000_000
_DEBT_NS: Final = 10 * WINDOW_NS
"""How deep a bucket may go into debt: output counts as it is produced, after the call was let in."""


class Level(msgspec.Struct, frozen=True):
    """What the rate-limit headers say: whole units left, and when the bucket is full again."""

    limit: int
    remaining: int
    full_at_us: int


def settle_state(full_at_ns: int, now_ns: int) -> int:
    """Bring a stored state to the present: never in the past, never deeper in debt than a clock jump could fake."""
    return max(now_ns, min(full_at_ns, now_ns + WINDOW_NS + _DEBT_NS))


def spend(full_at_ns: int, amount: int, per_minute: int) -> int:
    """Take `amount` (negative: give back) without asking; answers the new state."""
    return full_at_ns + -(-amount * WINDOW_NS // per_minute)


def wait_ns(full_at_ns: int, now_ns: int, amount: int, per_minute: int) -> int:
    """How long until `amount` fits; 0 when it does now. More than a whole bucket fits when the bucket is full."""
    fits_in = spend(full_at_ns, min(amount, per_minute), per_minute) - now_ns - WINDOW_NS
    return max(0, fits_in)


def level(full_at_ns: int, now_ns: int, per_minute: int) -> Level:
    """Describe a bucket for the headers."""
    state = max(full_at_ns, now_ns)
    remaining = max(0, (WINDOW_NS - (state - now_ns)) * per_minute // WINDOW_NS)
    return Level(per_minute, remaining, state // 1000)
