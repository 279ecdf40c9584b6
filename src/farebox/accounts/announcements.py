"""Announcements: what an operator tells everybody on every page, from a moment until another."""

from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from farebox.accounts.audit_log import Facts, record
from farebox.accounts.operators import Operator
from farebox.clock import US_PER_S, iso
from farebox.errors import InvalidRequest, NotFound
from farebox.store.protocol import Store

Level = Literal["info", "warning"]
State = Literal["scheduled", "shown", "over"]

WORDS_CHARS: Final = 300
AT_ONCE: Final = 5
"""How many may be shown or scheduled: a page has room for so much."""
_LISTED: Final = 100
_COLUMNS: Final = "id, level, words, created_by, begins_at, ends_at"
_NOT_OVER: Final = "(ends_at IS NULL OR ends_at > ?)"


class Announcement(msgspec.Struct, frozen=True):
    """Something to tell. `ends_at_us` None: until it is taken down."""

    id: int
    level: Level
    words: str
    created_by: str
    begins_at_us: int
    ends_at_us: int | None

    def state(self, now_us: int) -> State:
        if self.ends_at_us is not None and self.ends_at_us <= now_us:
            return "over"
        return "shown" if self.begins_at_us <= now_us else "scheduled"


class Announcements:
    """What there is to tell now and soon, kept at hand: every page asks. `refresh` sees what others have changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: list[Announcement] = []

    async def refresh(self, now_us: int) -> None:
        """Read them anew. Raises StoreUnavailable; then the known ones stay."""
        self._known = await _select(self._store, f"WHERE {_NOT_OVER} ORDER BY begins_at", (now_us,))

    def shown(self, now_us: int) -> list[Announcement]:
        """Give those to show now, warnings first."""
        found = [one for one in self._known if one.state(now_us) == "shown"]
        return sorted(found, key=lambda one: one.level, reverse=True)


class Wanted(msgspec.Struct, frozen=True):
    """An announcement as an operator asks for it: moments as browsers send them, in UTC; empty is now, or no end."""

    level: str = "info"
    words: str = ""
    begins: str = ""
    ends: str = ""


async def list_announcements(store: Store) -> list[Announcement]:
    """Give the latest announcements, newest first."""
    return await _select(store, f"ORDER BY begins_at DESC, id DESC LIMIT {_LISTED}", ())


async def announce(store: Store, by: Operator, wanted: Wanted, now_us: int) -> None:
    """Tell everybody something, now or from a moment on. Raises InvalidRequest."""
    words = " ".join(wanted.words.split())
    if not 0 < len(words) <= WORDS_CHARS or not words.isprintable():
        raise InvalidRequest(f"an announcement has 1 to {WORDS_CHARS} characters, got {len(words)}")
    if wanted.level not in {"info", "warning"}:
        raise InvalidRequest(f"an announcement is of level info or warning, got {wanted.level[:20]!r}")
    begins_us = _moment(wanted.begins, "begin") or now_us
    ends_us = _moment(wanted.ends, "end")
    if ends_us is not None and ends_us <= max(begins_us, now_us):
        raise InvalidRequest("an announcement ends after it begins, and later than now")
    if len(await _select(store, f"WHERE {_NOT_OVER}", (now_us,))) >= AT_ONCE:
        raise InvalidRequest(f"at most {AT_ONCE} announcements are shown or scheduled: take one down first")
    insert = "INSERT INTO announcement (level, words, created_by, begins_at, ends_at) VALUES (?, ?, ?, ?, ?)"
    values = (wanted.level, words, by.name, max(begins_us, now_us), ends_us)
    facts: Facts = {"level": wanted.level, "words": words, "begins": iso(begins_us), "ends": ends_us and iso(ends_us)}
    line = record(by.name, by.address, "announcement.make", "announcements", None, facts)
    await store.write([(insert, values), line])


async def take_down(store: Store, by: Operator, announcement_id: int, now_us: int) -> None:
    """Tell it no more. One that is over already stays as it is. Raises NotFound."""
    found = await _select(store, "WHERE id = ?", (announcement_id,))
    if not found:
        raise NotFound(f"there is no announcement {announcement_id}")
    if found[0].state(now_us) == "over":
        return
    end = (f"UPDATE announcement SET ends_at = ? WHERE id = ? AND {_NOT_OVER}", (now_us, announcement_id, now_us))  # noqa: S608
    ends_us = found[0].ends_at_us
    before: dict[str, Any] = {"words": found[0].words, "ends": ends_us and iso(ends_us)}
    line = record(
        *(by.name, by.address, "announcement.take_down", f"announcement:{announcement_id}"),
        before,
        before | {"ends": iso(now_us)},
    )
    await store.write([end, line])


def _moment(text: str, what: str) -> int | None:
    """Read a moment as `<input type="datetime-local">` sends it, in UTC. Raises InvalidRequest."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text[:40]).replace(tzinfo=UTC)
        return int(moment.timestamp()) * US_PER_S
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"the {what} is a moment such as 2026-11-22T10:30, got {text[:40]!r}") from error


async def _select(store: Store, where: str, params: tuple[int, ...]) -> list[Announcement]:
    rows = await store.fetch(f"SELECT {_COLUMNS} FROM announcement {where}", params)  # noqa: S608  fixed texts
    return [Announcement(*row) for row in rows]
