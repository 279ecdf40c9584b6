"""How an upstream has been doing: a circuit breaker that opens on failures in a row or on their share, and probes.

It judges by outcomes alone. What is the client's own fault shows an upstream to be well; a rate limit is no failure.
"""

from bisect import bisect_left
from collections import Counter, deque
from typing import Final, Literal

_RESTS_AFTER: Final = 5
_REST_S: Final = 10.0
_LONGEST_REST_S: Final = 120.0
_BARRED_S: Final = 60.0
_LONGEST_BARRED_S: Final = 600.0
"""An operator mends a refused key in minutes, not in seconds."""
_PROBE_S: Final = 10.0
"""A probe that has not ended by then lets another one go."""
_WINDOW_S: Final = 15.0
"""Half of the time that the share of failures is taken over."""
_WINDOW_CALLS: Final = 20
"""Of fewer calls the share says nothing."""
SLOW_START_S: Final = 30.0
_LEAST_SHARE: Final = 0.1
LATELY_S: Final = 300.0
_SAMPLES: Final = 30
HEAD_BOUNDS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds of the histogram of how long answers took to begin."""


class Health:
    """Counts and judges the outcomes of calls. Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self.calls = 0
        self.failures = 0
        self.failed_by: Counter[str] = Counter()
        """Failures and rate limits by class: few words, never an upstream's own."""
        self.limited = 0
        """Answers 429: it is well, but wants no more for now."""
        self.ejections = 0
        self.head_counts = [0] * (len(HEAD_BOUNDS_S) + 1)
        self.head_total_s = 0.0
        self.failures_in_a_row = 0
        self.rests = 0
        self.rests_until = 0.0
        self.probed_until = 0.0
        self._told_to_rest = False
        self._returned_at: float | None = None
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=_SAMPLES)
        self._window_at = 0.0
        self._well = self._broke = self._well_before = self._broke_before = 0

    def is_healthy(self, now: float) -> bool:
        """Whether calls go here. After a run of failures it rests, then one call at a time finds out."""
        return now >= self.rests_until and now >= self.probed_until

    def ramp(self, now: float) -> float:
        """Give the part of its weight that holds: after a rest it grows, since its caches are cold."""
        if self._returned_at is None:
            return 1.0
        part = (now - self._returned_at) / SLOW_START_S
        if part >= 1:
            self._returned_at = None
            return 1.0
        return max(part, _LEAST_SHARE)

    def lately(self) -> tuple[int, int]:
        """Give the calls of the last minutes, and how many of them failed."""
        _, calls, failures = self._samples[0] if self._samples else (0.0, 0, 0)
        return self.calls - calls, self.failures - failures

    def tick(self, now: float) -> None:
        """Remember where the counts stand, every few seconds."""
        if not self._samples or now - self._samples[-1][0] >= LATELY_S / _SAMPLES:
            self._samples.append((now, self.calls, self.failures))

    def takes(self, now: float) -> bool:
        """Take note of a call that goes here. The first after a rest is the probe that the others wait for: True."""
        self.calls += 1
        probes = self.rests > 0 and self.is_healthy(now)
        if probes:
            self.probed_until = now + _PROBE_S
        if now - self._window_at >= _WINDOW_S:
            stale = now - self._window_at >= 2 * _WINDOW_S
            self._well_before, self._broke_before = (0, 0) if stale else (self._well, self._broke)
            self._well = self._broke = 0
            self._window_at = now
        return probes

    def unprobed(self) -> None:
        """Leave it to another call to find out: the one that was the probe does not."""
        self.probed_until = 0.0

    def turned(self) -> Literal["rests", "well"] | None:
        """Give what is new since this was last asked: that it came to rest, or that it is well again."""
        if bool(self.rests) == self._told_to_rest:
            return None
        self._told_to_rest = not self._told_to_rest
        return "rests" if self._told_to_rest else "well"

    def began(self, seconds: float) -> None:
        """Take note of how long the head of an answer took."""
        self.head_counts[bisect_left(HEAD_BOUNDS_S, seconds)] += 1
        self.head_total_s += seconds

    def ended_well(self, now: float) -> None:
        """Take note of a whole answer. One that has rested gets its share back bit by bit."""
        self._well += 1
        if self.rests:
            self._returned_at = now
        if self.rests or self.failures_in_a_row:
            self.succeeded()

    def succeeded(self) -> None:
        """Forget what was before: it is well, by a call or by the operator's own test."""
        self.failures_in_a_row = self.rests = 0
        self.rests_until = self.probed_until = 0.0

    def failed(self, now: float) -> None:
        """Count a failure that is the upstream's own; after five in a row it rests, after each probe that fails longer.

        It rests as well when half of the calls of the last half minute failed. Calls sent before it rested may fail
        while it does: those say nothing new.
        """
        self.failures += 1
        self.failures_in_a_row += 1
        self._broke += 1
        if now >= self.rests_until and (self.rests or self.failures_in_a_row >= _RESTS_AFTER or self._mostly_fails()):
            self._rest(now, _REST_S, _LONGEST_REST_S)

    def barred(self, now: float) -> None:
        """Rest at once, and longer: it refuses the operator's credential or account, which no other call will mend."""
        self.failures += 1
        self.failures_in_a_row += 1
        self._broke += 1
        if now >= self.rests_until:
            self._rest(now, _BARRED_S, _LONGEST_BARRED_S)

    def _mostly_fails(self) -> bool:
        broke = self._broke + self._broke_before
        ended = broke + self._well + self._well_before
        return ended >= _WINDOW_CALLS and broke * 2 >= ended

    def _rest(self, now: float, rest_s: float, longest_s: float) -> None:
        if not self.rests:
            self.ejections += 1
        self.rests += 1
        self.rests_until = now + min(rest_s * self.rests, longest_s)
        self.probed_until = 0.0
        self._well = self._broke = self._well_before = self._broke_before = 0
