"""The outbox as operators see it: which letters were sent, which wait and why, and sending one again."""

import re
from typing import Any, Final, Literal

from farebox.accounts.audit_log import record, record_once
from farebox.accounts.mail import Letter
from farebox.accounts.operators import Operator
from farebox.errors import NotFound
from farebox.store.protocol import Store

State = Literal["", "sent", "waiting", "failing"]

STATES: Final[tuple[State, ...]] = ("sent", "waiting", "failing")
_WHERE: Final = {
    "": "1 = 1",
    "sent": "sent_at IS NOT NULL",
    "waiting": "sent_at IS NULL AND tries = 0",
    "failing": "sent_at IS NULL AND tries > 0",
}
_COLUMNS: Final = "id, at, recipient, subject, body, sent_at, tries, error"
_LINK: Final = re.compile(r"((?:token|invitation)=)[A-Za-z0-9_-]+")


def state_of(letter: Letter) -> str:
    """Name what became of a letter so far."""
    return "sent" if letter.sent_at_us is not None else "failing" if letter.tries else "waiting"


def has_link(letter: Letter) -> bool:
    """Tell whether a letter lets whoever reads it do something."""
    return bool(_LINK.search(letter.body))


def without_links(letter: Letter) -> str:
    """Give the text of a letter without what would let a reader do something in its recipient's stead."""
    return _LINK.sub(r"\1…", letter.body)


async def page_of_letters(
    store: Store, state: State, recipient: str, before_id: int | None, limit: int
) -> list[Letter]:
    """Give the latest letters of a state, newest first; only older ones than `before_id`."""
    where, params = _WHERE[state], list[Any]()
    if recipient:
        where += " AND recipient = ?"
        params.append(recipient)
    if before_id is not None:
        where += " AND id < ?"
        params.append(before_id)
    rows = await store.fetch(
        f"SELECT {_COLUMNS} FROM outbox WHERE {where} ORDER BY id DESC LIMIT ?",  # noqa: S608  fixed texts
        (*params, limit),
    )
    return [Letter(*row) for row in rows]


async def find_letter(store: Store, letter_id: int) -> Letter:
    """Find a letter. Raises NotFound."""
    rows = await store.fetch(f"SELECT {_COLUMNS} FROM outbox WHERE id = ?", (letter_id,))  # noqa: S608  fixed texts
    if not rows:
        raise NotFound(f"there is no letter {letter_id}")
    return Letter(*rows[0])


async def note_reading(store: Store, by: Operator, letter: Letter) -> None:
    """Write down, once, that an operator has read a letter with a link meant for somebody else."""
    facts = {"to": letter.recipient, "subject": letter.subject, "read_by": by.name}
    target = f"letter:{letter.id}"
    await store.write([record_once(by.name, by.address, "letter.read", target, facts, "to hand its link on")])


async def send_again(store: Store, by: Operator, letter: Letter, now_us: int) -> None:
    """Put a letter among those that are due, as if it had just been written."""
    change = (
        "UPDATE outbox SET sent_at = NULL, tries = 0, next_at = ?, error = NULL WHERE id = ?",
        (now_us, letter.id),
    )
    before = {"state": state_of(letter), "tries": letter.tries, "error": letter.error}
    after = {"state": "waiting", "tries": 0, "error": None}
    line = record(by.name, by.address, "letter.send_again", f"letter:{letter.id}", before, after, letter.recipient)
    await store.write([change, line])
