"""What there is to say of the means to call: worked out once, told by the API (…/v1/doctor) and by the dashboard."""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from farebox.money import format_usd

Status = Literal["ok", "warn", "fail"]
"""Fail: it stands in the way of calls. Warn: it may, or soon will."""

_LOW_NANOS: Final = 1_000_000_000
_SMALL: Final = "haiku"
"""What Claude Code asks for small things of, whatever model its user has chosen."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at; `words` hold no double quotes, so that a shell can read them."""

    check: str
    status: Status
    words: str

    def but(self, what_to_do: str) -> "Finding":
        """Say what to do about it, where there is anything to do."""
        return self if self.status == "ok" else Finding(self.check, self.status, f"{self.words}: {what_to_do}")


def of_balance(free_nanos: int, held_nanos: int) -> Finding:
    """Tell whether there is money to call with."""
    held = f", {format_usd(held_nanos)} more are held by calls under way" if held_nanos else ""
    if free_nanos <= 0:
        return Finding("balance", "fail", f"the balance is used up{held}")
    status: Status = "warn" if free_nanos < _LOW_NANOS else "ok"
    return Finding("balance", status, f"{format_usd(free_nanos)} are free{held}")


def of_spend_limit(limit_nanos: int, used_nanos: int) -> Finding:
    """Tell whether a key may still spend."""
    left = limit_nanos - used_nanos
    if left <= 0:
        return Finding("spend_limit", "fail", "what this key may spend is used up")
    status: Status = "warn" if left < limit_nanos // 20 else "ok"
    return Finding("spend_limit", status, f"this key may spend {format_usd(left)} more")


def of_small_model(models: Iterable[str]) -> Finding | None:
    """Tell whether a key has a model for the small things of Claude Code; None: it has."""
    if any(_SMALL in name for name in models):
        return None
    return Finding(
        "small_model",
        "warn",
        "Claude Code asks a Haiku for small things, and this key has none: "
        "set ANTHROPIC_DEFAULT_HAIKU_MODEL to another model",
    )
