"""SQLite in trouble: another process that does not let go of the file. The same promises, by the same spool."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from tests.gateway.play import eventually, listen
from tests.stage import Stage, open_stage
from tests.trouble.acts import (
    charged_exactly,
    delivered,
    finished,
    held_up,
    is_ready,
    is_unready,
    refused_in_time,
    serves_again,
    settler_of,
    spooled,
)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with open_stage(tmp_path) as opened:
        yield opened


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Another process writes, and goes on writing."""
    other = apsw.Connection(str(path))
    other.set_busy_timeout(5000)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_while_another_process_writes_calls_are_refused_in_time_and_those_in_flight_are_spooled(
    stage: Stage, tmp_path: Path
) -> None:
    settler_of(stage)._patience_s = 0.2
    async with held_up(stage, stage.alice) as asking:
        with writing(tmp_path / "farebox.db"):
            await refused_in_time(stage, stage.alice)
            assert (await asking)[0] == 200
            assert spooled(stage) == 1
            await eventually(lambda: is_unready(stage))
    await eventually(lambda: is_ready(stage))
    await serves_again(stage, stage.alice)
    await delivered(stage)
    rows = await stage.rows("SELECT kind, count(*) FROM usage GROUP BY kind ORDER BY kind")
    assert dict(rows).get("exact") == 2
    assert set(dict(rows)) <= {"exact", "waived"}


async def test_a_stream_in_flight_ends_as_ever_when_the_other_is_done_in_time(stage: Stage, tmp_path: Path) -> None:
    heard = await listen(stage, stage.alice, "[[sim tokens=200 rate=2000]]")
    await heard.has(b"content_block_delta")
    with writing(tmp_path / "farebox.db"):
        await heard.has(b"content_block_stop")
        await asyncio.sleep(0.2)
        assert not heard.ended
    assert finished(await heard.end())
    assert spooled(stage) == 0
    await charged_exactly(stage, stage.alice)
