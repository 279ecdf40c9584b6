"""Running the watchers: each at its own pace, and how each is, written down for pages, metrics and the offer."""

from collections.abc import Callable
from typing import Final

import msgspec

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble, WrongChain
from farebox.payments.incidents import opened
from farebox.payments.rails import Watcher
from farebox.store.protocol import Statement, Store

BEHIND_US: Final = 10 * 60 * US_PER_S
"""A watcher that has not got through for so long is behind: what it watches is not offered, and an incident opens."""
_WELL: Final = (
    "INSERT INTO watcher (name, height, block, tip_at, looked_at, tried_at) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (name) DO UPDATE SET height = excluded.height, block = excluded.block, tip_at = excluded.tip_at, "
    "looked_at = excluded.looked_at, tried_at = excluded.tried_at, error = NULL"
)
_ILL: Final = (
    "INSERT INTO watcher (name, tried_at, error) VALUES (?, ?, ?) "
    "ON CONFLICT (name) DO UPDATE SET tried_at = excluded.tried_at, error = excluded.error"
)


class Health(msgspec.Struct, frozen=True):
    """How a watcher is. Moments are None until it has got through for the first time."""

    name: str
    height: int | None
    block: str | None
    tip_at_us: int | None
    looked_at_us: int | None
    tried_at_us: int | None
    error: str | None

    def is_behind(self, now_us: int) -> bool:
        """Whether what it watches is not to be offered."""
        return self.looked_at_us is None or now_us - self.looked_at_us > BEHIND_US


class Rounds:
    """Lets one watcher look, and writes down how it went."""

    def __init__(self, store: Store, watcher: Watcher, warn: Callable[..., object]) -> None:
        self._store = store
        self.watcher = watcher
        self._warn = warn
        self._failing = False

    async def go(self, now_us: int) -> None:
        """Look once. Trouble with the other side is written down and told in the log once; the next look tries again.

        Raises what is wrong with the books.
        """
        name = self.watcher.name
        try:
            tip = await self.watcher.look(now_us)
        except RailTrouble as trouble:
            await self._failed(trouble, now_us)
            return
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as nonsense:
            # nobody had thought that the other side might say such a thing: those who look on have to know as well
            await self._failed(RailTrouble(f"{type(nonsense).__name__}: {nonsense}"), now_us)
            raise
        if self._failing:
            self._warn("watcher_well_again", rail=name)
        self._failing = False
        await self._store.write([(_WELL, (name, tip.height, tip.block, tip.at_us, now_us, now_us))])

    async def _failed(self, trouble: RailTrouble, now_us: int) -> None:
        name = self.watcher.name
        if not self._failing:
            self._warn("watcher_failing", rail=name, error=str(trouble))
        self._failing = True
        await self._store.write([(_ILL, (name, now_us, str(trouble)[:500])), *await self._incident(trouble, now_us)])

    async def _incident(self, trouble: RailTrouble, now_us: int) -> list[Statement]:
        """Open an incident where waiting does not help, or has not helped for long."""
        name = self.watcher.name
        if isinstance(trouble, WrongChain):
            return [opened("wrong_chain", name, str(trouble), now_us)]
        rows = await self._store.fetch("SELECT looked_at FROM watcher WHERE name = ?", (name,))
        if rows and rows[0][0] is not None and now_us - rows[0][0] > BEHIND_US:
            words = f"{name} has not been watched for more than 10 minutes: {trouble}"
            return [opened("watcher_behind", name, words, now_us)]
        return []


async def health_of(store: Store) -> list[Health]:
    """Tell how all watchers are."""
    rows = await store.fetch(
        "SELECT name, height, block, tip_at, looked_at, tried_at, error FROM watcher ORDER BY name"
    )
    return [Health(*row) for row in rows]
