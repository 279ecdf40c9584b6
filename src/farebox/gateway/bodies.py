"""Room for request bodies: they stay in memory until their calls stream, or end, so all of them together are bounded.

A body is counted by the length its head announces, before a byte of it is read.
"""

from typing import Final

from farebox.errors import Overloaded, RateLimited
from farebox.http.exchange import Exchange

_ACCOUNTS_SHARE: Final = 4


class Bodies:
    """The bytes of all bodies in memory, by account. No account takes more than a quarter of the room."""

    def __init__(self, room_bytes: int, largest_bytes: int) -> None:
        self._room = max(room_bytes, largest_bytes)
        self._account_room = max(self._room // _ACCOUNTS_SHARE, largest_bytes)
        self._largest = largest_bytes
        self._taken = 0
        self._taken_by: dict[int, int] = {}

    def take(self, account_id: int, exchange: Exchange) -> int:
        """Take room for a body that is still to come; answers how much, for `give_back`. Raises when there is none."""
        size = self._largest if exchange.content_length is None else min(exchange.content_length, self._largest)
        own = self._taken_by.get(account_id, 0) + size
        if own > self._account_room:
            raise RateLimited(
                f"your calls under way hold more than {self._account_room // 2**20} MiB of request bodies together; "
                "try again when one has ended",
                retry_after_s=1,
            )
        if self._taken + size > self._room:
            raise Overloaded("the gateway has no room for more large requests; try again shortly", retry_after_s=2)
        self._taken += size
        self._taken_by[account_id] = own
        return size

    def give_back(self, account_id: int, size: int) -> None:
        """Give back what was taken, once the call needs it no more."""
        self._taken -= size
        left = self._taken_by.pop(account_id, 0) - size
        if left > 0:
            self._taken_by[account_id] = left
