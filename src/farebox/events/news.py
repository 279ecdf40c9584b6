"""News of single happenings: what is written beside them, so that they are told by mail and to webhooks."""

from typing import Final

from farebox.accounts.accounts import Account
from farebox.accounts.keys import Key
from farebox.accounts.mail import letter
from farebox.events.alerts import USED_UP_NANOS
from farebox.events.webhooks import event
from farebox.money import decimal_usd, format_usd
from farebox.store.protocol import Statement

_FIRST_ALERT: Final = (
    "INSERT INTO alert (account_id, kind, at_nanos) SELECT id, 'used_up', ? FROM account "
    "WHERE id = ? AND topped_up_nanos <= ? ON CONFLICT (account_id, kind) DO NOTHING"
)


def tell_of_credit(account: Account, amount_nanos: int, transfer_id: str, now_us: int) -> list[Statement]:
    """Make the statements that tell webhooks of money that has come in. `account` is as it is with it.

    To be written once the transfer is posted; however often, it is told once on the transfer's id. With the first
    money an account also gets the alert that tells when it is used up; who takes that away is not given it again.
    """
    data = {
        "amount_usd": decimal_usd(amount_nanos),
        "balance_usd": decimal_usd(account.balance_nanos),
        "transfer_id": transfer_id,
    }
    return [
        event(account.id, "balance.credited", data, now_us, once=transfer_id),
        (_FIRST_ALERT, (USED_UP_NANOS, account.id, amount_nanos)),
    ]


def mail_of_credit(
    account: Account, amount_nanos: int, transfer_id: str, now_us: int, *, site_name: str, public_url: str
) -> Statement:
    """Make the statement that mails an account's owner about money that has come in."""
    amount = format_usd(amount_nanos)
    body = (
        f"{amount} was added to your balance at {site_name}, which is {format_usd(account.balance_nanos)} now.\n\n"
        f"Reference: {transfer_id}\nEvery movement: {public_url}/dashboard/transactions\n"
    )
    return letter(account.email, f"{amount} was added to your balance at {site_name}", body, now_us)


def tell_of_key_made(key: Key, now_us: int) -> Statement:
    """Make the statement that tells webhooks of a new key."""
    return event(key.account_id, "key.created", _about(key), now_us, once=str(key.id))


def tell_of_key_revoked(key: Key, now_us: int) -> Statement:
    """Make the statement that tells webhooks of a key that works no longer."""
    return event(key.account_id, "key.revoked", _about(key), now_us, once=str(key.id))


def tell_of_session_stopped(account_id: int, session: str, now_us: int) -> Statement:
    """Make the statement that tells webhooks of a Claude Code session whose calls are refused from now on."""
    return event(account_id, "session.stopped", {"session": session}, now_us)


def _about(key: Key) -> dict[str, int | str]:
    return {"key_id": key.id, "name": key.name, "hint": key.hint}
