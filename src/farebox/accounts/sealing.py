"""Sealing: what must be read back, but not by whoever gets hold of a copy of the database alone.

Secrets of second factors, of webhooks and of receipts are kept sealed (AES-256-GCM, NIST SP 800-38D). With a secret in
the configuration they are sealed under it; without one under a key that the database itself keeps, which hides them
from a glance and from nothing more. A value says which of the two it needs, so that setting a secret later breaks
nothing.
"""

import hashlib
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from farebox.errors import FareboxError, StoreConflict
from farebox.secret import Secret
from farebox.store.protocol import Store

_KEPT: Final = "seal"
_KEEP: Final = "INSERT INTO secret (name, value, created_at) VALUES (?, ?, ?)"
_NONCE: Final = 12
_NAME: Final = 4


class Seals:
    """Seals and opens values. `about` binds a value to its place: one copied to another row opens no more."""

    def __init__(self, keys: list[bytes]) -> None:
        self._keys = {hashlib.sha256(b"name" + key).digest()[:_NAME]: AESGCM(key) for key in keys}
        self._newest = next(iter(self._keys))

    @classmethod
    async def open(cls, store: Store, secret: Secret, now_us: int) -> "Seals":
        """Make ready what seals: the configured secret first, if there is one, and the database's own key."""
        kept = await keep_secret(store, _KEPT, secrets.token_bytes(32), now_us)
        configured = [hashlib.sha256(secret.reveal().encode()).digest()] if secret else []
        return cls([*configured, kept])

    def seal(self, value: bytes, about: str) -> bytes:
        """Seal a value."""
        nonce = secrets.token_bytes(_NONCE)
        return self._newest + nonce + self._keys[self._newest].encrypt(nonce, value, about.encode())

    def open_sealed(self, sealed: bytes, about: str) -> bytes:
        """Open a sealed value. Raises FareboxError when it was sealed under a secret that is not configured now."""
        name, nonce, rest = sealed[:_NAME], sealed[_NAME : _NAME + _NONCE], sealed[_NAME + _NONCE :]
        try:
            return self._keys[name].decrypt(nonce, rest, about.encode())
        except (KeyError, InvalidTag) as error:
            raise FareboxError(
                f"{about} was sealed under another secret than the one in [server] secret: configure that one again"
            ) from error


async def keep_secret(store: Store, name: str, fresh: bytes, now_us: int) -> bytes:
    """Give a secret of the service itself; the first one to ask keeps a fresh one."""
    while True:
        rows = await store.fetch("SELECT value FROM secret WHERE name = ?", (name,))
        if rows:
            return bytes(rows[0][0])
        try:
            await store.write([(_KEEP, (name, fresh, now_us))])
        except StoreConflict:  # another process was first
            continue
        return fresh
