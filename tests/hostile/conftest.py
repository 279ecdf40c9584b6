"""A stage that is shared by the tables of a module, and looked over after every case: unharmed, or the case fails.

What never comes as far as the books is tried on SQLite alone.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
import uvloop

from tests.databases import Databases
from tests.hostile.raw import CANARY, ask, exchange, request
from tests.stage import Stage, open_stage

LIMITS = """
header_timeout_s = 0.6
keep_alive_s = 2
body_idle_s = 0.6
body_total_s = 2.5
write_stall_s = 1
stall_s = 5
"""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Give the loop of production: transports differ in how they close."""
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    databases: Databases, database_kind: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    directory = tmp_path_factory.mktemp("hostile")
    with databases.fresh(database_kind, directory) as url:
        async with open_stage(directory, limits=LIMITS, database_url=url) as opened:
            yield opened


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def unharmed(shared: Stage) -> AsyncIterator[None]:
    """Whatever was sent: nothing held, nothing charged, nothing secret in the log, and the next call is served."""
    before = await _books(shared)
    yield
    assert await _books(shared) == before
    assert await shared.rows("SELECT count(*) FROM hold") == [(0,)]
    logged = json.dumps(shared.events, default=repr)
    assert CANARY not in logged
    assert shared.alice.key not in logged
    assert shared.alice.key[10:40] not in logged
    assert not [event for event in shared.events if event["level"] in {"error", "critical"}], logged
    assert (await exchange(shared.gateway.port, request(shared.alice, ask(max_tokens=1)))).status == 200
    assert not shared.simulator.crashes


async def _books(stage: Stage) -> list[tuple[object, ...]]:
    return await stage.rows(
        "SELECT posted_nanos, held_nanos, (SELECT count(*) FROM usage), (SELECT count(*) FROM transfer) "
        "FROM account ORDER BY id"
    )
