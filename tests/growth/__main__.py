"""`make growth`: fill books with many calls, and measure what pages and calls cost then (docs/scaling.md)."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.cluster import Cluster
from tests.databases import sqlite_path
from tests.growth.books import Filled, Size, fill
from tests.growth.measure import Cost, compare_calls, percentile, visit
from tests.growth.upgrades import upgrade_s
from tests.stage import open_stage

MOST_MS: Final = 50.0
_SETTINGS: Final = """
max_connections = 100
shared_buffers = 1GB
max_wal_size = 8GB
min_wal_size = 2GB
checkpoint_timeout = 15min
effective_cache_size = 8GB
fsync = on
"""

_SIZES: Final = (
    "SELECT relname::text, reltuples::bigint, pg_table_size(oid) / 1048576, pg_indexes_size(oid) / 1048576 "
    "FROM pg_class WHERE relkind = 'r' AND (relispartition OR relname ~ '_(hour|day)$') "
    "AND relnamespace = 'public'::regnamespace ORDER BY 1"
)


def tell(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def table(costs: list[Cost]) -> bool:
    """Print what pages cost; answers whether every query was quick enough."""
    print("| Page or answer | p50 / p99, ms | Slowest query p50 / p99, ms |\n|---|---|---|")
    slow = []
    for cost in sorted(costs, key=lambda one: -percentile(one.query_ms, 50)):
        query = (percentile(cost.query_ms, 50), percentile(cost.query_ms, 99))
        page = (percentile(cost.page_ms, 50), percentile(cost.page_ms, 99))
        print(f"| {cost.name} | {page[0]:.1f} / {page[1]:.1f} | {query[0]:.1f} / {query[1]:.1f} |")
        if query[0] > MOST_MS:
            slow.append(cost)
    for cost in slow:
        tell(f"too slow: {cost.name}: {cost.slowest}")
    return not slow


async def grow(kind: str, empty_url: str, full_url: str, size: Size, rounds: int, directory: Path) -> bool:
    now_us = time.time_ns() // 1000
    await fill(empty_url, Size(1000, 1, size.accounts), now_us, lambda _: None)
    filled: Filled = await fill(full_url, size, now_us, tell)
    print(
        f"\n{kind}: {size.calls:,} calls of {size.accounts} accounts in {size.days} days; "
        f"filled in {filled.fill_s:.0f} s, summed in {filled.hours_s:.0f} s "
        f"(an hour in {1000 * filled.hour_s:.0f} ms, a day from its hours in {1000 * filled.day_s:.0f} ms)\n",
        flush=True,
    )
    empty, full = await compare_calls(empty_url, full_url, now_us + 1, 10 * rounds)
    for name in ("admit_us", "settle_us"):
        before, after = getattr(empty, name), getattr(full, name)
        more = percentile(after, 50) / percentile(before, 50) - 1
        p50, p99 = ((percentile(before, at), percentile(after, at)) for at in (50, 99))
        told = f"p50 {p50[0]:.0f} µs empty, {p50[1]:.0f} µs full ({more:+.1%}); p99 {p99[0]:.0f} and {p99[1]:.0f}"
        print(f"{name.removesuffix('_us')}: {told}", flush=True)
    print()
    async with open_stage(directory, database_url=full_url) as stage:
        costs, _ = await visit(stage, rounds)
    return table(costs)


async def tell_upgrade(kind: str, url: str, size: Size) -> bool:
    took = await upgrade_s(url, size, time.time_ns() // 1000)
    print(f"{kind}: {size.calls:,} calls of {size.accounts} accounts came to the present schema in {took:.1f} s")
    return True


async def on_sqlite(size: Size, rounds: int, *, upgrades: bool) -> bool:
    with tempfile.TemporaryDirectory(prefix="farebox-growth-") as place:
        empty, full = (f"sqlite:///{place}/{name}.db" for name in ("empty", "full"))
        if upgrades:
            return await tell_upgrade("SQLite", full, size)
        good = await grow("SQLite", empty, full, size, rounds, Path(place))
        print(f"\nThe file has {sqlite_path(full).stat().st_size / 2**30:.2f} GiB.", flush=True)
        return good


async def on_postgresql(size: Size, rounds: int, *, upgrades: bool) -> bool:
    with (
        Cluster(settings=_SETTINGS) as cluster,
        tempfile.TemporaryDirectory(prefix="farebox-growth-") as place,
        cluster.database() as empty,
        cluster.database() as full,
    ):
        if upgrades:
            return await tell_upgrade("PostgreSQL", full, size)
        good = await grow("PostgreSQL", empty, full, size, rounds, Path(place))
        print("\n| Partition or sums | Rows | Table, MiB | Indexes, MiB |\n|---|---|---|---|")
        for row in cluster.fetch(_SIZES, database=full.rpartition("/")[2]):
            print("| " + " | ".join(str(value) for value in row) + " |")
        return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.growth", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--accounts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=30, help="times that each page is opened")
    parser.add_argument("--store", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--upgrades", action="store_true", help="how long the step before takes to come to this one")
    asked = parser.parse_args()
    size = Size(asked.calls, asked.days, asked.accounts)
    good = True
    if asked.store != "sqlite":
        good &= asyncio.run(on_postgresql(size, asked.rounds, upgrades=asked.upgrades))
    if asked.store != "postgresql":
        good &= asyncio.run(on_sqlite(size, asked.rounds, upgrades=asked.upgrades))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
