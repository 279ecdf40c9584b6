"""A BTCPay Server on this machine, by real HTTP: one store, its invoices, and the webhooks that it sends of them.

It follows what Greenfield documents (2.x) and what the server's WebhookSender does: a signature over the body, a new id
and so a new signature for every redelivery, and those only for 5xx, 408, 429 and no answer. It stands in for the real
one, which none of these tests has seen.
"""

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final, Literal
from urllib.parse import parse_qs

from farebox.http.client import HttpClient, read_origin
from farebox.http.exchange import Exchange
from farebox.http.failures import UpstreamError
from farebox.http.server import HttpServer

STORE: Final = "9CiNzKoANXxmk5ayZngSXrHTiVvvgCrwrpFQd4m2K776"
KEY: Final = "b6ae05890a3d5bbbd5bd10f0ee2ad9ed7c81d5c5"
SECRET: Final = "4pQm8WnTzv7cLk2YhXb9RsDf"
RATE: Final = Decimal("64100.5")
RIGHTS: Final = frozenset({"btcpay.store.cancreateinvoice", "btcpay.store.canviewinvoices"})

Status = Literal["Processing", "Settled", "Invalid"]

_TRIES: Final = 9
"""The first, and eight redeliveries: after 10 s, 1 min, and six times 10 min; here at once."""
_AGAIN: Final = frozenset({408, 429})
_JSON: Final = [(b"content-type", b"application/json")]
_PLACES: Final = {"BTC-CHAIN": 8, "BTC-LN": 11}


class FakePayment:
    def __init__(self, payment_id: str, value: Decimal, status: Status, received_s: int, destination: str) -> None:
        self.id = payment_id
        self.value = value
        self.status: Status = status
        self.received_s = received_s
        self.destination = destination

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "receivedDate": self.received_s,
            "value": f"{self.value:f}",
            "fee": "0.0",
            "status": self.status,
            "destination": self.destination,
        }


class FakeInvoice:
    """An invoice with one way to pay it. `asked`: what it was made with."""

    def __init__(self, asked: Mapping[str, Any], rate: Decimal, now_s: int) -> None:
        self.id = secrets.token_urlsafe(16).replace("-", "A").replace("_", "B")
        self.asked = asked
        self.amount = Decimal(asked["amount"])
        self.method: str = asked["checkout"]["paymentMethods"][0]
        self.rate = rate
        place = "lnbcrt390u1p" + secrets.token_hex(90) if self.method == "BTC-LN" else "bcrt1q" + secrets.token_hex(19)
        self.destination = place
        self.created_s = now_s
        self.expires_s = now_s + asked["checkout"]["expirationMinutes"] * 60
        self.payments: list[FakePayment] = []
        self.status = "New"
        self.additional = "None"
        self.changes: dict[str, Any] = {}
        """What is told otherwise than it is, of its payment method."""

    @property
    def total(self) -> Decimal:
        """What it asks for in coins."""
        place = Decimal(1).scaleb(-_PLACES[self.method])
        return (self.amount / self.rate).quantize(place, ROUND_CEILING)

    @property
    def paid(self) -> Decimal:
        return sum((one.value for one in self.payments if one.status != "Invalid"), Decimal(0))

    def count(self) -> None:
        """Bring its status in line with what came: late money leaves it expired for ever."""
        if self.additional == "Marked" or self.status in {"Settled", "Invalid"}:
            return
        enough, some = self.paid >= self.total, self.paid > 0
        if self.status == "Expired":
            self.additional = "PaidLate" if enough else "PaidPartial" if some else "None"
            return
        self.additional = "PaidOver" if self.paid > self.total else "PaidPartial" if some and not enough else "None"
        settled = sum((one.value for one in self.payments if one.status == "Settled"), Decimal(0))
        self.status = "Settled" if settled >= self.total else "Processing" if enough else "New"

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "storeId": STORE,
            "amount": f"{self.amount:f}",
            "paidAmount": f"{self.paid * self.rate:.2f}",
            "currency": "USD",
            "type": "Standard",
            "checkoutLink": f"https://btcpay.example/i/{self.id}",
            "createdTime": self.created_s,
            "expirationTime": self.expires_s,
            "monitoringExpiration": self.expires_s + self.asked["checkout"]["monitoringMinutes"] * 60,
            "status": self.status,
            "additionalStatus": self.additional,
            "availableStatusesForManualMarking": ["Settled", "Invalid"],
            "archived": False,
            "metadata": self.asked["metadata"],
            "checkout": self.asked["checkout"],
        }

    def method_shown(self, *, only_accounted: bool) -> dict[str, Any]:
        scheme = "lightning" if self.method == "BTC-LN" else "bitcoin"
        listed = [one for one in self.payments if not only_accounted or one.status != "Invalid"]
        return {
            "activated": True,
            "paymentMethodId": self.method,
            "currency": "BTC",
            "destination": self.destination,
            "paymentLink": f"{scheme}:{self.destination}",
            "rate": f"{self.rate:f}",
            "paymentMethodPaid": f"{self.paid:f}",
            "totalPaid": f"{self.paid:f}",
            "due": f"{self.total - self.paid:f}",
            "amount": f"{self.total:f}",
            "paymentMethodFee": "0",
            "payments": [one.shown() for one in listed],
            "additionalData": {},
            **self.changes,
        }


