"""Price lists in the books: every version that a call was ever priced by, immutable.

A new version comes from the configuration file, or from an operator's page; the newest one is in force. The file counts
when it has changed since it last made a version: then it wins, whatever operators have published meanwhile.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from farebox.billing.pricing import Catalogue, Model, PriceList
from farebox.errors import StoreConflict
from farebox.store.protocol import Reading, Statement, Store

Source = Literal["file", "admin"]

_models: Final = msgspec.json.Decoder(tuple[Model, ...])
_NEWEST: Final = "SELECT version, models FROM price_list ORDER BY version DESC LIMIT 1"
_PAGE: Final = 50
_INSERT: Final = "INSERT INTO price_list (version, sha256, models, created_at, source) VALUES (?, ?, ?, ?, ?)"


class Version(msgspec.Struct, frozen=True):
    """One version of the prices: what it sold at what, since when, and where it came from."""

    version: int
    source: Source
    created_at_us: int
    models: tuple[Model, ...]


class Prices:
    """The prices in force, kept at hand: calls are let in by `now`, and keep what they came under."""

    def __init__(self, store: Reading, catalogue: Catalogue) -> None:
        self._store = store
        self.now = catalogue
        self.is_stale = False
        """Whether there may be a newer version: `follow` is to be asked."""

    async def follow(self) -> None:
        """Take the newest version there is. Raises StoreUnavailable; then the present one stays, and it is stale."""
        self.is_stale = False  # before it is read: what is published meanwhile makes it stale again
        try:
            rows = await self._store.fetch(_NEWEST)
        except BaseException:
            self.is_stale = True
            raise
        if rows[0][0] > self.now.version:
            self.now = Catalogue(PriceList(rows[0][0], _models.decode(rows[0][1])))


async def pin_prices(store: Store, models: tuple[Model, ...], now_us: int) -> Catalogue:
    """Give the catalogue in force as a process starts whose file sells these models.

    They are a new version if the file has changed since it last made one; else the newest version stays.
    """
    text, digest = _written(models)
    while True:
        rows = await store.fetch("SELECT sha256 FROM price_list WHERE source = 'file' ORDER BY version DESC LIMIT 1")
        newest = await store.fetch(_NEWEST)
        if rows and rows[0][0] == digest:
            return Catalogue(PriceList(newest[0][0], _models.decode(newest[0][1])))
        version = newest[0][0] + 1 if newest else 1
        with contextlib.suppress(StoreConflict):  # another process, starting beside this one, has taken the version
            await store.write([(_INSERT, (version, digest, text, now_us, "file"))])


async def publish_prices(
    store: Store, base: int, models: tuple[Model, ...], now_us: int, beside: Sequence[Statement]
) -> int:
    """Bring an operator's version into force, made from version `base`; answers its number.

    `beside` is written with it, or not at all. Raises StoreConflict when there is a newer version than `base` by now.
    """
    text, digest = _written(models)
    await store.write([(_INSERT, (base + 1, digest, text, now_us, "admin")), *beside])
    return base + 1


async def price_versions(store: Reading, before: int, limit: int) -> list[Version]:
    """Read the latest versions older than one, newest first."""
    rows = await store.fetch(
        "SELECT version, source, created_at, models FROM price_list WHERE version < ? ORDER BY version DESC LIMIT ?",
        (before, limit),
    )
    return [Version(version, source, at, _models.decode(text)) for version, source, at, text in rows]


async def last_sold(store: Reading, model_id: str) -> Model | None:
    """Find a model as it was in the latest version that sold it."""
    newest = (await store.fetch("SELECT coalesce(max(version), 0) FROM price_list"))[0][0]
    above = newest + 1
    while above > 0:
        versions = await price_versions(store, above, _PAGE)
        for one in versions:
            for model in one.models:
                if model.id == model_id:
                    return model
        above = versions[-1].version if len(versions) == _PAGE else 0
    return None


def _written(models: tuple[Model, ...]) -> tuple[str, str]:
    """Give the text a version is kept as, and its digest."""
    text = msgspec.json.encode(models).decode()
    return text, hashlib.sha256(text.encode()).hexdigest()


async def price_list(store: Reading, version: int) -> Catalogue | None:
    """Read one version, if there is such a one."""
    rows = await store.fetch("SELECT models FROM price_list WHERE version = ?", (version,))
    return Catalogue(PriceList(version, _models.decode(rows[0][0]))) if rows else None


async def price_lists(store: Reading) -> dict[int, tuple[str, Catalogue]]:
    """Read every version there has been, with the digest of its text as it is stored now."""
    rows = await store.fetch("SELECT version, models FROM price_list")
    return {
        version: (
            hashlib.sha256(text.encode()).hexdigest(),
            Catalogue(PriceList(version, _models.decode(text))),
        )
        for version, text in rows
    }
