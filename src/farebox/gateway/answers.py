"""How the gateway itself speaks: error envelopes, rate-limit headers, error events."""

from functools import lru_cache
from typing import Final

import msgspec

from farebox.billing.budgets import period_end_us
from farebox.billing.ledger import SpendLimit
from farebox.billing.ratelimit import Level
from farebox.clock import US_PER_S, iso
from farebox.errors import MethodNotAllowed, Refusal
from farebox.http.exchange import Headers

JSON: Final = (b"content-type", b"application/json")
_RETRY: Final = (b"x-should-retry", b"true")
_NO_RETRY: Final = (b"x-should-retry", b"false")
_LONG_WAIT_S: Final = 60
_REQUESTS: Final = tuple(b"anthropic-ratelimit-requests-" + part for part in (b"limit", b"remaining", b"reset"))
_UNIFIED: Final = b"anthropic-ratelimit-unified-"
_WARNED_AT: Final = (0.95, 0.75)
_MOST_USED: Final = 0.99
"""A call that was let in found something left."""
_TOKENS: Final = tuple(b"anthropic-ratelimit-tokens-" + part for part in (b"limit", b"remaining", b"reset"))


def error_body(refusal: Refusal, request_id: str) -> bytes:
    """Write a refusal in the Anthropic error envelope."""
    error: dict[str, object] = {"type": refusal.wire_type, "message": refusal.message}
    if refusal.error_code is not None:
        error["details"] = {"error_code": refusal.error_code}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def error_event(wire_type: str, message: str, request_id: str) -> bytes:
    """Write the event that ends a stream which cannot be completed."""
    body = msgspec.json.encode(
        {"type": "error", "error": {"type": wire_type, "message": message}, "request_id": request_id}
    )
    return b"event: error\ndata: " + body + b"\n\n"


def error_headers(refusal: Refusal) -> Headers:
    """Give the headers of a refusal: whether and when to try again."""
    headers = [JSON]
    wait_s = refusal.retry_after_s
    headers.append(_RETRY if refusal.retry and (wait_s is None or wait_s <= _LONG_WAIT_S) else _NO_RETRY)
    if wait_s is not None:
        headers.append((b"retry-after", b"%d" % wait_s))
    if isinstance(refusal, MethodNotAllowed):
        headers.append((b"allow", refusal.allow.encode()))
    return headers


def limit_headers(requests: Level | None, tokens: Level | None) -> Headers:
    """Give the rate-limit headers of the account's own plan (Messages API, "rate limits": response headers)."""
    headers: Headers = []
    for (limit, remaining, reset), level in ((_REQUESTS, requests), (_TOKENS, tokens)):
        if level is not None:
            headers.append((limit, b"%d" % level.limit))
            headers.append((remaining, b"%d" % level.remaining))
            headers.append((reset, _second(-(-level.full_at_us // 1_000_000))))
    return headers


def budget_headers(limit: SpendLimit, now_us: int) -> Headers:
    """Tell how much of a key's spend limit is used, in the headers from which Claude Code warns at 75 % and at 95 %.

    As in the protocol of LLM gateways that Claude Code documents: "overage" is its claim for a budget of any period.
    """
    used = min(max(0, limit.limit_nanos - limit.left_nanos) / max(1, limit.limit_nanos), _MOST_USED)
    passed = next((threshold for threshold in _WARNED_AT if used > threshold), None)
    status = b"allowed_warning" if passed else b"allowed"
    headers = [
        (_UNIFIED + b"status", status),
        (_UNIFIED + b"representative-claim", b"overage"),
        (_UNIFIED + b"overage-status", status),
        (_UNIFIED + b"overage-utilization", b"%.2f" % used),
    ]
    if passed:
        headers.append((_UNIFIED + b"overage-surpassed-threshold", b"%.2f" % passed))
    end_us = period_end_us(limit.resets, now_us)
    if end_us is not None:
        end = b"%d" % (end_us // US_PER_S)
        headers += [(_UNIFIED + b"reset", end), (_UNIFIED + b"overage-reset", end)]
    return headers


@lru_cache(maxsize=1024)
def _second(second: int) -> bytes:
    return (iso(second * 1_000_000)[:19] + "Z").encode()
