"""The cast and the stage: alice has money, bob has none; a real gateway over real books and the simulator.

A test that is about the books, however indirectly, runs once on each kind of database: it asks for `database_url`, or
for something made of it.
"""

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

from tests import stage as stages
from tests.cluster import Cluster, memory
from tests.databases import KINDS, Databases
from tests.stage import OpenStage, Stage

settings.register_profile("farebox", deadline=None)  # how long an example takes says more of the machine than of us
settings.load_profile("farebox")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store", choices=(*KINDS, "both"), default="both", help="run what is about the books on this database only"
    )


_SLOW: Final = re.compile(
    r"tests/(?:clients|clocks|disk|kill|races|trouble|workers)/|browser|fuzz|at_random|speed|demo|/test_(?:backup|crashes|random|servers)"
)
"""Files that take long for the number of their tests, by their paths."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        turns = _turns(items)
        items.sort(key=lambda item: turns[_file(item)])
    chosen = config.getoption("store")
    if chosen == "both":
        return
    left_out = [item for item in items if _kind(item) not in {None, chosen}]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _turns(items: Sequence[pytest.Item]) -> dict[str, tuple[int, int, str]]:
    """Say which file comes when where several run at once: one that is slow, one that is quick, and so on.

    Nothing long is left over then, and those that load the machine do not all run at once. Of the slow ones comes one
    file of each folder and then the next of each, since those of a folder wait for the same things; of the others the
    largest first.
    """
    sizes = Counter(map(_file, items))
    of_folder: Counter[str] = Counter()
    slow: list[tuple[int, str]] = []
    for name in sorted(filter(_SLOW.search, sizes)):
        folder = name.rpartition("/")[0]
        slow.append((of_folder[folder], name))
        of_folder[folder] += 1
    quick = sorted((-size, name) for name, size in sizes.items() if not _SLOW.search(name))
    turns = {name: (place, 0, name) for place, (_, name) in enumerate(sorted(slow))}
    return turns | {name: (place, 1, name) for place, (_, name) in enumerate(quick)}


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _kind(item: pytest.Item) -> object:
    """Give the database that a test is about; None where it is about none, or only about SQLite."""
    if not isinstance(item, pytest.Function):
        return None
    kind = item.callspec.params.get("database_kind") if hasattr(item, "callspec") else None
    return kind or ("postgresql" if "cluster" in item.fixturenames else None)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One PostgreSQL server for all tests that ask for one, started by the first."""
    with Cluster(within=memory()) as started:
        yield started


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest) -> Databases:
    return Databases(lambda: request.getfixturevalue("cluster"))


@pytest.fixture(scope="module", params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database_url(databases: Databases, database_kind: str, tmp_path: Path) -> Iterator[str]:
    with databases.fresh(database_kind, tmp_path) as url:
        yield url


@pytest.fixture
def open_stage(tmp_path: Path, database_url: str) -> OpenStage:
    """Stages of this test's own making; one after the other they have the same books."""
    return partial(stages.open_stage, tmp_path, database_url=database_url)


@pytest.fixture
async def stage(open_stage: OpenStage) -> AsyncIterator[Stage]:
    async with open_stage() as opened:
        yield opened
