"""However many calls there are, no page and no answer reads them all: each query finds its rows by an index."""

import time
from pathlib import Path
from typing import Any

import asyncpg

from farebox.books.audit import audit
from farebox.store.open import open_store
from farebox.store.postgres import numbered
from tests.books.tampering import broken
from tests.growth.books import Size, fill
from tests.growth.measure import Watch, visit
from tests.stage import open_stage

CALLS = 20_000


async def test_no_page_reads_all_calls(database_url: str, database_kind: str, tmp_path: Path) -> None:
    now_us = time.time_ns() // 1000
    await fill(database_url, Size(CALLS, 60, 50), now_us, lambda _: None)
    async with open_stage(tmp_path, database_url=database_url) as stage:
        costs, watch = await visit(stage, 1)
        assert len(costs) > 35
        about_calls = {sql: params for sql, params in watch.asked.items() if " usage " in sql}
        assert len(about_calls) > 20
        plans = await _plans(watch, about_calls, database_kind, database_url)
        assert {sql: plan for sql, plan in plans.items() if _reads_all(plan, database_kind)} == {}


async def _plans(watch: Watch, asked: dict[str, tuple[Any, ...]], kind: str, url: str) -> dict[str, list[str]]:
    if kind == "sqlite":
        return {sql: [row[3] for row in await watch("EXPLAIN QUERY PLAN " + sql, asked[sql])] for sql in asked}
    # tables of a test are so small that reading them whole is best: what counts is that there is another way
    connection = await asyncpg.connect(url, server_settings={"enable_seqscan": "off"})
    try:
        plans = {}
        for sql, params in asked.items():
            rows = await connection.fetch("EXPLAIN " + numbered(sql), *params)
            plans[sql] = [row[0] for row in rows]
        return plans
    finally:
        await connection.close()


def _reads_all(plan: list[str], kind: str) -> bool:
    if kind == "sqlite":
        return any(line.split(" USING")[0] in {"SCAN usage", "SCAN u"} for line in plan)
    return any("Seq Scan on usage_2" in line or "Seq Scan on usage_other" in line for line in plan)


async def test_books_that_were_filled_at_once_hold(database_url: str) -> None:
    """So what is measured with them is what an operator has."""
    now_us = time.time_ns() // 1000
    await fill(database_url, Size(2_000, 40, 9), now_us, lambda _: None, digests=True)
    store = await open_store(database_url)
    try:
        assert broken(await audit(store)) == set()
    finally:
        await store.close()
