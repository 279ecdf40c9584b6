"""A power cut loses nothing that was answered, whatever the disk had not been told to keep."""

import os
import random

import pytest

from tests.disk.power import Power, SpoolPower

CUTS = 60


@pytest.fixture
def seed() -> int:
    """Set FAREBOX_SEED to repeat a run's choices; the note at a failure names it."""
    return int(os.environ.get("FAREBOX_SEED") or random.SystemRandom().getrandbits(32))


async def test_sixty_power_cuts_lose_nothing_that_was_answered_and_leave_nothing_half_done(seed: int) -> None:
    """Half of them come after syncs have failed, which leave what they were to bring to the disk in doubt for good."""
    power = Power(seed)
    await power.run(CUTS)
    print(f"seed {seed}: {dict(power.seen)}")
    for what in ("call, all answered", "call, last command not answered", "changes that might be lost"):
        assert power.seen[what] >= CUTS, f"{what} was seen {power.seen[what]} times only (seed {seed})"
    for what in ("syncs that failed", "commands not answered", "syncs of the database", "syncs of a directory"):
        assert power.seen[what], f"{what}: never seen (seed {seed})"


async def test_the_same_cuts_lose_what_was_answered_where_commits_are_not_synced(seed: int) -> None:
    """Else the test above would prove nothing."""
    power = Power(seed, synchronous="NORMAL")
    await power.run(CUTS // 2)
    assert power.lost >= CUTS // 10, f"{power.lost} with seed {seed}"


async def test_power_cuts_lose_nothing_that_the_spool_was_given(seed: int) -> None:
    """It holds charges of answers that were delivered, since the books could not take them."""
    power = SpoolPower(seed)
    await power.run(CUTS)
    print(f"seed {seed}: {dict(power.seen)}")
    for what in ("settles kept, and not booked before", "changes that might be lost", "syncs that failed"):
        assert power.seen[what], f"{what}: never seen (seed {seed})"
