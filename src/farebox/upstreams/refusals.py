"""What a customer is told when no upstream answered: never the operator's account, always what to do."""

from typing import Final, Literal

from farebox.errors import Overloaded, Refusal, UpstreamFailed
from farebox.upstreams.budgets import LONGEST_RETRY_AFTER_S

OPERATORS_OWN: Final = frozenset({401, 402, 403})
"""Statuses that speak of the operator's account: never shown to a customer."""


Matter = Literal["account", "model"]
"""What an upstream refuses the operator: everything, or one model that was not set up there."""


def refusal_of(status: int | None, tries: int, retry_after_s: float | None) -> Refusal:
    """Say what went wrong, by the status of the last try. An upstream's own 401, 402 or 403 is never shown."""
    wait_s = min(LONGEST_RETRY_AFTER_S, max(1, round(retry_after_s or 2)))
    if status == 529:
        return Overloaded("the model's provider is overloaded; try again shortly", retry_after_s=wait_s)
    if status == 429:
        refusal = Overloaded(
            "the model's provider is at its rate limit; your own limits are not touched; try again shortly",
            retry_after_s=wait_s,
        )
        refusal.status, refusal.wire_type = 429, "rate_limit_error"
        return refusal
    if status in OPERATORS_OWN:
        return UpstreamFailed(
            "the upstream does not accept this gateway at the moment; its operator has been told",
            retry_after_s=30,
        )
    reason = f"answered {status}" if status is not None else "gave no usable answer"
    return UpstreamFailed(
        f"the upstream {reason} after {tries} {'try' if tries == 1 else 'tries'}; nothing was charged",
        retry_after_s=wait_s,
    )


def no_usage() -> Refusal:
    """Say that an answer cannot be charged, so not be delivered: nor can the next one, and each costs the operator."""
    refusal = UpstreamFailed(
        "the upstream did not report what its answer used, so it cannot be delivered; nothing was charged; "
        "the operator has been told; try another model"
    )
    refusal.retry = False
    return refusal


def no_room() -> Refusal:
    """Say that calls wait for too long already."""
    return Overloaded("all upstreams are at their limit of calls at once; try again shortly", retry_after_s=2)


def nobody_serves() -> Refusal:
    """Say that there is no upstream for a call now."""
    return UpstreamFailed("no upstream serves this model at the moment; try again shortly", retry_after_s=5)


def nobody_there() -> Refusal:
    """Say that there is no upstream at all."""
    return UpstreamFailed("no upstream is set up here yet; ask the operator", retry_after_s=60)
