"""Passwords: Argon2id in a thread, a few at a time, and what a good one is (OWASP; NIST SP 800-63B-4)."""

import asyncio
import base64
import os
from typing import Final

import argon2

from farebox.errors import InvalidRequest

SHORTEST: Final = 15
SHORTEST_BESIDE_A_FACTOR: Final = 8
LONGEST: Final = 128
_HASHER: Final = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_AT_ONCE: Final = 4
_COMMON: Final = ("password", "passwort", "qwerty", "letmein", "123456", "iloveyou", "correcthorse")


def check_password(password: str, *, email: str, site: str, shortest: int = SHORTEST) -> None:
    """Refuse a password that is easily guessed. Raises InvalidRequest, saying what would do."""
    if not shortest <= len(password) <= LONGEST:
        raise InvalidRequest(f"a password has {shortest} to {LONGEST} characters; a few words with spaces will do well")
    plain = password.casefold()
    known = [*_COMMON, site.casefold(), email.partition("@")[0].casefold()]
    rest = plain
    for word in sorted((word for word in known if len(word) > 2), key=len, reverse=True):
        rest = rest.replace(word, "")
    if len(set(rest)) < 6:
        raise InvalidRequest("this password is too easily guessed: use words that have nothing to do with each other")


class Passwords:
    """Hashes and verifies, off the event loop; a flood of sign-ins waits its turn."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._nobodys = _nobodys()

    async def hash(self, password: str) -> str:
        """Give what is kept of a password."""
        async with self._room:
            return await asyncio.to_thread(_HASHER.hash, password)

    def is_outdated(self, kept: str) -> bool:
        """Tell whether a kept password was hashed with other costs than those of today."""
        return _HASHER.check_needs_rehash(kept)

    async def matches(self, kept: str | None, password: str) -> bool:
        """Tell whether a password is the kept one. For nobody (None) it takes as long, and is false."""
        async with self._room:
            return await asyncio.to_thread(_verify, kept or self._nobodys, password) and kept is not None


def _nobodys() -> str:
    """Make up what would be kept of a password, at today's costs, without the time that hashing one takes.

    The costs are those written in it (PHC string format). No password is known to fit.
    """
    costs = f"m={_HASHER.memory_cost},t={_HASHER.time_cost},p={_HASHER.parallelism}"
    salt, digest = (base64.b64encode(os.urandom(size)).decode().rstrip("=") for size in (16, 32))
    return f"$argon2id$v={argon2.low_level.ARGON2_VERSION}${costs}${salt}${digest}"


def _verify(kept: str, password: str) -> bool:
    try:
        return _HASHER.verify(kept, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
