"""The narrow waist: batches of commands in, answers out. Everything above speaks to a database only through this."""

from collections.abc import Sequence
from typing import Any, Protocol

from farebox.billing.ledger import Answer, Command
from farebox.store.marks import Marks

Row = tuple[Any, ...]
Statement = tuple[str, tuple[Any, ...]]
"""SQL with `?` placeholders, and its values: one text for every store.

Both know the functions `now_us()`, and `unseen_since_us()`: when the oldest transaction began that has written what
nobody sees yet, NULL where there is none.
"""


class Reading(Protocol):
    """What can be read of a database: enough to prove the books in it."""

    shared: bool
    """Whether other processes may serve the same books; if not, holds of another run are nobody's."""

    async def fetch(self, sql: str, params: tuple[Any, ...] = (), *, patience_s: float | None = None) -> list[Row]:
        """Read. Sees every write acknowledged before the call.

        Raises StoreUnavailable, at the latest after `patience_s` where a caller cannot wait as long as the store would.
        """
        ...

    async def is_served(self) -> bool:
        """Tell whether a serving process has the books open now."""
        ...

    async def check_itself(self) -> list[tuple[str, int, list[str]]]:
        """Let the database check itself: name of the check, what was looked at, and what is wrong, in words."""
        ...


class Store(Reading, Protocol):
    """A database that keeps the books. Every method may wait; none holds a transaction open across a wait."""

    run_id: int
    """The run of this process, written into every hold it takes."""
    marks: Marks | None
    """What processes of one machine know of each other, where they keep no leases: SQLite's, while it serves."""
    lanes: int
    """How many batches can be under way at once, as long as no account is in two of them."""

    async def apply(self, batch: Sequence[Command], lane: int = 0) -> list[Answer | Exception]:
        """Apply commands in one durable transaction, kind by kind in the order of billing.ledger.ORDER.

        Answers come in the order of the commands, after the commit. A command that breaks an invariant answers with
        its exception and leaves the others alone. Applying a batch again changes nothing.
        Raises StoreUnavailable when durability cannot be promised now: nothing of the batch was done, or, if the
        commit's fate is unknown, delivering it again will tell.
        """
        ...

    async def write(self, statements: Sequence[Statement], *, patience_s: float | None = None) -> list[int]:
        """Run control-plane statements in one durable transaction; answers the rows each one changed.

        Never touches money: balances move by `apply` alone. Raises StoreConflict when a unique value is taken, and
        StoreUnavailable, as `fetch` does; what became of the statements is then unknown.
        """
        ...

    async def changed_elsewhere(self) -> bool:
        """Tell whether keys, plans or the state of accounts may have been changed since this was last asked."""
        ...

    def copy_lock(self) -> int | None:
        """Give a file descriptor that holds the lock of a serving process, for one that takes over; None: no lock."""
        ...

    async def close(self) -> None:
        """Finish what was handed in, then close."""
        ...
