"""Whole lives of a gateway on a virtual clock: everything goes wrong in them, and no promise is broken."""

import asyncio

import pytest

from tests.simulation.life import MUST_SEE
from tests.simulation.lives import Failed, live
from tests.simulation.planted import PLANTED

_SELDOM = {"killed while it started", "killed while it retired", "log: settles_spooled", "log: shortfall"}
"""What a short run need not see."""


async def test_lives_in_which_everything_goes_wrong_break_no_promise() -> None:
    """Their seeds stay the same, so that a change that breaks one is seen; `make soak` lives others."""
    (_, seen), (_, more) = await asyncio.gather(live(1_000, 2, 0.6, calm_s=200), live(2_000, 2, 0.6, calm_s=200))
    seen += more
    missing = [what for what in MUST_SEE if not seen[what] and what not in _SELDOM]
    assert not missing, f"these lives were too easy: never seen {missing} in {dict(seen)}"


async def test_a_seed_lives_the_same_life_again() -> None:
    (first, _), (again, _), (other, _) = await asyncio.gather(live(7, 1, 0.05), live(7, 1, 0.05), live(8, 1, 0.05))
    assert first == again
    assert first[0].partition("trace")[2] != other[0].partition("trace")[2]


@pytest.mark.parametrize("bug", PLANTED)
async def test_a_planted_bug_is_found(bug: str) -> None:
    with pytest.raises(Failed, match=r"AssertionError[^$]*again: python -m tests\.simulation --seed"):
        await live(1, 40, 0.5, calm_s=200, plant=bug)
