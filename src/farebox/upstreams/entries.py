"""Upstreams that operators have entered, as the database keeps them: settings in the clear, secrets sealed.

Nothing here gives a secret back but `reveal`, for the process that calls the upstream and for changing another setting.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from farebox.clock import DAY_US
from farebox.errors import FareboxError, InvalidRequest, NotFound, StoreConflict
from farebox.store.protocol import Reading, Statement, Store
from farebox.upstreams.checks import settled
from farebox.upstreams.fields import from_plain, plain_of, secrets_of
from farebox.upstreams.kinds.make import make_kind
from farebox.upstreams.settings import UpstreamSettings

_COLUMNS: Final = "id, name, settings, secrets, set_at, created_at, changed_at"
_INTO: Final = "INSERT INTO upstream (name, settings, secrets, set_at, created_at, changed_at)"
_MOST: Final = 200
_RESULTS_US: Final = 29 * DAY_US
"""How long the API keeps the results of a batch (Message Batches, "results_url")."""
_LEFT: Final = "SELECT count(*) FROM batch WHERE upstream = ? AND state = 'ended' AND created_at > ?"
_HOMES: Final = (
    ("message batches that are not ended", "SELECT count(*) FROM batch WHERE upstream = ? AND state <> 'ended'"),
)
"""What is at one upstream and nowhere else, while it is needed there: while there is any, the upstream stays."""

Facts = Mapping[str, Any]
Record = Callable[[str, str, Facts | None, Facts | None, Statement | None], Statement]
"""Makes the line of the audit log: what was done, to what, what it was and is; there only if a row is found."""
_SAME: Final = "id = ? AND changed_at = ?"
_LOCK: Final = f"UPDATE upstream SET changed_at = changed_at WHERE {_SAME}"  # noqa: S608
"""Nobody comes between the line of the log and the change that it tells of."""


class Opener(Protocol):
    """What opens sealed values (accounts.sealing.Seals)."""

    def open_sealed(self, sealed: bytes, about: str) -> bytes:
        """Open a sealed value. Raises FareboxError when it cannot be opened here."""


class Sealer(Opener, Protocol):
    """What seals them as well."""

    def seal(self, value: bytes, about: str) -> bytes:
        """Seal a value."""


class Entry(Struct, frozen=True):
    """One row. `set_at` tells which secrets there are, and when each was set."""

    id: int
    name: str
    settings: str
    secrets: bytes | None
    set_at: str
    created_at_us: int
    changed_at_us: int

    @property
    def moments(self) -> dict[str, int]:
        """Which secrets are kept, and when each was set."""
        try:
            return msgspec.json.decode(self.set_at, type=dict[str, int])
        except msgspec.DecodeError:
            return {}

    @property
    def values(self) -> dict[str, Any]:
        """What is not secret, as it was kept; nothing where that cannot be read."""
        try:
            return msgspec.json.decode(self.settings, type=dict[str, Any])
        except msgspec.DecodeError:
            return {}

    @property
    def shown(self) -> UpstreamSettings:
        """The settings without what is secret. Raises ValueError for those that this version does not know."""
        return from_plain(self.values, {})


async def list_entries(store: Reading) -> list[Entry]:
    """Give all that were entered, in the order of their making."""
    return [_entry(row) for row in await store.fetch(f"SELECT {_COLUMNS} FROM upstream ORDER BY id")]  # noqa: S608


async def find_entry(store: Reading, name: str) -> Entry:
    """Find one by its name. Raises NotFound."""
    rows = await store.fetch(f"SELECT {_COLUMNS} FROM upstream WHERE name = ?", (name,))  # noqa: S608
    if not rows:
        raise NotFound(f"no upstream {name!r} was entered; `farebox upstream list` names all there are")
    return _entry(rows[0])


def reveal(entry: Entry, seals: Opener) -> dict[str, str]:
    """Give the secrets of an upstream in the clear. Raises FareboxError when they cannot be opened here."""
    if entry.secrets is None:
        return {}
    return msgspec.json.decode(seals.open_sealed(entry.secrets, _about(entry.name)), type=dict[str, str])


async def add_entry(store: Store, seals: Sealer, settings: UpstreamSettings, now_us: int, record: Record) -> None:
    """Keep a new upstream, its secrets sealed. Raises InvalidRequest when there is one of that name."""
    await check_credentials(settings)
    ((count,),) = await store.fetch("SELECT count(*) FROM upstream")
    if count >= _MOST:
        raise InvalidRequest(f"there are {count} upstreams, which is the most there can be: remove one first")
    secrets = secrets_of(settings)
    values = (settings.name, _json(plain_of(settings)), _sealed(seals, settings.name, secrets))
    insert = (f"{_INTO} VALUES (?, ?, ?, ?, ?, ?)", (*values, _json(dict.fromkeys(secrets, now_us)), now_us, now_us))
    after = {**plain_of(settings), **dict.fromkeys(secrets, "entered")}
    line = record("upstream.add", _about(settings.name), None, after, None)
    try:
        await store.write([insert, line])
    except StoreConflict as error:
        raise InvalidRequest(f"there is an upstream {settings.name!r} already: choose another name") from error


async def change_entry(
    store: Store,
    seals: Sealer | None,
    entry: Entry,
    settings: UpstreamSettings,
    now_us: int,
    record: Record,
    forget: Container[str] = (),
) -> bool:
    """Keep an upstream as it is now; answers whether anything is different.

    Secrets that `settings` has are the new ones, those in `forget` go, the others stay; without `seals` all stay.
    Raises InvalidRequest when somebody else has changed it since `entry` was read, or its credentials cannot be used.
    """
    fresh = secrets_of(settings)
    before, after = entry.values, plain_of(settings)
    secrets, moments = entry.secrets, entry.moments
    gone = [name for name in moments if name in forget and name not in fresh]
    if not fresh and not gone and before == after:
        return False
    if seals is not None:
        stay = moments.keys() - fresh.keys() - set(gone)
        kept = {name: secret for name, secret in reveal(entry, seals).items() if name in stay} if stay else {}
        await check_credentials(from_plain(after, {**kept, **fresh}))
        if fresh or gone:
            secrets = _sealed(seals, entry.name, {**kept, **fresh})
            moments = {name: moments[name] for name in moments if name in stay} | dict.fromkeys(fresh, now_us)
    facts = (
        {**before, **dict.fromkeys([*fresh, *gone], "the one before")},
        {**after, **dict.fromkeys(fresh, "a new one"), **dict.fromkeys(gone, "none")},
    )
    changed_at_us = max(now_us, entry.changed_at_us + 1)
    update = f"UPDATE upstream SET settings = ?, secrets = ?, set_at = ?, changed_at = ? WHERE {_SAME}"  # noqa: S608
    values = (_json(after), secrets, _json(moments), changed_at_us)
    line = record("upstream.edit", _about(entry.name), *facts, _still(entry))
    await _write(store, entry, [line, (update, (*values, entry.id, entry.changed_at_us))])
    return True


async def remove_entry(store: Store, entry: Entry, record: Record) -> None:
    """Forget an upstream and its secrets; calls under way end as they began.

    Raises InvalidRequest while something is there that is nowhere else, or when somebody else has changed it since.
    """
    for what, count in _HOMES:
        ((number,),) = await store.fetch(count, (entry.name,))
        if number:
            raise InvalidRequest(f"{number} {what} are at this upstream: drain it, and remove it when they are through")
    line = record("upstream.remove", _about(entry.name), entry.values, None, _still(entry))
    same, values = _still(entry)
    enable: Statement = (f"DELETE FROM upstream_switch WHERE name = ? AND EXISTS ({same})", (entry.name, *values))  # noqa: S608
    forget: Statement = (f"DELETE FROM upstream WHERE {_SAME}", values)  # noqa: S608
    await _write(store, entry, [line, enable, forget])


async def left_behind(store: Reading, name: str, now_us: int) -> int:
    """Count the ended batches whose results are at an upstream: without it nobody can fetch them."""
    ((count,),) = await store.fetch(_LEFT, (name, now_us - _RESULTS_US))
    return int(count)


async def check_credentials(settings: UpstreamSettings) -> None:
    """Raise InvalidRequest when a kind can make nothing of its credentials. Nothing is asked of anybody."""
    try:
        kind = make_kind(settings)
    except ValueError as error:
        raise InvalidRequest(f"these settings cannot be used: {error}") from error
    await kind.close()


def opened(entry: Entry, seals: Opener) -> UpstreamSettings:
    """Give all settings, secrets included. Raises FareboxError in words that hold no secret."""
    try:
        return settled(from_plain(entry.values, reveal(entry, seals)))
    except ValueError as error:
        raise FareboxError(f"its settings cannot be read: {error}") from error


def without_secrets(settings: UpstreamSettings) -> UpstreamSettings:
    """Give settings as they may be shown."""
    return replace(settings, **{name: type(getattr(settings, name))("") for name in secrets_of(settings)})


def _still(entry: Entry) -> Statement:
    """Ask for the row as it was read."""
    return f"SELECT 1 FROM upstream WHERE {_SAME}", (entry.id, entry.changed_at_us)  # noqa: S608


async def _write(store: Store, entry: Entry, statements: Sequence[Statement]) -> None:
    """Change a row, and say so in the audit log: both, or neither. Raises InvalidRequest when it has changed since."""
    if not (await store.write([(_LOCK, (entry.id, entry.changed_at_us)), *statements]))[0]:
        raise InvalidRequest("somebody else has changed this upstream in this very moment: look again")


def _entry(row: Sequence[Any]) -> Entry:
    id_, name, settings, secrets, *rest = row
    return Entry(id_, name, settings, bytes(secrets) if secrets is not None else None, *rest)


def _sealed(seals: Sealer, name: str, secrets: Mapping[str, str]) -> bytes | None:
    return seals.seal(msgspec.json.encode(dict(secrets)), _about(name)) if secrets else None


def _about(name: str) -> str:
    return f"upstream:{name}"


def _json(value: Mapping[str, Any]) -> str:
    return msgspec.json.encode(dict(value)).decode()
