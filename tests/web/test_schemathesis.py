"""Whatever is sent that /openapi.json describes, or that it forbids: no 500, no answer that it does not describe."""

import re
from pathlib import Path

from tests.web.explore import explore


async def test_every_answer_is_as_described_whatever_is_sent(tmp_path: Path) -> None:
    """For many more of them: `make soak SOAK=api`."""
    explored = await explore(tmp_path, 15, 1)
    assert explored.code == 0, explored.out + explored.err
    selected = re.search(r"Selected: (\d+)/\1\b", explored.out)
    assert selected is not None, explored.out
    assert re.search(rf"Tested: {selected[1]}\b", explored.out), explored.out
    cases = re.search(r"(\d+) generated, (\d+) passed", explored.out)
    assert cases is not None, explored.out
    assert int(cases[1]) > 200
