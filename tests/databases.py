"""Databases for tests, fresh and of either kind, and a way into them past the gateway."""

import contextlib
import shutil
from collections.abc import Callable, Coroutine, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from farebox.store.open import open_store
from farebox.store.protocol import Row, Statement, Store
from farebox.store.urls import is_postgres
from tests.cluster import Cluster, run

T = TypeVar("T")

KINDS: Final = ("sqlite", "postgresql")
on_sqlite: Final = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
"""Marks a test that makes no sense, or is another one, on PostgreSQL."""
on_postgresql: Final = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)


class Databases:
    """Lends databases. The PostgreSQL server is asked for once one of its kind is wanted."""

    def __init__(self, cluster: Callable[[], Cluster]) -> None:
        self._cluster = cache(cluster)
        self._template = ""

    @contextlib.contextmanager
    def fresh(self, kind: str, directory: Path, *, like: str = "") -> Iterator[str]:
        """Lend one with the tables in it and nothing else, or a copy of another, which nobody may have open."""
        if kind == "sqlite":
            path = directory / "farebox.db"
            if like:
                shutil.copy(sqlite_path(like), path)
            yield f"sqlite:///{path}"
            return
        with self._cluster().database(name_of(like) if like else self._tables()) as url:
            yield url

    def _tables(self) -> str:
        """Give the database that all fresh ones are copies of, made once."""
        if not self._template:
            self._template = "farebox_template"
            self._cluster().create_database(self._template)
            run(_open_and_close(self._cluster().url(self._template)))
        return self._template


def sqlite_path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def name_of(url: str) -> str:
    """Give the name of a PostgreSQL database."""
    assert is_postgres(url)
    return url.rpartition("/")[2]


def read(url: str, sql: str, *params: Any) -> list[Row]:
    """Read from the books beside whoever has them open. Callable where a loop runs, and where none does."""
    return run(_with(url, lambda store: store.fetch(sql, params)))


def write(url: str, *statements: str | Statement) -> None:
    """Change the books as somebody with a SQL prompt and the gateway's rights would. Raises StoreConflict."""
    run(_with(url, lambda store: store.write([(one, ()) if isinstance(one, str) else one for one in statements])))


async def _with(url: str, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    store = await open_store(url, create=False)
    try:
        return await work(store)
    finally:
        await store.close()


async def _open_and_close(url: str) -> None:
    await (await open_store(url)).close()
