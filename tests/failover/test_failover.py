"""While one of three upstreams fails, no customer loses a call that had not begun, and the books stay exact."""

from pathlib import Path

import pytest

from tests.failover.faulty import WAYS
from tests.failover.run import Times, run

_SHORT = Times(rate=100, before_s=0.3, fault_s=1.5, after_s=0, connect_s=0.3, silent_s=0.5)


@pytest.mark.parametrize("name", ["refuses connections", "answers 503", "breaks in the middle of the answer"])
async def test_no_call_is_lost_that_had_not_begun(tmp_path: Path, name: str) -> None:
    (way,) = [way for way in WAYS if way.name == name]
    result = await run(tmp_path, way, _SHORT)
    assert result.calls >= 20
    assert result.failed == 0
    assert result.ejected_s is not None
    assert result.broken <= 20
    assert (result.broken > 0) is (name == "breaks in the middle of the answer")
    assert result.books == "exact"
