"""What a customer is told where the spend limit of a key is in the way."""

from typing import Final

from farebox.billing.budgets import Resets, period_end_us
from farebox.billing.ledger import SpendLimit
from farebox.clock import day_of
from farebox.gateway.terms import Amounts, fitting_tokens
from farebox.money import format_usd

_EACH: Final[dict[Resets, str]] = {"never": "in all", "daily": "a day", "weekly": "a week", "monthly": "a month"}


class SpendWords:
    """Words about spend limits. `keys_url` is where they are raised."""

    def __init__(self, keys_url: str) -> None:
        self._keys_url = keys_url

    def refused(self, limit: SpendLimit, amounts: Amounts, rate: int, max_tokens: int, now_us: int) -> str:
        """Say why a call is not let in, and what would be."""
        left = limit.left_nanos
        if left <= 0:
            return f"{_name(limit)} is used up; {self._advice(limit, now_us)}"
        fits = fitting_tokens(amounts, rate, left)
        advice = f", or lower max_tokens to at most {fits}" if 0 < fits < max_tokens else ""
        return (
            f"{_name(limit)} leaves {format_usd(left)} and this call needs {format_usd(amounts.least)} held: "
            f"{format_usd(amounts.least - left)} short; {self._advice(limit, now_us)}{advice}"
        )

    def ended(self, limit: SpendLimit, now_us: int) -> str:
        """Say why a stream ends."""
        return (
            f"{_name(limit)} is used up, so the stream ends here; what you received is charged; "
            f"{self._advice(limit, now_us)}"
        )

    def _advice(self, limit: SpendLimit, now_us: int) -> str:
        end_us = period_end_us(limit.resets, now_us)
        anew = ""
        if end_us is not None:
            day = "" if limit.resets == "daily" else f"on {day_of(end_us)} "
            anew = f"it starts anew {day}at 00:00 UTC; "
        return f"{anew}raise it at {self._keys_url}"


def _name(limit: SpendLimit) -> str:
    return f"the spend limit of this key, {format_usd(limit.limit_nanos)} {_EACH[limit.resets]},"
