"""Batches with several processes over one PostgreSQL, and with clients that read slowly or leave."""

import asyncio
import json
from pathlib import Path

from farebox.app import start_gateway
from farebox.config import load_config
from farebox.http.client import HttpClient, Origin
from tests.databases import on_postgresql, on_sqlite
from tests.gateway.batches.bench import FAST, OWN, PATH, books_agree, call, ended, items, make
from tests.gateway.play import Heard, eventually
from tests.stage import OpenStage, Stage, _recorder


@on_postgresql
async def test_one_process_works_on_a_batch_and_another_goes_on_with_it(open_stage: OpenStage, tmp_path: Path) -> None:
    async with open_stage(f"{OWN}at_once = 2\n") as stage:
        other = await start_gateway(
            load_config(tmp_path / "farebox.toml", {}), simulator=stage.simulator, logger=_recorder([])
        )
        beside = Stage(
            other,
            stage.simulator,
            HttpClient(Origin("http", "127.0.0.1", other.port, ""), connect_s=5, connections=9),
            [],
        )
        try:
            made = await make(beside, stage.alice, items(*["[[sim delay=60]]"] * 12))
            for _ in range(5):
                status, batch = await call(stage, stage.alice, "GET", f"{PATH}/{made['id']}")
                assert (status, batch["processing_status"]) == (200, "in_progress")

            async def some() -> bool:
                return bool((await stage.rows("SELECT count(*) FROM usage"))[0][0] >= 4)

            await eventually(some, 20)
            assert len([one for one in stage.simulator.requests if one.path == "/v1/messages"]) < 12
            assert not await stage.rows("SELECT 1 FROM batch_item WHERE sends > 1")
        finally:
            await beside.client.close()
            await other.stop()
        batch = await ended(stage, stage.alice, made["id"])
        assert batch["request_counts"]["succeeded"] == 12
        assert (await stage.rows("SELECT sum(sends) FROM batch_item"))[0][0] <= 14
        await books_agree(stage, stage.alice)


@on_sqlite
async def test_results_wait_for_a_client_that_reads_slowly_and_end_with_one_that_leaves(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        made = await make(stage, stage.alice, items(*["[[sim tokens=20000]]"] * 60, max_tokens=20_000))
        await ended(stage, stage.alice, made["id"])
        headers = [(b"x-api-key", stage.alice.key.encode()), (b"anthropic-version", b"2023-06-01")]
        path = f"{PATH}/{made['id']}/results"
        slow = Heard(await stage.client.request("GET", path, headers, b"", first_byte_s=10))
        slow.answer.pause()
        gone = Heard(await stage.client.request("GET", path, headers, b"", first_byte_s=10))
        gone.hang_up()
        await asyncio.sleep(0.2)
        assert len(slow.data) < 3 * 2**20
        status, _ = await stage.ask(stage.alice)
        assert status == 200
        slow.answer.resume()
        await slow.end(20)
        lines = [json.loads(line) for line in slow.data.splitlines()]
        assert {line["result"]["type"] for line in lines} == {"succeeded"}
        assert len(lines) == 60
        assert len(slow.data) > 4 * 2**20
        await books_agree(stage, stage.alice)
