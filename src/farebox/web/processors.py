"""Where payment processors tell that something has happened. What they say is where to look, never what came.

No page: whoever sends proves by a signature that it is the processor, so the rule against forms from other sites does
not apply. The answer comes at once; the watcher goes after it.
"""

import hashlib
import hmac
import re
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from farebox.billing.ratelimit import settle_state, spend, wait_ns
from farebox.clock import Clock
from farebox.errors import StoreUnavailable
from farebox.payments.btcpay import NAME as BTCPAY
from farebox.payments.btcpay_api import REFERENCE
from farebox.web.kit import Kit

BTCPAY_PATH: Final = "/webhooks/btcpay"
_MOST_BYTES: Final = 64 * 1024
_GOOD_A_MINUTE: Final = 600
_BAD_A_MINUTE: Final = 60
_DELIVERY: Final = re.compile(r"[0-9A-Za-z_-]{1,100}", re.ASCII)
_INSERT: Final = (
    "INSERT INTO processor_event (id, rail, ref, received_at) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)


class Processors:
    """Takes webhooks. An answer that makes the processor send again is only given where that can help."""

    def __init__(self, kit: Kit) -> None:
        self._store = kit.store
        self._clock = kit.clock
        self._btcpay = kit.till.settings.btcpay
        self._good = _Bucket(kit.clock, _GOOD_A_MINUTE)
        self._bad = _Bucket(kit.clock, _BAD_A_MINUTE)

    def routes(self) -> list[Route]:
        return [Route(BTCPAY_PATH, self.btcpay, methods=["POST"])]

    async def btcpay(self, request: Request) -> Response:
        """Take a webhook of BTCPay Server (docs.btcpayserver.org, "Webhooks"): HMAC-SHA256 over the very bytes sent."""
        secret = self._btcpay.webhook_secret.reveal().encode()
        if not (self._btcpay.url and secret):
            raise HTTPException(404)
        body = await request.body()
        if len(body) > _MOST_BYTES:
            return _say(413, f"a webhook is of {_MOST_BYTES} bytes at most")
        expected = b"sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest().encode()
        signed = request.headers.get("btcpay-sig", "").encode("latin-1").lower()  # as bytes: it may hold anything
        if not hmac.compare_digest(signed, expected):
            if not self._bad.takes_one():
                return _say(429, "too many webhooks with a wrong signature", retry_after_s=60)
            words = "no BTCPay-Sig came along" if not signed else "BTCPay-Sig is not of this body by our secret"
            return _say(401, f"{words}: webhook_secret in [btcpay] must be the secret of the webhook")
        if not self._good.takes_one():
            return _say(429, "too many webhooks at once", retry_after_s=60)
        event = _read(body)
        if event is None:
            return _say(400, "a webhook is a JSON object")
        invoice, store = event.get("invoiceId"), event.get("storeId")
        if not isinstance(invoice, str) or not REFERENCE.fullmatch(invoice) or store != self._btcpay.store:
            return _say(200, "nothing here is about that")
        delivery = event.get("deliveryId")
        if not isinstance(delivery, str) or not _DELIVERY.fullmatch(delivery):
            delivery = hashlib.sha256(body).hexdigest()
        values = (f"{BTCPAY}:{delivery}", BTCPAY, invoice, self._clock())
        try:
            await self._store.write([(_INSERT, values)])
        except StoreUnavailable:
            return _say(503, "this cannot be written down at the moment: send it again", retry_after_s=10)
        return _say(200, "taken")


class _Bucket:
    """So many a minute, of this process."""

    def __init__(self, clock: Clock, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._full_at_ns = 0

    def takes_one(self) -> bool:
        """Take one out, if there is one."""
        now_ns = self._clock() * 1000
        state = settle_state(self._full_at_ns, now_ns)
        if wait_ns(state, now_ns, 1, self._per_minute):
            return False
        self._full_at_ns = spend(state, 1, self._per_minute)
        return True


def _read(body: bytes) -> dict[str, Any] | None:
    try:
        event = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _say(status: int, words: str, *, retry_after_s: int = 0) -> Response:
    headers = {"retry-after": str(retry_after_s)} if retry_after_s else {}
    return PlainTextResponse(f"{words}\n", status, headers)
