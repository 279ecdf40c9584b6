"""A small crowd; `make soak SOAK=slow` has the large one."""

from pathlib import Path

from tests.hostile.crowd import crowd

_BUSY_S = 0.5
"""What the p99 may be on a machine that runs other tests beside: nobody is kept waiting for what a crawler takes."""


async def test_good_calls_are_served_beside_those_that_idle_crawl_and_do_not_read(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/books.db"
    told = await crowd(tmp_path, url, idle=300, crawlers=20, readers=2, seconds=1, enough_s=_BUSY_S)
    assert "good calls" in told
