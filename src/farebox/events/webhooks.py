"""Webhooks: customers' own servers that are told of events, and what is on its way to them.

The form is that of Standard Webhooks (standardwebhooks.com): a message has an id that stays the same however often it
is sent, and is signed with a secret that was shown once. An event is written down together with what it tells of.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from farebox.accounts.sealing import Seals
from farebox.clock import DAY_US, US_PER_S, iso
from farebox.errors import InvalidRequest, NotFound
from farebox.http.errands import read_target
from farebox.ids import new_request_id
from farebox.store.protocol import Statement, Store

EVENTS: Final = {
    "balance.credited": "Money was added to the balance.",
    "balance.low": "The balance fell below the amount set under alerts.",
    "balance.exhausted": "The balance is used up: less than a cent is left.",
    "spend.daily": "The spend of a day (UTC) passed the amount set under alerts.",
    "key.created": "An API key was made.",
    "key.revoked": "An API key was revoked.",
    "session.stopped": "A Claude Code session was stopped: its calls are refused.",
}
"""What a webhook can be told of, in the words of the page and the manual."""
DATA: Final = {
    "balance.credited": ("amount_usd", "balance_usd", "transfer_id"),
    "balance.low": ("balance_usd", "limit_usd"),
    "balance.exhausted": ("balance_usd", "limit_usd"),
    "spend.daily": ("spent_usd", "limit_usd", "balance_usd", "day"),
    "key.created": ("key_id", "name", "hint"),
    "key.revoked": ("key_id", "name", "hint"),
    "session.stopped": ("session",),
}
"""What the `data` of each event has."""
TEST: Final = "webhook.test"
MOST: Final = 10
KEPT_US: Final = 30 * DAY_US
OVERLAP_US: Final = DAY_US
"""How long the secret before a new one still signs, beside it."""
WAITING: Final = 1000
"""Messages that wait for one webhook at most; what happens beyond that it is not told."""
TESTS_WAITING: Final = 10
"""With so many waiting there is nothing to test."""
_WAITING: Final = "(SELECT count(*) FROM delivery d WHERE d.webhook_id = w.id AND d.done_at IS NULL)"
_URL_CHARS: Final = 2000
_SECRET_BYTES: Final = 32
_PREFIX: Final = "whsec_"
_COLUMNS: Final = "id, account_id, url, events, created_at, disabled_at, failures"
_DELIVERY: Final = "d.id, d.webhook_id, d.event, d.body, d.at, d.next_at, d.tries, d.done_at, d.status, d.error"


class Webhook(msgspec.Struct, frozen=True):
    """Where events of an account go."""

    id: int
    account_id: int
    url: str
    wanted: str
    created_at_us: int
    disabled_at_us: int | None
    failures: int
    """Tries that failed since the last one that did not."""

    @property
    def events(self) -> tuple[str, ...]:
        return tuple(self.wanted.split())


class Delivery(msgspec.Struct, frozen=True):
    """One event on its way to one webhook."""

    id: str
    webhook_id: int
    event: str
    body: str
    at_us: int
    next_at_us: int
    tries: int
    done_at_us: int | None
    status: int | None
    error: str | None

    @property
    def state(self) -> str:
        if self.done_at_us is None:
            return "waiting" if not self.tries else "failing"
        return "delivered" if self.error is None else "given up"


class _Secret(msgspec.Struct):
    """What signs, base64; `ends_at` is set once a newer one has taken its place."""

    key: str
    ends_at: int | None = None


class Webhooks:
    """All webhooks, in the store. `https_only`: where only public addresses are told."""

    def __init__(self, store: Store, seals: Seals, *, https_only: bool) -> None:
        self._store = store
        self._seals = seals
        self._https_only = https_only

    async def all_of(self, account_id: int) -> list[Webhook]:
        """Give an account's webhooks, oldest first."""
        rows = await self._store.fetch(
            f"SELECT {_COLUMNS} FROM webhook WHERE account_id = ? ORDER BY id",  # noqa: S608  fixed text
            (account_id,),
        )
        return [Webhook(*row) for row in rows]

    async def find(self, account_id: int, webhook_id: int) -> Webhook:
        """Find one of an account's own webhooks. Raises NotFound."""
        rows = await self._store.fetch(
            f"SELECT {_COLUMNS} FROM webhook WHERE account_id = ? AND id = ?",  # noqa: S608  fixed text
            (account_id, webhook_id),
        )
        if not rows:
            raise NotFound("this account has no webhook of that number")
        return Webhook(*rows[0])

    async def add(self, account_id: int, url: str, events: Sequence[str], now_us: int) -> tuple[Webhook, str]:
        """Add a webhook; answers it with its secret, which is never shown again. Raises InvalidRequest."""
        cleaned, wanted = self._check_url(url), _check_events(events)
        key = secrets.token_bytes(_SECRET_BYTES)
        insert = (
            "INSERT INTO webhook (account_id, url, events, secret, created_at) SELECT ?, ?, ?, ?, ? "
            "WHERE (SELECT count(*) FROM webhook WHERE account_id = ?) < ?"
        )
        sealed = self._seal(account_id, [_Secret(_encode(key))])
        added = await self._store.write([(insert, (account_id, cleaned, wanted, sealed, now_us, account_id, MOST))])
        if not added[0]:
            raise InvalidRequest(f"an account has at most {MOST} webhooks; delete one first")
        rows = await self._store.fetch(f"SELECT {_COLUMNS} FROM webhook WHERE secret = ?", (sealed,))  # noqa: S608
        return Webhook(*rows[0]), _PREFIX + _encode(key)

    async def change(self, webhook: Webhook, url: str, events: Sequence[str]) -> None:
        """Tell another URL, or of other events. Raises InvalidRequest."""
        values = (self._check_url(url), _check_events(events), webhook.id)
        await self._store.write([("UPDATE webhook SET url = ?, events = ? WHERE id = ?", values)])

    async def roll(self, webhook: Webhook, now_us: int) -> str:
        """Give a webhook a new secret, never shown again; the one before signs beside it for a day."""
        key = secrets.token_bytes(_SECRET_BYTES)
        before = await self._secrets(webhook.id, webhook.account_id, now_us)
        old = [_Secret(one.key, one.ends_at or now_us + OVERLAP_US) for one in before[:1]]
        sealed = self._seal(webhook.account_id, [_Secret(_encode(key)), *old])
        await self._store.write([("UPDATE webhook SET secret = ? WHERE id = ?", (sealed, webhook.id))])
        return _PREFIX + _encode(key)

    async def disable(self, webhook: Webhook, now_us: int) -> None:
        """Tell it of nothing more; what was on its way is dropped."""
        await self._store.write(disabling(webhook.id, now_us))

    async def enable(self, webhook: Webhook) -> None:
        """Tell it of events again, from now on."""
        enable = "UPDATE webhook SET disabled_at = NULL, failures = 0 WHERE id = ?"
        await self._store.write([(enable, (webhook.id,))])

    async def delete(self, webhook: Webhook) -> None:
        """Forget a webhook and all that was sent to it."""
        await self._store.write(
            [
                ("DELETE FROM delivery WHERE webhook_id = ?", (webhook.id,)),
                ("DELETE FROM webhook WHERE id = ?", (webhook.id,)),
            ]
        )

    async def test(self, webhook: Webhook, now_us: int) -> None:
        """Send an event that tells of nothing. Raises InvalidRequest while the webhook is disabled."""
        if webhook.disabled_at_us is not None:
            raise InvalidRequest("this webhook is disabled: enable it first")
        insert = (
            "INSERT INTO delivery (id, webhook_id, event, body, at, next_at) "  # noqa: S608  fixed texts
            "SELECT ?, w.id, ?, ?, ?, ? FROM webhook w "
            f"WHERE w.id = ? AND {_WAITING} < ?"
        )
        body = write_event(TEST, {"webhook_id": webhook.id}, now_us)
        values = (_new_id(now_us), TEST, body, now_us, now_us, webhook.id, TESTS_WAITING)
        if not (await self._store.write([(insert, values)]))[0]:
            raise InvalidRequest("messages are waiting to be sent to this webhook already: see what becomes of them")

    async def deliveries(self, webhook: Webhook, limit: int) -> list[Delivery]:
        """Give what was last sent to a webhook, or is to be, newest first."""
        rows = await self._store.fetch(
            f"SELECT {_DELIVERY} FROM delivery d WHERE d.webhook_id = ? ORDER BY d.at DESC, d.id DESC LIMIT ?",  # noqa: S608
            (webhook.id, limit),
        )
        return [Delivery(*row) for row in rows]

    async def send_again(self, webhook: Webhook, delivery_id: str, now_us: int) -> None:
        """Try a delivery once more, now, whatever has become of it. Raises NotFound and InvalidRequest."""
        if webhook.disabled_at_us is not None:
            raise InvalidRequest("this webhook is disabled: enable it first")
        again = "UPDATE delivery SET next_at = ?, done_at = NULL, status = NULL WHERE id = ? AND webhook_id = ?"
        if not (await self._store.write([(again, (now_us, delivery_id, webhook.id))]))[0]:
            raise NotFound("this webhook has no delivery of that id")

    async def sign(self, webhook_id: int, account_id: int, message_id: str, body: str, now_us: int) -> dict[str, str]:
        """Make the headers that prove where a message comes from, by every secret that is in force."""
        at_s = now_us // US_PER_S
        keys = [base64.b64decode(one.key) for one in await self._secrets(webhook_id, account_id, now_us)]
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": " ".join(sign(key, message_id, at_s, body) for key in keys),
        }

    async def _secrets(self, webhook_id: int, account_id: int, now_us: int) -> list[_Secret]:
        rows = await self._store.fetch("SELECT secret FROM webhook WHERE id = ?", (webhook_id,))
        if not rows:
            return []
        kept = msgspec.json.decode(self._seals.open_sealed(bytes(rows[0][0]), _about(account_id)), type=list[_Secret])
        return [one for one in kept if one.ends_at is None or now_us < one.ends_at]

    def _seal(self, account_id: int, kept: list[_Secret]) -> bytes:
        return self._seals.seal(msgspec.json.encode(kept), _about(account_id))

    def _check_url(self, text: str) -> str:
        url = text.strip()
        try:
            origin, _ = read_target(url)
        except ValueError as error:
            raise InvalidRequest(f"a webhook's URL looks like https://example.com/farebox, got {url[:80]!r}") from error
        if len(url) > _URL_CHARS:
            raise InvalidRequest(f"a webhook's URL has at most {_URL_CHARS} characters")
        if self._https_only and origin.scheme != "https":
            raise InvalidRequest(
                f"a webhook's URL begins with https://, got {url[:80]!r}; "
                "only the operator can allow others, by [webhooks] allow_private"
            )
        return url


