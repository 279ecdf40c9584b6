"""PostgreSQL decides as the fold does: the same batches, the same clock, the same answers, the same rows."""

import os
import random
from pathlib import Path

from tests.cluster import Cluster
from tests.races.decisions import Decisions

DECISIONS = 12_000


async def test_postgresql_decides_as_the_fold_does_whatever_comes(tmp_path: Path, cluster: Cluster) -> None:
    """Set FAREBOX_SEED to repeat a run; the note at a failure names it."""
    seed = int(os.environ.get("FAREBOX_SEED") or random.SystemRandom().getrandbits(32))
    with cluster.database() as url:
        decisions = Decisions(url, tmp_path, seed)
        await decisions.run(DECISIONS)
    for what in ("admitted", "insufficient", "resized", "settled"):
        assert decisions.seen[what] >= DECISIONS // 100, f"{what} is too rare: {decisions.seen} (seed {seed})"
