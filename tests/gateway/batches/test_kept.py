"""What is kept of batches that Farebox runs: nothing that can be read at rest, and enough to go on after a restart."""

from pathlib import Path

import pytest

from farebox.errors import ConfigError
from farebox.store.urls import is_postgres
from tests.cluster import Cluster
from tests.databases import name_of
from tests.gateway.batches.bench import FAST, OWN, PATH, books_agree, call, ended, items, make, results
from tests.gateway.play import eventually
from tests.stage import OpenStage, Stage

CANARY = "canary-91b3d2"
SLOW = f"{OWN}at_once = 1\n"


def _disk(tmp_path: Path, database_url: str, request: pytest.FixtureRequest) -> bytes:
    """Everything that is written down: of a PostgreSQL server its tables and all of its write-ahead log."""
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    if is_postgres(database_url):
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.execute("CHECKPOINT")
        data = cluster.directory / "data"
        oid = cluster.fetch("SELECT oid FROM pg_database WHERE datname = $1", name_of(database_url))[0][0]
        paths += [*(data / "base" / str(oid)).iterdir(), *(data / "pg_wal").glob("0*"), cluster.directory / "log"]
    return b"".join(path.read_bytes() for path in paths)


async def _answered(stage: Stage, count: int) -> None:
    async def enough() -> bool:
        rows = await stage.rows("SELECT count(*) FROM batch_item WHERE state = 'succeeded'")
        return bool(rows[0][0] >= count)

    await eventually(enough, 15)


@pytest.mark.parametrize("settings", [FAST, OWN])
async def test_no_prompt_and_no_answer_of_a_batch_can_be_read_at_rest(
    open_stage: OpenStage, settings: str, tmp_path: Path, database_url: str, request: pytest.FixtureRequest
) -> None:
    async with open_stage(settings) as stage:
        said = [f"[[sim echo]] {CANARY}", f"[[sim echo error=400]] {CANARY}"]
        made = await make(stage, stage.alice, items(*said, system=CANARY))
        assert CANARY.encode() not in _disk(tmp_path, database_url, request)
        batch = await ended(stage, stage.alice, made["id"])
        found = await results(stage, stage.alice, batch)
        assert CANARY in found["i0"]["message"]["content"][0]["text"]
        assert CANARY not in repr(stage.events)
        key = stage.alice.key
    kept = _disk(tmp_path, database_url, request)
    assert CANARY.encode() not in kept
    assert key.encode() not in kept


async def test_after_a_restart_it_goes_on_once_its_api_key_is_seen_again(open_stage: OpenStage) -> None:
    async with open_stage(SLOW) as stage:
        alice = stage.alice
        made = await make(stage, alice, items(*["[[sim delay=150]]"] * 6))
        await _answered(stage, 2)
    async with open_stage(SLOW) as stage:
        asked = len(stage.simulator.requests)
        other = await stage.person("other@example.com")
        assert (await call(stage, other, "GET", f"{PATH}/{made['id']}"))[0] == 404
        assert (asked, len(stage.simulator.requests)) == (0, 0)
        batch = await ended(stage, alice, made["id"])
        assert batch["request_counts"]["succeeded"] == 6
        assert len(await results(stage, alice, batch)) == 6
        assert 4 <= len(stage.simulator.requests) <= 5  # of the one that was under way the answer is lost
        assert len(await stage.rows("SELECT 1 FROM usage WHERE charged_nanos > 0")) == 6
        await books_agree(stage, alice)


async def test_unattended_it_goes_on_by_itself(open_stage: OpenStage) -> None:
    settings, secret = f"{SLOW}unattended = true\n", f'secret = "{"s" * 40}"'
    with pytest.raises(ConfigError, match="secret"):
        async with open_stage(settings):
            pass
    async with open_stage(settings, server=secret) as stage:
        alice = stage.alice
        await make(stage, alice, items(*["[[sim delay=150]]"] * 4))
        await _answered(stage, 1)
    async with open_stage(settings, server=secret) as stage:
        await _answered(stage, 4)
        await eventually(lambda: _is_over(stage))
        await books_agree(stage, alice)


async def _is_over(stage: Stage) -> bool:
    return not await stage.rows("SELECT 1 FROM batch WHERE state <> 'ended'")


async def test_results_are_for_the_api_key_that_made_the_batch(open_stage: OpenStage) -> None:
    async with open_stage(OWN) as stage:
        made = await make(stage, stage.alice, items("one"))
        await ended(stage, stage.alice, made["id"])
        sibling = await stage.sibling(stage.alice)
        status, refusal = await call(stage, sibling, "GET", f"{PATH}/{made['id']}/results")
        assert (status, refusal["error"]["type"]) == (403, "permission_error")
        assert (await call(stage, sibling, "GET", f"{PATH}/{made['id']}"))[0] == 200


async def test_what_is_29_days_old_is_let_go(open_stage: OpenStage) -> None:
    async with open_stage(OWN) as stage:
        made = await make(stage, stage.alice, items("one"))
        await ended(stage, stage.alice, made["id"])
        await stage.gateway.store.write([("UPDATE batch SET created_at = created_at - ?", (30 * 86_400_000_000,))])

        async def archived() -> bool:
            return bool(await stage.rows("SELECT 1 FROM batch WHERE archived_at IS NOT NULL"))

        await eventually(archived, 15)
        _, batch = await call(stage, stage.alice, "GET", f"{PATH}/{made['id']}")
        assert (batch["archived_at"] is not None, batch["results_url"]) == (True, None)
        assert (await call(stage, stage.alice, "GET", f"{PATH}/{made['id']}/results"))[0] == 404
        assert not await stage.rows("SELECT 1 FROM batch_item")
        await books_agree(stage, stage.alice)
