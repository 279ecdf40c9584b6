"""News of single happenings: what is written beside them, so that they are told by mail and to webhooks."""

from farebox.accounts.mail import letter
from farebox.events.webhooks import event
from farebox.money import decimal_usd, format_usd
from farebox.store.protocol import Statement


def tell_of_credit(
    account_id: int,
    email: str,
    amount_nanos: int,
    *,
    balance_nanos: int,
    transfer_id: str,
    site_name: str,
    public_url: str,
    now_us: int,
) -> list[Statement]:
    """Make the statements that tell of money that has come in. `balance_nanos` is the balance after it.

    To be written once a transfer was posted now, and not before. The event goes out once on the transfer's id.
    """
    body = (
        f"{format_usd(amount_nanos)} was added to your balance at {site_name}, which is "
        f"{format_usd(balance_nanos)} now.\n\nReference: {transfer_id}\n"
        f"Every movement: {public_url}/dashboard/transactions\n"
    )
    data = {
        "amount_usd": decimal_usd(amount_nanos),
        "balance_usd": decimal_usd(balance_nanos),
        "transfer_id": transfer_id,
    }
    return [
        letter(email, f"{format_usd(amount_nanos)} added to your balance at {site_name}", body, now_us),
        event(account_id, "balance.credited", data, now_us, once=transfer_id),
    ]


def tell_of_key_made(account_id: int, key_id: int, name: str, hint: str, now_us: int) -> Statement:
    """Make the statement that tells webhooks of a new key."""
    return event(account_id, "key.created", {"key_id": key_id, "name": name, "hint": hint}, now_us)


def tell_of_key_revoked(account_id: int, key_id: int, name: str, hint: str, now_us: int) -> Statement:
    """Make the statement that tells webhooks of a key that works no longer; once on the key."""
    data = {"key_id": key_id, "name": name, "hint": hint}
    return event(account_id, "key.revoked", data, now_us, once=str(key_id))


def tell_of_session_stopped(account_id: int, session: str, now_us: int) -> Statement:
    """Make the statement that tells webhooks of a Claude Code session whose calls are refused from now on."""
    return event(account_id, "session.stopped", {"session": session}, now_us)
