"""What the fuzzer starts from, and what it has found: every input keeps its promise."""

import pytest

from tests.fuzz.targets import TARGETS
from tests.house.pages import ROOT

KEPT = ROOT / "tests" / "fuzz" / "kept"


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_that_was_kept_keeps_its_promise(target: str) -> None:
    inputs = sorted((KEPT / target).iterdir())
    assert len(inputs) >= 4
    for path in inputs:
        TARGETS[target](path.read_bytes())
