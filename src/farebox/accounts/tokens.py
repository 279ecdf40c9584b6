"""Links in mails: random, kept as a hash, for one purpose, used once."""

import hashlib
import secrets
from typing import Final, Literal

from farebox.clock import US_PER_S
from farebox.errors import InvalidRequest
from farebox.store.protocol import Statement, Store

Purpose = Literal["verify", "reset", "email"]

LIVES_S: Final = {"verify": 24 * 3600, "reset": 30 * 60, "email": 24 * 3600}
_SWEEP: Final = "DELETE FROM token WHERE ends_at < ?"


def new_token(account_id: int, purpose: Purpose, email: str, now_us: int) -> tuple[str, list[Statement]]:
    """Make what a link carries, and the statements that keep its hash, to be written with the mail."""
    token = secrets.token_urlsafe(32)
    keep = "INSERT INTO token (hash, account_id, purpose, email, ends_at) VALUES (?, ?, ?, ?, ?)"
    ends_at_us = now_us + LIVES_S[purpose] * US_PER_S
    return token, [(_SWEEP, (now_us,)), (keep, (hash_token(token), account_id, purpose, email, ends_at_us))]


async def look_at_token(store: Store, token: str, purpose: Purpose, now_us: int) -> tuple[int, str]:
    """Give account and address of a link without using it up. Raises InvalidRequest for one that works no longer."""
    rows = await store.fetch(
        "SELECT account_id, email FROM token WHERE hash = ? AND purpose = ? AND ends_at > ?",
        (hash_token(token), purpose, now_us),
    )
    if not rows:
        raise _too_late()
    account_id, email = rows[0]
    return account_id, email


async def take_token(store: Store, token: str, purpose: Purpose, now_us: int) -> tuple[int, str]:
    """Use a link up: whoever deletes it may go on. Raises InvalidRequest for one that works no longer."""
    found = await look_at_token(store, token, purpose, now_us)
    taken = await store.write([("DELETE FROM token WHERE hash = ?", (hash_token(token),))])
    if not taken[0]:
        raise _too_late()
    return found


def hash_token(token: str) -> bytes:
    """Give what is kept of a random text that only its owner has."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _too_late() -> InvalidRequest:
    return InvalidRequest("this link works no longer: it was used, or is too old; ask for another one")
