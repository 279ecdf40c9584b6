"""Budgets of the pool: how often it may repeat calls, and what upstreams say that is left of their rate limits."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from farebox.http.exchange import Headers

LONGEST_RETRY_AFTER_S: Final = 86_400
_MODELS: Final = 200
_RETRIES: Final = 500.0
"""What can be saved up: an upstream that stands still fails all its calls at once, when their time is up."""
_PREFIX: Final = b"anthropic-ratelimit-"
KINDS: Final = ("requests", "tokens", "input-tokens", "output-tokens")
_NAMES: Final = tuple((_PREFIX + kind.encode() + b"-remaining", kind) for kind in KINDS)
_PART_BACK: Final = 10
"""`-reset` is the time of full refill, and a bucket fills all the time: calls go on when a tenth of it is back."""
_FULL_S: Final = 60.0
"""How long a refill takes where the upstream's words cannot be read: limits are by the minute."""
_UNTOLD_S: Final = 10.0
"""How long a 429 without `retry-after` is heeded."""


class RetryBudget:
    """Retries as a share of calls, with a small allowance for quiet times (Finagle's RetryBudget)."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._tokens = 10.0 if share > 0 else 0.0

    def call(self) -> None:
        self._tokens = min(self._tokens + self._share, _RETRIES)

    def take(self) -> bool:
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Learnt(msgspec.Struct):
    """What one upstream said of one model: since limits are per model class, one's end is not another's."""

    until: float = 0.0
    """It has none left until then, by the loop's clock."""
    headers: Headers = []
    """Of its last answer that told."""


class RateBudget:
    """What an upstream has left, by model, as its own headers tell (Messages API, "rate limits")."""

    def __init__(self) -> None:
        self._learnt: dict[str, Learnt] = {}

    def is_spent(self, model: str | None, now: float) -> bool:
        """Tell whether the upstream has said that it has nothing left for a model for now."""
        learnt = self._learnt.get(model or "")
        return learnt is not None and now < learnt.until

    def learn(self, model: str | None, headers: Headers, now: float) -> None:
        """Read what an answer tells, if it tells anything."""
        fields = dict(headers)
        told = False
        for name, kind in _NAMES:
            left = fields.get(name)
            if left is not None:
                told = True
                if left == b"0":
                    self.rest(model, now + _refill_s(fields, kind) / _PART_BACK)
        if told and (learnt := self._of(model)):
            learnt.headers = headers

    def limited(self, model: str | None, retry_after_s: float | None, now: float) -> None:
        """Take note of an answer 429, or another that says when to come again."""
        self.rest(model, now + (retry_after_s or _UNTOLD_S))

    def rest(self, model: str | None, until: float) -> None:
        """Choose others for a model until then."""
        learnt = self._of(model)
        if learnt is not None:
            learnt.until = max(learnt.until, until)

    def told(self) -> list[tuple[str, str, int]]:
        """Give what was left at the last word: model, kind of limit, remaining."""
        found = []
        for model, learnt in self._learnt.items():
            fields = dict(learnt.headers)
            for name, kind in _NAMES:
                left = fields.get(name, b"")
                if left.isdigit() and len(left) < 16:
                    found.append((model, kind, int(left)))
        return found

    def _of(self, model: str | None) -> Learnt | None:
        learnt = self._learnt.get(model or "")
        if learnt is None and len(self._learnt) < _MODELS:
            learnt = self._learnt[model or ""] = Learnt()
        return learnt


def retry_after(value: bytes | None, date: bytes | None = None) -> float | None:
    """Read `retry-after` in seconds; None where it says none that can be heeded.

    It may be a moment (RFC 9110 10.2.3), which is by the upstream's clock: so says `date`, the header.
    """
    try:
        seconds = float(value) if value is not None else 0.0
    except ValueError:
        seconds = _until(value or b"", date)
    return seconds if 0 < seconds <= LONGEST_RETRY_AFTER_S else None  # nor "nan" nor "inf"


def _until(moment: bytes, date: bytes | None) -> float:
    """Give the seconds until a moment; 0 where it is none."""
    try:
        then = parsedate_to_datetime(moment.decode("ascii"))
        there = parsedate_to_datetime(date.decode("ascii")) if date is not None else datetime.now(UTC)
        return (then.astimezone(UTC) - there.astimezone(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _refill_s(fields: dict[bytes, bytes], kind: str) -> float:
    """Tell how long until a limit is whole again, by the upstream's own clock."""
    try:
        reset = datetime.fromisoformat(fields[_PREFIX + kind.encode() + b"-reset"].decode("ascii"))
        there = parsedate_to_datetime(fields[b"date"].decode("ascii"))
        seconds = (reset.astimezone(UTC) - there.astimezone(UTC)).total_seconds()
    except (KeyError, ValueError, OverflowError):
        return _FULL_S
    return min(max(seconds, 1.0), LONGEST_RETRY_AFTER_S)
