"""The narrow waist: batches of commands in, answers out. Everything above speaks to a database only through this."""

from collections.abc import Sequence
from typing import Any, Protocol

from farebox.billing.ledger import Answer, Command

Row = tuple[Any, ...]
Statement = tuple[str, tuple[Any, ...]]
"""SQL with `?` placeholders, and its values: one text for every store."""


class Store(Protocol):
    """A database that keeps the books. Every method may wait; none holds a transaction open across a wait."""

    async def apply(self, batch: Sequence[Command]) -> list[Answer | Exception]:
        """Apply commands in one durable transaction: settles, transfers, resizes, then admits.

        Answers come in the order of the commands, after the commit. A command that breaks an invariant answers with
        its exception and leaves the others alone. Applying a batch again changes nothing.
        Raises StoreUnavailable when durability cannot be promised now: nothing of the batch was done, or, if the
        commit's fate is unknown, delivering it again will tell.
        """
        ...

    async def fetch(self, sql: str, params: tuple[Any, ...] = ()) -> list[Row]:
        """Read. Sees every write acknowledged before the call."""
        ...

    async def write(self, statements: Sequence[Statement]) -> list[int]:
        """Run control-plane statements in one durable transaction; answers the rows each one changed.

        Never touches money: balances move by `apply` alone. Raises StoreConflict when a unique value is taken.
        """
        ...

    async def is_served(self) -> bool:
        """Tell whether a serving process has the books open now: holds of any other are nobody's."""
        ...

    async def close(self) -> None:
        """Finish what was handed in, then close."""
        ...
