"""The audit log: who changed what of the business, from where and why. Append-only: the database refuses anything else.

A line is one more statement of the write that makes the change: both are there, or neither is. Money moves through the
ledger, in a transaction of its own. There the line comes first, with the id of the entry, which was chosen before the
form was shown (`record_once`): whatever stops the process between the two, sending the same form again writes no second
line and makes the entry, once. A line whose entry is missing tells of something that was asked for and did not happen.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec

from farebox.store.protocol import Statement, Store

REASON_CHARS: Final = 500
_PAGE: Final = 500
_COLUMNS: Final = "id, at, actor, address, action, target, before, after, reason"
_INTO: Final = "INSERT INTO audit_log (at, actor, address, action, target, before, after, reason)"
_VALUES: Final = "now_us(), ?, ?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?"

Facts = Mapping[str, Any]


class Line(msgspec.Struct, frozen=True):
    """One thing that was done. `before` and `after` are JSON objects of what it changed."""

    id: int
    at_us: int
    actor: str
    address: str
    action: str
    target: str
    before: str | None
    after: str | None
    reason: str

    @property
    def changes(self) -> list[tuple[str, Any, Any]]:
        """Give what is different: a name, what it was, what it is; None for nothing."""
        before, after = _read(self.before), _read(self.after)
        names = [*before, *(name for name in after if name not in before)]
        return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


class Sought(msgspec.Struct, frozen=True):
    """What lines are looked for; an empty text is anything."""

    actor: str = ""
    action: str = ""
    target: str = ""
    since_us: int = 0


def record(
    actor: str,
    address: str,
    action: str,
    target: str,
    before: Facts | None,
    after: Facts | None,
    reason: str = "",
    only_if: Statement | None = None,
) -> Statement:
    """Make the statement of one line, to be written together with the change that it tells of.

    `only_if` asks for a row without which there is no line: where the change itself may come too late.

    `actor` is an operator's address, or "cli:" and a user of the machine; `action` is "account.suspend" or the like;
    `target` is what was changed, as in "customer:7".
    """
    values = _values(actor, address, action, target, before, after, reason)
    if only_if is not None:
        return f"{_INTO} SELECT {_VALUES} WHERE EXISTS ({only_if[0]})", (*values, *only_if[1])
    return f"{_INTO} VALUES ({_VALUES})", values


def record_once(actor: str, address: str, action: str, target: str, after: Facts, reason: str) -> Statement:
    """Make the statement of a line that is there once, however often the same is asked for: `after` names its id."""
    values = _values(actor, address, action, target, None, after, reason)
    unless = "SELECT 1 FROM audit_log WHERE target = ? AND action = ? AND after = ?"
    return (
        f"{_INTO} SELECT {_VALUES} WHERE NOT EXISTS ({unless})",
        (*values, target, action, values[5]),
    )


def record_opening(actor: str, address: str, email: str, plan: str) -> Statement:
    """Make the statement of the line about an account that is opened in the same write: its id is not known before."""
    line = "now_us(), ?, ?, 'account.open', 'customer:' || id, NULL, CAST(? AS TEXT), 'by hand'"
    values = (actor, address, _write({"email": email, "plan": plan}), email)
    return f"{_INTO} SELECT {line} FROM account WHERE email = ?", values  # noqa: S608  fixed texts


async def audit_lines(store: Store, sought: Sought, before_id: int | None = None, limit: int = 100) -> list[Line]:
    """Give the latest lines that fit, newest first; only older ones than `before_id`."""
    where, params = _conditions(sought, before_id)
    rows = await store.fetch(
        f"SELECT {_COLUMNS} FROM audit_log WHERE {where} ORDER BY id DESC LIMIT ?",  # noqa: S608  fixed texts
        (*params, limit),
    )
    return [Line(*row) for row in rows]


async def all_audit_lines(store: Store, sought: Sought, most: int) -> AsyncIterator[Line]:
    """Give the latest lines that fit, at most so many, page by page."""
    before_id, given = None, 0
    while given < most:
        page = await audit_lines(store, sought, before_id, min(_PAGE, most - given))
        for line in page:
            yield line
        if len(page) < _PAGE:
            return
        given += len(page)
        before_id = page[-1].id


async def known_actions(store: Store) -> list[str]:
    """Name what has been done so far, for a list to choose from."""
    return [row[0] for row in await store.fetch("SELECT DISTINCT action FROM audit_log ORDER BY action")]


def _values(
    actor: str, address: str, action: str, target: str, before: Facts | None, after: Facts | None, reason: str
) -> tuple[Any, ...]:
    return (actor, address, action, target, _write(before), _write(after), reason[:REASON_CHARS])


def _write(facts: Facts | None) -> str | None:
    return msgspec.json.encode(dict(facts)).decode() if facts is not None else None


def _read(text: str | None) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any]) if text else {}


def _conditions(sought: Sought, before_id: int | None) -> tuple[str, tuple[Any, ...]]:
    parts, params = ["at >= ?"], [sought.since_us]
    for column in ("actor", "action", "target"):
        wanted = getattr(sought, column)
        if wanted:
            parts.append(f"{column} = ?")
            params.append(wanted)
    if before_id is not None:
        parts.append("id < ?")
        params.append(before_id)
    return " AND ".join(parts), tuple(params)
