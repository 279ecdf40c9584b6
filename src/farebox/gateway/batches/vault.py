"""How the contents of a batch that Farebox runs itself are kept: so that what is at rest here reads none of it.

Each batch has a random key, and is sealed under it (AES-256-GCM). That key is kept wrapped under another one, derived
(HKDF-SHA256, RFC 5869) from the API key that made the batch, of which the database has only a hash (promise 9).
"""

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


def new_key() -> bytes:
    """Make the key of a batch."""
    return secrets.token_bytes(_KEY_BYTES)


def wrap(key: bytes, api_key: bytes, batch_id: str) -> bytes:
    """Wrap the key of a batch for whoever has the API key."""
    return seal(key, _wrapping_key(api_key, batch_id), batch_id)


def unwrap(wrapped: bytes, api_key: bytes, batch_id: str) -> bytes | None:
    """Give the key of a batch; None when another API key made it."""
    try:
        return open_sealed(wrapped, _wrapping_key(api_key, batch_id), batch_id)
    except InvalidTag:
        return None


def seal(text: bytes, key: bytes, about: str) -> bytes:
    """Seal a text under the key of its batch, for the place that `about` names."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, about.encode())


def open_sealed(sealed: bytes, key: bytes, about: str) -> bytes:
    """Open what `seal` made. Raises InvalidTag for anything else."""
    return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.encode())


def _wrapping_key(api_key: bytes, batch_id: str) -> bytes:
    derive = HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=batch_id.encode(), info=b"farebox batch")
    return derive.derive(api_key)
