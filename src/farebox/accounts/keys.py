"""API keys: made here, shown once, kept as a hash. A key that was revoked stays revoked."""

from typing import Any, Final

import msgspec

from farebox.errors import InvalidRequest, NotFound
from farebox.ids import key_hash, key_hint, new_key
from farebox.store.protocol import Store

NAME_CHARS: Final = 100
_COLUMNS: Final = "id, account_id, name, hint, created_at, expires_at, revoked_at"


class Key(msgspec.Struct, frozen=True):
    """A key as it is known after it was made: by its hint."""

    id: int
    account_id: int
    name: str
    hint: str
    created_at_us: int
    expires_at_us: int | None
    revoked_at_us: int | None

    def status(self, now_us: int) -> str:
        if self.revoked_at_us is not None:
            return "revoked"
        return "expired" if self.expires_at_us is not None and now_us >= self.expires_at_us else "active"


async def create_key(
    store: Store, account_id: int, name: str, prefix: str, now_us: int, expires_at_us: int | None = None
) -> tuple[Key, str]:
    """Make a key for an account; answers it with the text that is never shown again."""
    cleaned = _clean_name(name)
    text = new_key(prefix)
    hashed = key_hash(text.encode())
    insert = "INSERT INTO api_key (account_id, name, hash, hint, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
    values = (account_id, cleaned, hashed, key_hint(text, prefix), now_us, expires_at_us)
    await store.write([(insert, values)])
    return (await _select(store, "WHERE hash = ?", (hashed,)))[0], text


async def list_keys(store: Store, account_id: int | None = None) -> list[Key]:
    """Give the keys of an account, or all of them, oldest first."""
    if account_id is None:
        return await _select(store, "ORDER BY id", ())
    return await _select(store, "WHERE account_id = ? ORDER BY id", (account_id,))


async def find_key(store: Store, which: str) -> Key:
    """Find a key by its id, or by the key itself. Raises NotFound."""
    if which.isascii() and which.isdigit() and len(which) < 19:
        found = await _select(store, "WHERE id = ?", (int(which),))
    else:
        found = await _select(store, "WHERE hash = ?", (key_hash(which.encode()),))
    if not found:
        shown = which if which.isdigit() else "of that text"
        raise NotFound(f"there is no key {shown}; `farebox key list` names their ids")
    return found[0]


async def rename_key(store: Store, key_id: int, name: str) -> None:
    """Give a key another name. Raises InvalidRequest."""
    await store.write([("UPDATE api_key SET name = ? WHERE id = ?", (_clean_name(name), key_id))])


async def revoke_key(store: Store, key_id: int, now_us: int) -> None:
    """Revoke a key at once; calls in flight end as they would. A second time changes nothing."""
    revoke = "UPDATE api_key SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
    await store.write([(revoke, (now_us, key_id))])


def _clean_name(name: str) -> str:
    cleaned = " ".join(name.split())
    if not 0 < len(cleaned) <= NAME_CHARS or not cleaned.isprintable():
        raise InvalidRequest(f"a key's name has 1 to {NAME_CHARS} printable characters, got {name[:40]!r}")
    return cleaned


async def _select(store: Store, where: str, params: tuple[Any, ...]) -> list[Key]:
    rows = await store.fetch(f"SELECT {_COLUMNS} FROM api_key {where}", params)  # noqa: S608  fixed texts
    return [Key(*row) for row in rows]
