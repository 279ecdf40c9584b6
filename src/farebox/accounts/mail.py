"""Mail: written to an outbox in the store first, sent from there by a job. Without a mail server it stays there."""

import asyncio
import smtplib
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from typing import Annotated, Any, Final, Literal

import msgspec

from farebox.clock import US_PER_S
from farebox.secret import Secret
from farebox.store.protocol import Statement, Store

_TRIES: Final = 8
_FIRST_PAUSE_S: Final = 30
_AT_ONCE: Final = 20
_TIMEOUT_S: Final = 15.0
_INTO_OUTBOX: Final = "INSERT INTO outbox (at, recipient, subject, body, asked, next_at)"
_UNPROVED: Final = (
    "SELECT 1 FROM account a JOIN credential c ON c.account_id = a.id WHERE a.email = ? AND a.verified_at IS NULL"
)
Log = Callable[..., Any]


class MailSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mail server that takes our mail. Without a host, mail stays in the outbox for the operator to read."""

    host: str = ""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 587
    tls: Literal["starttls", "tls", "off"] = "starttls"
    user: str = ""
    password: Secret = Secret("")
    sender: str = ""


class Letter(msgspec.Struct, frozen=True):
    """One mail."""

    id: int
    at_us: int
    recipient: str
    subject: str
    body: str
    sent_at_us: int | None
    tries: int
    error: str | None


def letter(recipient: str, subject: str, body: str, now_us: int, *, asked: bool = False) -> Statement:
    """Make the statement that puts a mail into the outbox, to be written with what it tells of.

    `asked`: by a form that anybody can send with anybody's address; those are counted. Any other goes to nobody who
    has not proved the address they signed up with: it may be somebody else's, who wants none of it.
    """
    values = (now_us, recipient, subject, body, int(asked), now_us)
    if asked:
        return f"{_INTO_OUTBOX} VALUES (?, ?, ?, ?, ?, ?)", values
    return f"{_INTO_OUTBOX} SELECT ?, ?, ?, ?, ?, ? WHERE NOT EXISTS ({_UNPROVED})", (*values, recipient)


async def mails_asked_for(store: Store, recipient: str, subject: str, since_us: int) -> int:
    """Count the mails of a subject to an address that forms have asked for since a moment."""
    count = "SELECT count(*) FROM outbox WHERE recipient = ? AND at > ? AND asked = 1 AND subject = ?"
    return int((await store.fetch(count, (recipient, since_us, subject)))[0][0])


async def letters(store: Store, limit: int = 100) -> list[Letter]:
    """Give the latest mails, newest first."""
    columns = "id, at, recipient, subject, body, sent_at, tries, error"
    rows = await store.fetch(f"SELECT {columns} FROM outbox ORDER BY id DESC LIMIT ?", (limit,))  # noqa: S608
    return [Letter(*row) for row in rows]


class Postman:
    """Sends what is in the outbox. One process at a time does; a letter sent twice by a crash is better than none."""

    def __init__(self, store: Store, settings: MailSettings, log_error: Log) -> None:
        self._store = store
        self._settings = settings
        self._log_error = log_error

    async def send(self, now_us: int) -> int:
        """Send what is due. Answers how many were sent. Called by a job."""
        if not self._settings.host:
            return 0
        rows = await self._store.fetch(
            "SELECT id, recipient, subject, body, tries FROM outbox "
            "WHERE sent_at IS NULL AND tries < ? AND next_at <= ? ORDER BY id LIMIT ?",
            (_TRIES, now_us, _AT_ONCE),
        )
        sent = 0
        for letter_id, recipient, subject, body, tries in rows:
            try:
                await asyncio.to_thread(_deliver, self._settings, recipient, subject, body)
            except Exception as error:  # noqa: BLE001  whatever is wrong with one letter holds up no other
                self._log_error("mail_not_sent", letter=letter_id, error=f"{type(error).__name__}: {error}"[:200])
                later = now_us + _FIRST_PAUSE_S * 2**tries * US_PER_S
                fail = "UPDATE outbox SET tries = tries + 1, next_at = ?, error = ? WHERE id = ?"
                await self._store.write([(fail, (later, str(error)[:500], letter_id))])
                continue
            done = "UPDATE outbox SET sent_at = ?, tries = tries + 1, error = NULL WHERE id = ?"
            await self._store.write([(done, (now_us, letter_id))])
            sent += 1
        return sent


def _deliver(settings: MailSettings, recipient: str, subject: str, body: str) -> None:
    message = EmailMessage()
    message["From"] = settings.sender
    message["To"] = recipient
    message["Subject"] = subject
    message.set_content(body)
    context = ssl.create_default_context()
    if settings.tls == "tls":
        connection: smtplib.SMTP = smtplib.SMTP_SSL(settings.host, settings.port, timeout=_TIMEOUT_S, context=context)
    else:
        connection = smtplib.SMTP(settings.host, settings.port, timeout=_TIMEOUT_S)
    with connection:
        if settings.tls == "starttls":
            connection.starttls(context=context)
        if settings.user:
            connection.login(settings.user, settings.password.reveal())
        connection.send_message(message, to_addrs=[recipient])  # to nobody else, however the header may be read