class FakeBtcpay:
    """The server. `now_s` is its clock; `hook` where its webhook leads, empty: nowhere."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.now_s = now_s
        self.url = ""
        self.hook = ""
        self.secret = SECRET
        self.rate = RATE
        self.methods = {"BTC-CHAIN", "BTC-LN"}
        """What the store offers."""
        self.rights = set(RIGHTS)
        self.webhooks: list[dict[str, Any]] = []
        self.invoices: dict[str, FakeInvoice] = {}
        self.is_down = False
        """It cuts every connection."""
        self.broken: dict[str, tuple[int, bytes]] = {}
        """By the end of a path: what is answered in the place of the truth."""
        self.asked: list[str] = []
        """Methods and paths in the order of the requests."""
        self.waiting: list[dict[str, Any]] = []
        """Events that no webhook was sent of."""

    async def serve(self, exchange: Exchange) -> None:
        body = await exchange.read_body(1 << 20)
        self.asked.append(f"{exchange.method} {exchange.path}")
        if self.is_down:
            exchange.break_off(reset=True)
            return
        for end, (status, text) in self.broken.items():
            if exchange.path.endswith(end):
                exchange.respond(status, _JSON, text)
                return
        status, said = self._answer(exchange, body)
        exchange.respond(status, _JSON, json.dumps(said).encode())

    def _answer(self, exchange: Exchange, body: bytes) -> tuple[int, Any]:
        if exchange.header(b"authorization") != b"token " + KEY.encode():
            return 401, {"code": "unauthenticated", "message": "Authentication is required"}
        if exchange.path == "/api/v1/api-keys/current":
            return 200, {"apiKey": KEY, "label": "farebox", "permissions": sorted(self.rights)}
        _, _, _, _, store, what, *rest = f"{exchange.path}/".rstrip("/").split("/")
        right = {
            ("POST", "invoices"): "btcpay.store.cancreateinvoice",
            ("GET", "invoices"): "btcpay.store.canviewinvoices",
            ("GET", "webhooks"): "btcpay.store.webhooks.canmodifywebhooks",
        }[exchange.method, what]
        if store != STORE or not {right, f"{right}:{STORE}", "unrestricted"} & self.rights:
            words = f"Insufficient API Permissions. Please use an API key with permission: {right}"
            return 403, {"code": "missing-permission", "message": words, "missingPermission": right}
        if what == "webhooks":
            return 200, self.webhooks
        if exchange.method == "POST":
            return self._create(json.loads(body))
        query = {name: values[0] for name, values in parse_qs(exchange.query).items()}
        if not rest:
            since, skip, take = (
                int(query.get(name, least)) for name, least in (("startDate", 0), ("skip", 0), ("take", 50))
            )
            found = [one.shown() for one in self.invoices.values() if one.created_s >= since]
            return 200, found[skip : skip + take]
        invoice = self.invoices.get(rest[0])
        if invoice is None:
            return 404, {"code": "invoice-not-found", "message": "The invoice was not found"}
        if rest[1:] == ["payment-methods"]:
            return 200, [invoice.method_shown(only_accounted=query.get("onlyAccountedPayments", "true") != "false")]
        return 200, invoice.shown()

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        if not set(asked["checkout"]["paymentMethods"]) <= self.methods:
            return 400, [{"path": "checkout.paymentMethods", "message": "Payment method unavailable"}]
        invoice = FakeInvoice(asked, self.rate, int(self.now_s()))
        self.invoices[invoice.id] = invoice
        self._tell("InvoiceCreated", invoice)
        return 200, invoice.shown()

    def pay(
        self, invoice: FakeInvoice, coins: Decimal | str | None = None, *, vout: int = 0, tx: str = ""
    ) -> FakePayment:
        """Pay an invoice: all of it, or so many coins. By Lightning that settles at once."""
        lightning = invoice.method == "BTC-LN"
        tx = tx or secrets.token_hex(32)
        value = Decimal(coins) if coins is not None else invoice.total
        status: Status = "Settled" if lightning else "Processing"
        payment_id = tx if lightning else f"{tx}-{vout}"
        payment = FakePayment(payment_id, value, status, int(self.now_s()), invoice.destination)
        invoice.payments.append(payment)
        before = invoice.status
        invoice.count()
        self._tell_payment("InvoiceReceivedPayment", invoice, payment)
        if before == "New" and invoice.status in {"Processing", "Settled"}:
            self._tell("InvoiceProcessing", invoice, overPaid=invoice.additional == "PaidOver")
        if lightning:
            self._told_settled(invoice, payment, before)
        return payment

    def settle(self, invoice: FakeInvoice, payment: FakePayment) -> None:
        """Confirm a payment as deep as the invoice asks for."""
        before, payment.status = invoice.status, "Settled"
        invoice.count()
        self._told_settled(invoice, payment, before)

    def _told_settled(self, invoice: FakeInvoice, payment: FakePayment, before: str) -> None:
        self._tell_payment("InvoicePaymentSettled", invoice, payment)
        if before != "Settled" and invoice.status == "Settled":
            self._tell("InvoiceSettled", invoice, manuallyMarked=False, overPaid=invoice.additional == "PaidOver")

    def drop(self, invoice: FakeInvoice, payment: FakePayment) -> None:
        """Have a payment replaced by another one elsewhere: it counts no more."""
        payment.status = "Invalid"
        invoice.count()

    def expire(self, invoice: FakeInvoice) -> None:
        """Let its time be over."""
        invoice.expires_s = int(self.now_s()) - 1
        invoice.status = "Expired"
        invoice.count()
        self._tell("InvoiceExpired", invoice, partiallyPaid=invoice.additional == "PaidPartial")

    def mark_settled(self, invoice: FakeInvoice) -> None:
        """Have its owner press the button."""
        invoice.status, invoice.additional = "Settled", "Marked"
        self._tell("InvoiceSettled", invoice, manuallyMarked=True, overPaid=False)

    def _tell_payment(self, kind: str, invoice: FakeInvoice, payment: FakePayment) -> None:
        late = invoice.status == "Expired"
        self._tell(kind, invoice, afterExpiration=late, paymentMethodId=invoice.method, payment=payment.shown())

    def _tell(self, kind: str, invoice: FakeInvoice, **more: Any) -> None:
        about = {"storeId": STORE, "invoiceId": invoice.id, "metadata": invoice.asked["metadata"]}
        self.waiting.append({"type": kind, **about, **more})

    async def deliver(self, event: Mapping[str, Any] | None = None) -> list[int]:
        """Send what waits, or one event; answers the status of every try, 0 for no answer."""
        events = [dict(event)] if event is not None else self.waiting
        if event is None:
            self.waiting = []
        statuses: list[int] = []
        for one in events:
            first = ""
            for _ in range(_TRIES):
                delivery = secrets.token_urlsafe(16)
                first = first or delivery
                body = self.body(one, delivery, first)
                status, _ = await self.send(body, self.sign(body))
                statuses.append(status)
                if status and status < 500 and status not in _AGAIN:
                    break
        return statuses

    def body(self, event: Mapping[str, Any], delivery: str, first: str = "") -> bytes:
        """Write what is sent of an event."""
        first = first or delivery
        envelope = {
            "deliveryId": delivery,
            "webhookId": "hook1",
            "originalDeliveryId": first,
            "isRedelivery": first != delivery,
            "timestamp": int(self.now_s()),
        }
        return json.dumps({**envelope, **event}).encode()

    def sign(self, body: bytes) -> bytes:
        return b"sha256=" + hmac.new(self.secret.encode(), body, hashlib.sha256).hexdigest().encode()

    async def send(self, body: bytes, signature: bytes | None) -> tuple[int, str]:
        """Send one webhook; answers status and words, 0 for no answer."""
        origin = read_origin(self.hook)
        client = HttpClient(origin, connect_s=5, connections=1)
        headers = [(b"content-type", b"application/json; charset=utf-8"), (b"user-agent", b"BTCPayServer/2.4.1")]
        headers += [] if signature is None else [(b"btcpay-sig", signature)]
        try:
            answer = await client.request("POST", "", headers, body, first_byte_s=10)
            return answer.status, (await answer.read(1 << 20)).decode()
        except UpstreamError:
            return 0, ""
        finally:
            await client.close()


@asynccontextmanager
async def serving_btcpay(now_s: Callable[[], float] = time.time) -> AsyncIterator[FakeBtcpay]:
    """Serve one on loopback; `url` is what the settings need."""
    fake = FakeBtcpay(now_s)
    server = HttpServer(fake.serve, on_bad_request=lambda exchange, _: exchange.respond(400, [], b""))
    fake.url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
    try:
        yield fake
    finally:
        await server.close(1)
        await server.shut()
