"""Challenges: what a browser is sent away with and must come back with, within minutes, once.

A half-done sign-in is kept as a row: the browser's cookie holds what it is of. A challenge for a passkey is kept by
nobody until it was used: it is sealed, so that looking at a page writes nothing, and bound to the browser it was made
for.
"""

import hashlib
import secrets
from typing import Final

import msgspec

from farebox.accounts.sealing import Seals
from farebox.clock import US_PER_S
from farebox.errors import FareboxError, InvalidRequest, StoreConflict
from farebox.store.protocol import Store

LIVES_S: Final = 10 * 60
_KEEP: Final = "INSERT INTO challenge (hash, account_id, purpose, data, ends_at) VALUES (?, ?, ?, ?, ?)"
_SWEEP: Final = "DELETE FROM challenge WHERE ends_at < ?"
_TOO_LATE: Final = "that took too long, or was sent twice; try again"


class HalfDone(msgspec.Struct, frozen=True):
    """A sign-in whose password was right, and whose second factor is still to come."""

    account_id: int
    wanted: str
    """The page that they came for."""


class Challenges:
    """Gives and takes challenges."""

    def __init__(self, store: Store, seals: Seals) -> None:
        self._store = store
        self._seals = seals

    async def begin(self, half: HalfDone, now_us: int) -> str:
        """Keep a half-done sign-in. Answers what the browser's cookie holds, which is kept nowhere."""
        cookie = secrets.token_urlsafe(32)
        values = (_hash(cookie), half.account_id, "sign_in", half.wanted, now_us + LIVES_S * US_PER_S)
        await self._store.write([(_SWEEP, (now_us,)), (_KEEP, values)])
        return cookie

    async def look(self, cookie: str, now_us: int) -> HalfDone | None:
        """Give the half-done sign-in of a cookie, if there is one."""
        rows = await self._store.fetch(
            "SELECT account_id, data FROM challenge WHERE hash = ? AND purpose = 'sign_in' AND ends_at > ?",
            (_hash(cookie), now_us),
        )
        return HalfDone(*rows[0]) if rows else None

    async def take(self, cookie: str) -> bool:
        """Use a half-done sign-in up: whoever deletes it may come in."""
        return (await self._store.write([("DELETE FROM challenge WHERE hash = ?", (_hash(cookie),))]))[0] > 0

    def give(self, purpose: str, browser: str, now_us: int) -> bytes:
        """Make a challenge for a browser to sign."""
        return self._seals.seal(now_us.to_bytes(8, "big"), _about(purpose, browser))

    async def spend(self, challenge: bytes, purpose: str, browser: str, now_us: int) -> None:
        """Take a challenge back that a browser has signed. Raises InvalidRequest for an old, used or foreign one."""
        try:
            given_at_us = int.from_bytes(self._seals.open_sealed(challenge, _about(purpose, browser)), "big")
        except FareboxError as error:
            raise InvalidRequest(_TOO_LATE) from error
        ends_at_us = given_at_us + LIVES_S * US_PER_S
        if now_us > ends_at_us:
            raise InvalidRequest(_TOO_LATE)
        used = (hashlib.sha256(challenge).digest(), None, purpose, "", ends_at_us)
        try:
            await self._store.write([(_SWEEP, (now_us,)), (_KEEP, used)])
        except StoreConflict as error:
            raise InvalidRequest(_TOO_LATE) from error


def _about(purpose: str, browser: str) -> str:
    return f"the challenge for {purpose} of browser {browser}"


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
