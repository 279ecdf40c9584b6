"""BTCPay Server's Greenfield API, as much of it as top-ups need (docs.btcpayserver.org/API/Greenfield/v1, 2.x).

Fields that only describe may be missing or new. What money depends on, an id, an amount, a rate, the state of a
payment, is read to the letter, and whatever else stands there is a RailTrouble.
"""

import asyncio
import re
import ssl
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble
from farebox.http.client import HttpClient, read_origin
from farebox.http.failures import UpstreamError
from farebox.money import NANOS_PER_USD
from farebox.payments.settings import BtcpaySettings
from farebox.payments.uris import SATOSHIS

CHAIN: Final = "BTC-CHAIN"
LIGHTNING: Final = "BTC-LN"
LNURL: Final = "BTC-LNURL"
METHODS: Final = {
    CHAIN: CHAIN,
    LIGHTNING: LIGHTNING,
    LNURL: LNURL,
    "BTC": CHAIN,
    "BTC-LightningNetwork": LIGHTNING,
    "BTC-LightningLike": LIGHTNING,
    "BTC-LNURLPAY": LNURL,
}
"""Payment methods by all names that servers give them: a payment stays the same one when its server is updated."""
MONITORED_MINUTES: Final = 30 * 24 * 60
"""How long after its end an invoice is still watched by the server: late money is money."""
REFERENCE: Final = re.compile(r"[0-9A-Za-z_-]{1,64}", re.ASCII)
"""What the id of an invoice looks like."""

SpeedPolicy = Literal["HighSpeed", "MediumSpeed", "LowMediumSpeed", "LowSpeed"]
PaidStatus = Literal["Processing", "Settled", "Invalid"]

_MOST_BYTES: Final = 4 * 2**20
_MOST_COINS: Final = 21_000_000
_MOST_RATE: Final = 10**12
_WORDS: Final = 300
_LATEST_S: Final = 10**11
"""More seconds than this are milliseconds."""
_PAGE: Final = 100
_PLAIN: Final = re.compile(r"\d{1,20}(\.\d{1,40})?", re.ASCII)
_PAYMENT_ID: Final = re.compile(r"[!-~]{1,200}", re.ASCII)
_TX_OUTPUT: Final = re.compile(r"([0-9a-f]{64})-(\d{1,9})", re.ASCII)
_DECODER: Final = msgspec.json.Decoder(Any, float_hook=Decimal)


class Invoice(msgspec.Struct, frozen=True):
    """One invoice. `status` and `additional` say how the server sees it: what came is told by its methods alone."""

    id: str
    status: str
    additional: str
    order_id: str

    @property
    def by_hand(self) -> bool:
        """Whether somebody has marked it as settled."""
        return self.status == "Settled" and self.additional == "Marked"


class Paid(msgspec.Struct, frozen=True):
    """One payment to an invoice. Of one by Lightning, what is less than a satoshi is left off."""

    method: str
    id: str
    satoshis: int
    status: PaidStatus
    received_us: int

    @property
    def tx(self) -> str:
        """Its transaction; of Lightning, its payment hash."""
        read = _TX_OUTPUT.fullmatch(self.id)
        return read[1] if read else self.id


class Method(msgspec.Struct, frozen=True):
    """One way to pay an invoice, what is still due by it, and what came by it."""

    id: str
    destination: str
    link: str
    rate_nanos: int
    """Nano-dollars for one bitcoin, as long as the invoice lasts."""
    due_satoshis: int
    payments: tuple[Paid, ...]


class WebhookSeen(msgspec.Struct, frozen=True):
    """A webhook of the store. No `events`: it sends all."""

    url: str
    enabled: bool
    redelivers: bool
    events: frozenset[str]


class Denied(RailTrouble):
    """The server refuses the key, or what the key asks for."""


class OddAnswer(RailTrouble):
    """The server answers, but nobody can go by what it says."""