def event(account_id: int, name: str, data: dict[str, Any], now_us: int, *, once: str = "") -> Statement:
    """Make the statement that tells an account's webhooks of an event, to be written with what it tells of.

    With `once`, a text that is the event's own, writing it again tells nobody twice.
    """
    if set(data) != set(DATA[name]):
        raise ValueError(f"{name} has {', '.join(DATA[name])}, got {', '.join(data)}")
    message_id = f"msg_{hashlib.sha256(f'{account_id}:{name}:{once}'.encode()).hexdigest()[:32]}" if once else None
    insert = (
        "INSERT INTO delivery (id, webhook_id, event, body, at, next_at) "  # noqa: S608  fixed texts
        "SELECT CAST(? AS TEXT) || '_' || CAST(w.id AS TEXT), w.id, ?, ?, ?, ? FROM webhook w "
        "WHERE w.account_id = ? AND w.disabled_at IS NULL AND ' ' || w.events || ' ' LIKE ? "
        f"AND {_WAITING} < ? ON CONFLICT (id) DO NOTHING"
    )
    body = write_event(name, data, now_us)
    return insert, (message_id or _new_id(now_us), name, body, now_us, now_us, account_id, f"% {name} %", WAITING)


def write_event(name: str, data: dict[str, Any], now_us: int) -> str:
    """Write the body of a message."""
    return msgspec.json.encode({"type": name, "timestamp": iso(now_us), "data": data}).decode()


def sign(key: bytes, message_id: str, at_s: int, body: str) -> str:
    """Sign a message: version 1 of Standard Webhooks, HMAC-SHA256 over id, time and body."""
    signed = hmac.digest(key, f"{message_id}.{at_s}.{body}".encode(), "sha256")
    return f"v1,{_encode(signed)}"


def disabling(webhook_id: int, now_us: int) -> list[Statement]:
    """Make the statements that disable a webhook and drop what was on its way to it."""
    drop = "UPDATE delivery SET done_at = ?, error = ? WHERE webhook_id = ? AND done_at IS NULL"
    return [
        ("UPDATE webhook SET disabled_at = ? WHERE id = ? AND disabled_at IS NULL", (now_us, webhook_id)),
        (drop, (now_us, "the webhook was disabled", webhook_id)),
    ]


def _check_events(names: Sequence[str]) -> str:
    unknown = [name for name in names if name not in EVENTS]
    if unknown or not names:
        raise InvalidRequest(f"choose at least one event of {', '.join(EVENTS)}")
    return " ".join(name for name in EVENTS if name in names)


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _new_id(now_us: int) -> str:
    return f"msg_{new_request_id(now_us).hex()}"


def _about(account_id: int) -> str:
    return f"a webhook of account {account_id}"
