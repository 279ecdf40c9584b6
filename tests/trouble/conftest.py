"""Gateways whose way to PostgreSQL can be troubled."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.databases import Databases
from tests.stage import Stage, open_stage
from tests.trouble.proxy import Proxy, proxy_to


@pytest.fixture
def postgres_url(databases: Databases, tmp_path: Path) -> Iterator[str]:
    with databases.fresh("postgresql", tmp_path) as url:
        yield url


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    async with proxy_to(postgres_url) as opened:
        yield opened


@pytest.fixture
async def stage(postgres_url: str, proxy: Proxy, tmp_path: Path) -> AsyncIterator[Stage]:
    """A gateway whose database is behind the proxy."""
    async with open_stage(tmp_path, database_url=proxy.url(postgres_url)) as opened:
        yield opened
