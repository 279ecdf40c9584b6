"""Price lists in the books: every version that a call was ever priced by, immutable."""

import contextlib
import hashlib
from typing import Final

import msgspec

from farebox.billing.pricing import Catalogue, Model, PriceList
from farebox.errors import StoreConflict
from farebox.store.protocol import Reading, Store

_models: Final = msgspec.json.Decoder(tuple[Model, ...])


async def pin_prices(store: Store, models: tuple[Model, ...], now_us: int) -> Catalogue:
    """Give the catalogue for these models under the version the books know them by, a new one when they changed."""
    text = msgspec.json.encode(models).decode()
    digest = hashlib.sha256(text.encode()).hexdigest()
    insert = "INSERT INTO price_list (version, sha256, models, created_at) VALUES (?, ?, ?, ?)"
    while True:
        rows = await store.fetch("SELECT version, sha256 FROM price_list ORDER BY version DESC LIMIT 1")
        if rows and rows[0][1] == digest:
            return Catalogue(PriceList(rows[0][0], models))
        version = rows[0][0] + 1 if rows else 1
        with contextlib.suppress(StoreConflict):  # another process, starting beside this one, has taken the version
            await store.write([(insert, (version, digest, text, now_us))])


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
