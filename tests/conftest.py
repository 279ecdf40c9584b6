"""The cast and the stage: alice has money, bob has none; a real gateway over a real SQLite file and the simulator."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.stage import Stage, open_stage


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One PostgreSQL server for all tests that ask for one, started by the first."""
    with Cluster() as started:
        yield started


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with open_stage(tmp_path) as opened:
        yield opened
