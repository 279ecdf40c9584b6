"""Guessing passwords and codes is slow: longer and longer pauses by account, so many tries, and so many new
accounts, in ten minutes by network.

A try is counted before the password is looked at, so that a thousand at once are a thousand tries. Nothing is ever
locked for good, and the way by a mailed link stays open (OWASP, "Authentication Cheat Sheet").
"""

from typing import Final

from farebox.clock import US_PER_S
from farebox.errors import RateLimited
from farebox.store.protocol import Store

FREE: Final = 5
_LONGEST_PAUSE_S: Final = 15 * 60
_FORGOTTEN_S: Final = 24 * 3600
_NETWORK_MOST: Final = 20
_NETWORK_WINDOW_S: Final = 10 * 60
_TURNS: Final = 50


class Guesses:
    """Counts tries in the store, so that all processes count together."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def count(self, email: str, network: str, now_us: int) -> int:
        """Count a try before it is made; answers which one in a row it is for the account.

        Raises RateLimited when it must wait.
        """
        await self._claim(f"network:{network}", now_us)
        return await self._claim(_of_account(email), now_us)

    async def count_sign_up(self, network: str, now_us: int) -> None:
        """Count an account that is asked for. Raises RateLimited when a network has asked for too many."""
        try:
            await self._claim(f"network:sign-up {network}", now_us)
        except RateLimited as error:
            words = f"too many accounts were asked for from your network; try again in {error.retry_after_s} s"
            raise RateLimited(words, retry_after_s=error.retry_after_s) from error

    async def forgive(self, email: str, network: str) -> None:
        """Forget the tries of an account, and the last one of a network, after one that was right."""
        await self._store.write(
            [
                ("DELETE FROM failure WHERE name = ?", (_of_account(email),)),
                ("UPDATE failure SET count = count - 1 WHERE name = ? AND count > 0", (f"network:{network}",)),
            ]
        )

    async def _claim(self, name: str, now_us: int) -> int:
        by_network = name.startswith("network:")
        for _ in range(_TURNS):
            rows = await self._store.fetch("SELECT count, at FROM failure WHERE name = ?", (name,))
            count, at = rows[0] if rows else (0, now_us)
            since_us = max(now_us - at, 0)  # whoever tried in the same moment may have read the clock after us
            wait_s = _pause_s(count, by_network=by_network) - since_us / US_PER_S
            if wait_s > 0:
                raise _too_many(int(wait_s) + 1)
            old = since_us >= (_NETWORK_WINDOW_S if by_network else _FORGOTTEN_S) * US_PER_S
            number = 1 if old else count + 1
            begins_at = at if by_network and not old else at + since_us
            if not rows:
                change = "INSERT INTO failure (name, count, at) VALUES (?, 1, ?) ON CONFLICT (name) DO NOTHING"
                sweep = ("DELETE FROM failure WHERE at < ?", (now_us - 2 * _FORGOTTEN_S * US_PER_S,))
                changed = (await self._store.write([sweep, (change, (name, now_us))]))[1]
            else:  # only if nobody else has tried since: each try gets a number of its own
                change = "UPDATE failure SET count = ?, at = ? WHERE name = ? AND count = ? AND at = ?"
                values = (number, begins_at, name, count, at)
                changed = (await self._store.write([(change, values)]))[0]
            if changed:
                return number
        raise _too_many(1)


def _of_account(email: str) -> str:
    return f"account:{email}"


def _pause_s(count: int, *, by_network: bool) -> float:
    """Give how long the next try waits: after the last one by account, after the first one by network."""
    if by_network:
        return _NETWORK_WINDOW_S if count >= _NETWORK_MOST else 0.0
    return min(2.0 ** min(count - FREE, 20), _LONGEST_PAUSE_S) if count >= FREE else 0.0


def _too_many(seconds: int) -> RateLimited:
    return RateLimited(f"too many wrong tries; try again in {seconds} s", retry_after_s=seconds)
