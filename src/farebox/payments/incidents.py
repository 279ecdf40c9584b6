"""Incidents: what an operator has to look at, for no rule can decide it. Each is opened once, and closed by hand."""

from typing import Final, Literal

import msgspec

from farebox.errors import InvalidRequest, NotFound
from farebox.store.protocol import Statement, Store

Kind = Literal[
    "stray_payment",
    "reversed",
    "payment_changed",
    "wrong_chain",
    "watcher_behind",
    "swept_early",
    "difference",
    "marked_by_hand",
    "closed_account",
    "deep_reorg",
]
_OPEN: Final = (
    "INSERT INTO incident (kind, ref, words, account_id, opened_at) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (kind, ref) DO UPDATE SET words = excluded.words, opened_at = excluded.opened_at, "
    "closed_at = NULL, closed_by = NULL, closing = NULL WHERE incident.closed_at IS NOT NULL"
)
_MORE: Final = (
    "INSERT INTO incident (kind, ref, words, account_id, opened_at) SELECT ?, ?, ?, ?, ? {} "
    "ON CONFLICT (kind, ref) DO UPDATE SET words = CASE WHEN incident.closed_at IS NULL "
    "THEN incident.words || '. Then ' || excluded.words ELSE excluded.words END, opened_at = excluded.opened_at, "
    "closed_at = NULL, closed_by = NULL, closing = NULL"
)
_COLUMNS: Final = "id, kind, ref, words, account_id, opened_at, closed_at, closed_by, closing"


class Incident(msgspec.Struct, frozen=True):
    """One incident. `ref` is what it is about: a payment, a rail, an address."""

    id: int
    kind: Kind
    ref: str
    words: str
    account_id: int | None
    opened_at_us: int
    closed_at_us: int | None
    closed_by: str | None
    closing: str | None


def opened(kind: Kind, ref: str, words: str, now_us: int, account_id: int | None = None) -> Statement:
    """Make the statement that opens an incident. One that is there already stays as it is, unless it was closed."""
    return _OPEN, (kind, ref, words, account_id, now_us)


def opened_or_added(
    kind: Kind, ref: str, words: str, now_us: int, account_id: int | None, guard: Statement
) -> Statement:
    """Make the statement that opens an incident, or adds its words to those of one that is open. Not idempotent.

    `guard` is the FROM and WHERE of a SELECT that finds one row as long as it was not told.
    """
    return _MORE.format(guard[0]), (kind, ref, words, account_id, now_us, *guard[1])


async def open_incidents(store: Store, most: int = 200) -> list[Incident]:
    """Give those nobody has closed, oldest first; last those that anybody opens by sending dust."""
    dust = "CASE WHEN kind IN ('stray_payment', 'closed_account') THEN 1 ELSE 0 END"
    return await _select(store, f"WHERE closed_at IS NULL ORDER BY {dust}, opened_at, id LIMIT ?", (most,))


async def find_incident(store: Store, incident_id: int) -> Incident:
    """Find an incident. Raises NotFound."""
    rows = await _select(store, "WHERE id = ?", (incident_id,))
    if not rows:
        raise NotFound("there is no such incident")
    return rows[0]


async def closed_incidents(store: Store, most: int = 50) -> list[Incident]:
    """Give those that were closed last, newest first."""
    return await _select(store, "WHERE closed_at IS NOT NULL ORDER BY closed_at DESC, id DESC LIMIT ?", (most,))


def closed(incident_id: int, by: str, words: str, now_us: int) -> Statement:
    """Make the statement that closes an incident, if nobody has. Raises InvalidRequest without words."""
    if not words.strip():
        raise InvalidRequest("say what was done about it: whoever looks later has nothing else")
    return (
        "UPDATE incident SET closed_at = ?, closed_by = ?, closing = ? WHERE id = ? AND closed_at IS NULL",
        (now_us, by, words.strip(), incident_id),
    )


async def _select(store: Store, where: str, params: tuple[int, ...]) -> list[Incident]:
    rows = await store.fetch(f"SELECT {_COLUMNS} FROM incident {where}", params)  # noqa: S608  fixed texts
    return [Incident(*row) for row in rows]
