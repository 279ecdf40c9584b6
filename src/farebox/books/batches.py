"""Batches as their customer sees them on a page: how they are, what was held for them and what they came to."""

from typing import Final

import msgspec

from farebox.store.protocol import Reading, Statement, Store

_COLUMNS: Final = (
    "id, state, way, items, succeeded, errored, canceled, expired, held_nanos, charged_nanos, created_at, expires_at, "
    "ended_at, archived_at"
)


class SeenBatch(msgspec.Struct, frozen=True):
    """A batch. `held_nanos` is what was held as it was made; the counts and `charged_nanos` are told once it ended."""

    id: str
    state: str
    way: str
    items: int
    succeeded: int
    errored: int
    canceled: int
    expired: int
    held_nanos: int
    charged_nanos: int
    created_us: int
    expires_us: int
    ended_us: int | None
    archived_us: int | None


async def page_of_batches(store: Reading, account_id: int, before: str, limit: int) -> list[SeenBatch]:
    """Read an account's batches that are older than one, newest first; an empty id begins with the newest."""
    rows = await store.fetch(
        f"SELECT {_COLUMNS} FROM batch WHERE account_id = ? AND state <> 'creating' AND (? = '' OR id < ?) "  # noqa: S608
        "ORDER BY id DESC LIMIT ?",
        (account_id, before, before, limit),
    )
    return [SeenBatch(*row) for row in rows]


def cancelling(account_id: int, batch_id: str, now_us: int) -> Statement:
    """Let nothing more of a batch be begun; whoever works on it sees to the rest."""
    return (
        "UPDATE batch SET state = 'canceling', cancel_at = ? WHERE id = ? AND account_id = ? AND state = 'in_progress'",
        (now_us, batch_id, account_id),
    )


async def cancel_batch(store: Store, account_id: int, batch_id: str, now_us: int) -> bool:
    """Cancel a batch of an account; False when there is none under way."""
    return bool((await store.write([cancelling(account_id, batch_id, now_us)]))[0])
