"""Who comes in when more come than can be served: so many with each turn of the event loop, in their order.

What has been begun is then finished before more is begun, so that a gateway with five times too much to do serves as
much as one with just enough: nobody is refused, each waits for the others before him. How many wait is bounded by the
connections, and one whose client has hung up meanwhile costs nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from farebox.http.exchange import Exchange

PER_TURN: Final = 32
"""A turn of so many new calls takes a few milliseconds: no stream that goes on beside them is held up for longer."""


class Turnstile:
    """Lets exchanges in, at most `per_turn` of them with each turn of the running loop."""

    __slots__ = ("_let_in", "_per_turn", "_room", "_turning", "_waiting")

    def __init__(self, let_in: Callable[[Exchange], None], per_turn: int = PER_TURN) -> None:
        self._let_in = let_in
        self._per_turn = self._room = per_turn
        self._waiting: deque[Exchange] = deque()
        self._turning = False

    def enter(self, exchange: Exchange) -> None:
        """Let one in, now or when it is its turn."""
        if self._room and not self._waiting:
            self._room -= 1
            self._let_in(exchange)
        else:
            self._waiting.append(exchange)
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def let_all_in(self) -> None:
        """Let in everybody who waits, at once: the doors are closed behind them."""
        while self._waiting:
            self._let_in(self._waiting.popleft())

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def _turn(self) -> None:
        room = self._per_turn
        while room and self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.gone:
                room -= 1
                self._let_in(exchange)
        self._room = room
        self._turning = room < self._per_turn
        if self._turning:
            asyncio.get_running_loop().call_soon(self._turn)
