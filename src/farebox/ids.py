"""Identifiers, chosen before the first try so that doing a thing twice is doing it once.

A request id is a UUIDv7 (RFC 9562 5.7): its first 48 bits are its time, so rows land in order.
A key is prefix + 43 base62 characters (256 bits) + 6 base62 characters of CRC-32 over all before it,
GitHub's token layout: typos and leaks are recognised offline.
"""

import hashlib
import os
import secrets
import zlib

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BASE62_SET = frozenset(_BASE62)
_SECRET_CHARS = 43
_CHECK_CHARS = 6
_RANDOM_BITS = (2**12 - 1) << 64 | 2**62 - 1


def new_request_id(now_us: int) -> bytes:
    """Make a UUIDv7 of 16 bytes for a request that begins now."""
    tail = int.from_bytes(os.urandom(10), "big")
    fixed = (now_us // 1000) << 80 | 0x7 << 76 | 0b10 << 62
    return (fixed | tail & _RANDOM_BITS).to_bytes(16, "big")


def began_at_us(request_id: bytes) -> int:
    """Give the moment that a request id was made in, to the millisecond."""
    return int.from_bytes(request_id[:6], "big") * 1000


def show_request_id(request_id: bytes) -> str:
    """Write a request id as customers see it: req_ and 32 hex digits."""
    return "req_" + request_id.hex()


def read_request_id(text: str) -> bytes:
    """Read a request id as `show_request_id` writes it. Raises ValueError for anything else."""
    raw = bytes.fromhex(text.removeprefix("req_"))
    if len(raw) != 16:
        raise ValueError(f"a request id is req_ and 32 hex digits, got {text!r}")
    return raw


def _checksum(text: str) -> str:
    value = zlib.crc32(text.encode())
    digits = []
    for _ in range(_CHECK_CHARS):
        value, digit = divmod(value, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


def new_key(prefix: str) -> str:
    """Make a fresh API key. It is shown once; only `key_hash` of it is kept."""
    body = prefix + "".join(secrets.choice(_BASE62) for _ in range(_SECRET_CHARS))
    return body + _checksum(body)


def key_is_well_formed(key: str, prefix: str) -> bool:
    """Tell whether a text can be a key of ours at all: prefix, length, alphabet and checksum."""
    if len(key) != len(prefix) + _SECRET_CHARS + _CHECK_CHARS or not key.startswith(prefix):
        return False
    if not _BASE62_SET.issuperset(key[len(prefix) :]):
        return False
    return secrets.compare_digest(key[-_CHECK_CHARS:], _checksum(key[:-_CHECK_CHARS]))


def key_hash(key: bytes) -> bytes:
    """Hash a key for storage and look-up. 256 random bits need no slow hash (OWASP ASVS 5 6.5.2)."""
    return hashlib.sha256(key).digest()


def key_hint(key: str, prefix: str) -> str:
    """Show enough of a key to tell it from its siblings: prefix, four characters, the last four."""
    return f"{key[: len(prefix) + 4]}…{key[-4:]}"
