"""Calls of the kernel fail under the real server: it says so, it stops or serves on, and keeps every promise."""

import os
import random
from pathlib import Path

from tests.disk.recording import record
from tests.disk.syscalls import Fault, Syscalls

FAULTS = [
    Fault("fdatasync", "EIO", 6, lasting=False),
    Fault("pwrite64", "EIO", 25, lasting=False),
    Fault("fdatasync", "killed", 9, lasting=False),
    Fault("pwrite64", "short", 250_001, lasting=False),
    Fault("openat", "EIO", 3, lasting=False),
    Fault("fdatasync", "slow", 5, lasting=True),
    Fault("fdatasync", "ENOSPC", 10, lasting=True),
]


async def test_seven_faults_of_calls_of_the_kernel_under_load_lose_no_charge_and_are_told(tmp_path: Path) -> None:
    """Set FAREBOX_SEED to repeat the choices of a run; the note at a failure names it."""
    seed = int(os.environ.get("FAREBOX_SEED") or random.SystemRandom().getrandbits(32))
    run = Syscalls(tmp_path, seed)
    await run.run(FAULTS)
    print(f"seed {seed}: {dict(run.seen)}")
    assert run.seen["faults that came about"] >= len(FAULTS) - 2, run.seen
    assert run.seen["cases in which answers were had in full"] >= len(FAULTS) // 2, run.seen
    assert run.seen["ended by itself"], "the server served without its database"
    assert run.seen["log: books_faltered"] + run.seen["log: books_unavailable"], run.seen


async def test_a_sync_that_fails_while_books_are_made_is_told_and_the_next_try_makes_them(tmp_path: Path) -> None:
    """SQLite only says that the journal's mode has stayed what it was; the file was unusable then, for this process."""
    recording = await record(tmp_path, 1, operations=3, synchronous="FULL", checkpoint=1000, faults="error=EIO:when=3")
    assert any(event.returned for event in recording.events if event.name == "fdatasync")
    assert sum("done" in line for _, line in recording.told) > 10