class BtcpayApi:
    """One store of one server."""

    def __init__(self, settings: BtcpaySettings, *, within_s: float = 15.0) -> None:
        """Raises ValueError for what is no http(s) URL."""
        self._origin = read_origin(settings.url)
        self.store = settings.store
        self._base = f"/api/v1/stores/{quote(settings.store, safe='')}"
        self._headers = [
            (b"authorization", b"token " + settings.api_key.reveal().encode("utf-8", "replace")),
            (b"content-type", b"application/json"),
            (b"accept", b"application/json"),
            (b"user-agent", b"Farebox"),
        ]
        self._within_s = within_s
        self._client: HttpClient | None = None

    @property
    def place(self) -> str:
        """Where it is."""
        return f"{self._origin.scheme}://{self._origin.authority.decode()}{self._origin.path}"

    async def create_invoice(
        self, amount_nanos: int, order_id: str, method: str, *, lasts_minutes: int, speed: SpeedPolicy
    ) -> Invoice:
        """Ask for an amount in dollars, rounded up to a cent, by one method alone. Raises RailTrouble."""
        cents = -(-amount_nanos * 100 // NANOS_PER_USD)
        wanted = {
            "amount": f"{cents // 100}.{cents % 100:02d}",
            "currency": "USD",
            "metadata": {"orderId": order_id},
            "checkout": {
                "paymentMethods": [method],
                "defaultPaymentMethod": method,
                "lazyPaymentMethods": False,
                "expirationMinutes": lasts_minutes,
                "monitoringMinutes": MONITORED_MINUTES,
                "speedPolicy": speed,
                "paymentTolerance": 0,
            },
        }
        told = await self._ask("POST", f"{self._base}/invoices", wanted)
        invoice = self._invoice(told)
        if told.get("storeId", self.store) != self.store or told.get("currency", "USD") != "USD":
            raise self._odd(f"invoice {invoice.id} is of another store or currency than was asked for")
        if "amount" in told and self._decimal(told, "amount", _MOST_RATE) * 100 != cents:
            raise self._odd(f"invoice {invoice.id} is about another amount than was asked for")
        return invoice

    async def invoice(self, invoice_id: str) -> Invoice | None:
        """Find an invoice; None where the store has none of that id. Raises RailTrouble."""
        told = await self._ask("GET", f"{self._base}/invoices/{_named(invoice_id)}", missing=True)
        if told is None:
            return None
        invoice = self._invoice(told)
        if invoice.id != invoice_id or told.get("storeId", self.store) != self.store:
            raise self._odd(f"asked about invoice {invoice_id}, it tells of another")
        return invoice

    async def methods(self, invoice_id: str) -> list[Method] | None:
        """Give the ways to pay an invoice with all payments, those too that do not count any more.

        None where the store has no such invoice. Raises RailTrouble.
        """
        path = f"{self._base}/invoices/{_named(invoice_id)}/payment-methods?onlyAccountedPayments=false"
        told = await self._ask("GET", path, missing=True)
        return None if told is None else [self._method(one) for one in _objects(told, self)]

    async def invoices_since(self, since_s: int, *, most: int = 10_000) -> list[Invoice]:
        """Give the invoices that were made since a moment, at most so many. Raises RailTrouble."""
        found: list[Invoice] = []
        while len(found) < most:
            query = f"startDate={since_s}&skip={len(found)}&take={_PAGE}"
            told = await self._ask("GET", f"{self._base}/invoices?{query}")
            page = [self._invoice(one) for one in _objects(told, self)]
            found += page
            if len(page) < _PAGE:
                break
        return found[:most]

    async def permissions(self) -> frozenset[str]:
        """Give what the key may do in the store. Raises RailTrouble, Denied where the server does not know the key."""
        told = await self._ask("GET", "/api/v1/api-keys/current")
        granted = told.get("permissions") if isinstance(told, dict) else None
        if not isinstance(granted, list):
            raise self._odd("it does not tell what the key may do")
        ours = (str(one).partition(":") for one in granted)
        return frozenset(name for name, _, store in ours if store in {"", self.store})

    async def webhooks(self) -> list[WebhookSeen] | None:
        """Give the store's webhooks; None where the key may not see them. Raises RailTrouble."""
        try:
            told = await self._ask("GET", f"{self._base}/webhooks")
        except Denied:
            return None
        return [_webhook(one) for one in _objects(told, self)]

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _ask(self, method: str, path: str, body: object = None, *, missing: bool = False) -> Any:
        """Send one request; answers its JSON, with `missing` None for a 404."""
        sent = b"" if body is None else msgspec.json.encode(body)
        try:
            async with asyncio.timeout(self._within_s):
                client = self._client = self._client or await self._open()
                answer = await client.request(method, path, self._headers, sent, first_byte_s=self._within_s)
                text = await answer.read(_MOST_BYTES)
        except TimeoutError as error:
            raise RailTrouble(f"BTCPay Server at {self.place} took longer than {self._within_s:g} s") from error
        except UpstreamError as error:
            raise RailTrouble(f"BTCPay Server at {self.place} cannot be asked: {error}") from error
        if answer.status == 404 and missing:
            return None
        if answer.status in {401, 403}:
            words = {401: "does not know the API key", 403: "does not let the API key do that"}[answer.status]
            raise Denied(f"BTCPay Server at {self.place} {words} ({path.partition('?')[0]}){_said(text)}")
        if answer.status not in {200, 201}:
            raise RailTrouble(f"BTCPay Server at {self.place} answers with status {answer.status}{_said(text)}")
        try:
            return _DECODER.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._odd("its answer is no JSON") from error

    async def _open(self) -> HttpClient:
        tls = await asyncio.to_thread(ssl.create_default_context) if self._origin.scheme == "https" else None
        return HttpClient(self._origin, connect_s=self._within_s, connections=8, stall_s=self._within_s, tls=tls)

    def _invoice(self, told: Any) -> Invoice:
        invoice_id = told.get("id") if isinstance(told, dict) else None
        if not isinstance(invoice_id, str) or not REFERENCE.fullmatch(invoice_id):
            raise self._odd("an invoice has no id")
        metadata = told.get("metadata")
        order = metadata.get("orderId") if isinstance(metadata, dict) else None
        status, additional = str(told.get("status") or ""), str(told.get("additionalStatus") or "None")
        return Invoice(invoice_id, status, additional, str(order or ""))

    def _method(self, told: dict[str, Any]) -> Method:
        name = str(told.get("paymentMethodId") or told.get("paymentMethod") or "")
        method = METHODS.get(name, name)
        listed = told.get("payments")
        if method not in METHODS and not listed:
            return Method(method, "", "", 0, 0, ())
        if method not in METHODS:
            raise self._odd(f"an invoice was paid by {_short(name)}, which is not Bitcoin")
        rate = self._decimal(told, "rate", _MOST_RATE)
        due = self._decimal(told, "due", _MOST_COINS, negative=True)
        return Method(
            id=method,
            destination=str(told.get("destination") or ""),
            link=str(told.get("paymentLink") or ""),
            rate_nanos=int((rate * NANOS_PER_USD).to_integral_value(ROUND_FLOOR)),
            due_satoshis=int((due * SATOSHIS).to_integral_value(ROUND_CEILING)),
            payments=tuple(self._paid(one, method) for one in _objects(listed, self)),
        )

    def _paid(self, told: dict[str, Any], method: str) -> Paid:
        payment_id, status = told.get("id"), told.get("status")
        if not isinstance(payment_id, str) or not _PAYMENT_ID.fullmatch(payment_id):
            raise self._odd(f"a payment has no id, got {_short(payment_id)}")
        if status not in {"Processing", "Settled", "Invalid"}:
            raise self._odd(f"payment {payment_id} is in no state that is known: {_short(status)}")
        satoshis = self._decimal(told, "value", _MOST_COINS) * SATOSHIS
        whole = int(satoshis.to_integral_value(ROUND_FLOOR))
        if method == CHAIN and whole != satoshis:
            raise self._odd(f"payment {payment_id} is of a part of a satoshi: {satoshis}")
        return Paid(method, payment_id, whole, status, self._moment(told.get("receivedDate"), payment_id))

    def _decimal(self, told: dict[str, Any], name: str, most: int, *, negative: bool = False) -> Decimal:
        """Read an amount, exactly: a number, or the text of one without an exponent."""
        value = told.get(name)
        text = value if isinstance(value, str) else str(value) if type(value) in {int, Decimal} else ""
        exact = type(value) is Decimal and value.is_finite() and abs(value.adjusted()) <= 40  # 1E-8 is a number too
        if not exact and not _PLAIN.fullmatch(text.removeprefix("-") if negative else text):
            raise self._odd(f"{name} is no amount: {_short(value)}")
        number = Decimal(text)
        if not (-most if negative else 0) <= number <= most:
            raise self._odd(f"{name} cannot be {_short(value)}")
        return number

    def _moment(self, value: Any, payment_id: str) -> int:
        """Read a moment: seconds since 1970, or RFC 3339."""
        if isinstance(value, str) and not value.isdecimal():
            try:
                read = datetime.fromisoformat(value)
            except ValueError:
                read = None
            if read is not None and read.tzinfo is not None:
                return int(read.timestamp()) * US_PER_S
        elif isinstance(value, int | Decimal | str) and not isinstance(value, bool):
            seconds = Decimal(value)
            if 0 < seconds < _LATEST_S:
                return int(seconds * US_PER_S)
        raise self._odd(f"nobody can say when payment {payment_id} came: {_short(value)}")

    def _odd(self, words: str) -> OddAnswer:
        return OddAnswer(f"BTCPay Server at {self.place} answers in no form that is known: {words}")


def _named(invoice_id: str) -> str:
    if not REFERENCE.fullmatch(invoice_id):
        raise RailTrouble(f"no invoice has the id {_short(invoice_id)}")
    return invoice_id


def _objects(told: Any, api: BtcpayApi) -> list[dict[str, Any]]:
    if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
        raise OddAnswer(f"BTCPay Server at {api.place} answers in no form that is known: a list was asked for")
    return told


def _webhook(told: dict[str, Any]) -> WebhookSeen:
    authorized = told.get("authorizedEvents")
    events = authorized if isinstance(authorized, dict) else {}
    named = () if events.get("everything", True) else events.get("specificEvents") or ("",)
    return WebhookSeen(
        url=str(told.get("url") or ""),
        enabled=told.get("enabled", True) is True,
        redelivers=told.get("automaticRedelivery", True) is True,
        events=frozenset(str(one) for one in named),
    )


def _said(text: bytes) -> str:
    """Give what an error says of itself: one object with a message, or a list of them (Greenfield, "Errors")."""
    try:
        told = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    problems = told if isinstance(told, list) else [told]
    words = "; ".join(str(one["message"]) for one in problems if isinstance(one, dict) and one.get("message"))
    return f": {_short(words)}" if words else ""


def _short(value: Any) -> str:
    return "".join(char for char in str(value) if char.isprintable())[:_WORDS]
