"""Files as rows: whose they are, where, and what is told about them; never what is in them."""

import re
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

import msgspec

from farebox.clock import US_PER_S, iso
from farebox.errors import InvalidRequest, NotFound
from farebox.store.protocol import Store

_READ: Final = (
    "SELECT id, account_id, upstream, size_bytes, mime_type, filename, downloadable, created_at, expires_at FROM file"
)

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,200}")


class File(msgspec.Struct, frozen=True):
    """A file. Moments are microseconds UTC; `id` is the upstream's."""

    id: str
    account_id: int
    upstream: str
    size_bytes: int
    mime_type: str
    filename: str
    downloadable: bool
    created_us: int
    expires_us: int | None

    def shown(self) -> dict[str, Any]:
        """Give it as the API shows it."""
        return {
            "id": self.id,
            "type": "file",
            "filename": self.filename,
            "mime_type": self.mime_type,
            "size_bytes": self.size_bytes,
            "created_at": iso(self.created_us),
            "downloadable": self.downloadable,
            "expires_at": iso(self.expires_us) if self.expires_us is not None else None,
        }


class _Metadata(msgspec.Struct):
    id: str
    size_bytes: int = 0
    mime_type: str = ""
    filename: str = ""
    created_at: datetime | None = None
    downloadable: bool | None = None
    expires_at: datetime | None = None


_metadata: Final = msgspec.json.Decoder(_Metadata)


def read_metadata(body: bytes, account_id: int, upstream: str, now_us: int) -> File:
    """Read what an upstream tells of a file that it has taken. Raises DecodeError for anything else."""
    told = _metadata.decode(body)
    if not _ID.fullmatch(told.id):
        raise msgspec.DecodeError
    created_us = _us(told.created_at)
    return File(
        told.id,
        account_id,
        upstream,
        max(0, told.size_bytes),
        told.mime_type[:200],
        told.filename[:500].replace("\0", ""),
        bool(told.downloadable),
        now_us if created_us is None else created_us,
        _us(told.expires_at),
    )


class Records:
    """Reads and writes the rows. Every look-up is bound to an account."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, file: File) -> None:
        """Keep a file. Raises StoreConflict when its id is taken."""
        values = (*msgspec.structs.astuple(file)[:6], int(file.downloadable), file.created_us, file.expires_us)
        sql = (
            "INSERT INTO file (id, account_id, upstream, size_bytes, mime_type, filename, downloadable, created_at, "
            "expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        )
        await self._store.write([(sql, values)])

    async def find(self, file_id: str, account_id: int) -> File:
        """Read a file. Raises NotFound for one that is not there, or another account's, in the same words."""
        found = await self.some((file_id,), account_id)
        if not found:
            raise NotFound(f"there is no file {file_id[:100]!r} in this account")
        return found[0]

    async def some(self, ids: Collection[str], account_id: int) -> list[File]:
        """Read those of some files that are there, newest first."""
        ids = [file_id for file_id in ids if _ID.fullmatch(file_id)]
        if not ids:
            return []
        marks = ", ".join("?" * len(ids))
        sql = f"{_READ} WHERE account_id = ? AND id IN ({marks}) ORDER BY created_at DESC, id DESC"
        return [_file(row) for row in await self._store.fetch(sql, (account_id, *ids))]

    async def page(self, account_id: int, limit: int, after: str | None, before: str | None) -> tuple[list[File], bool]:
        """Read a page, newest first, and whether there is more in its direction. Raises for ids that are not there."""
        where, way = "", "DESC"
        values: tuple[int | str, ...] = ()
        if (name := after or before) is not None:
            at = await self._at(name, account_id)
            sign = "<" if after else ">"
            where = f" AND (created_at {sign} ? OR (created_at = ? AND id {sign} ?))"
            values = (at.created_us, at.created_us, at.id)
            way = "DESC" if after else "ASC"
        sql = f"{_READ} WHERE account_id = ?{where} ORDER BY created_at {way}, id {way} LIMIT ?"
        rows = [_file(row) for row in await self._store.fetch(sql, (account_id, *values, limit + 1))]
        found = rows[:limit]
        return (found if way == "DESC" else found[::-1]), len(rows) > limit

    async def taken(self, account_id: int) -> tuple[int, int]:
        """Count an account's files, and their bytes."""
        sql = "SELECT count(*), coalesce(sum(size_bytes), 0) FROM file WHERE account_id = ?"
        ((count, size),) = await self._store.fetch(sql, (account_id,))
        return int(count), int(size)

    async def forget(self, file: File) -> None:
        """Drop a file that is there no more."""
        await self._store.write([("DELETE FROM file WHERE id = ? AND account_id = ?", (file.id, file.account_id))])

    async def over(self, now_us: int, limit: int) -> list[File]:
        """Read files that nobody can use any more: their time is over, or their account is closed."""
        sql = (
            f"{_READ} WHERE expires_at < ? OR account_id IN (SELECT id FROM account WHERE status = 'closed') "  # noqa: S608
            "ORDER BY id LIMIT ?"
        )
        return [_file(row) for row in await self._store.fetch(sql, (now_us, limit))]

    async def _at(self, file_id: str, account_id: int) -> File:
        try:
            return await self.find(file_id, account_id)
        except NotFound as error:
            raise InvalidRequest(f"the page begins at a file that is not there: {error.message}") from None


def _file(row: Any) -> File:
    file_id, account_id, upstream, size, mime_type, filename, downloadable, created_us, expires_us = row
    return File(file_id, account_id, upstream, size, mime_type, filename, bool(downloadable), created_us, expires_us)


def _us(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp()) * US_PER_S + moment.microsecond
