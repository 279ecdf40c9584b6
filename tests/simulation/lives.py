"""Lives in a process of their own, which ends without burying those who died in it."""

import asyncio
import json
import os
import sys
from collections import Counter

_COMMAND = (sys.executable, "-m", "tests.simulation")


class Failed(AssertionError):
    """A promise was broken in a life. Says in which one, and how to live it again."""


async def live(
    seed: int, lives: int, hours: float, *, calm_s: float = 3_600, plant: str | None = None
) -> tuple[list[str], Counter[str]]:
    """Live lives of so many hours; answers their traces, and what was seen in all of them. Raises Failed."""
    options = ["--seed", str(seed), "--lives", str(lives), "--hours", str(hours), "--calm", str(calm_s)]
    if plant is not None:
        options += ["--plant", plant]
    pipe = asyncio.subprocess.PIPE
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")}
    process = await asyncio.create_subprocess_exec(
        *_COMMAND, *options, stdout=pipe, stderr=pipe, env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        out, err = await process.communicate()
    except BaseException:
        process.kill()
        raise
    if process.returncode:
        raise Failed(f"{err.decode()[-6000:]}\nagain: python -m tests.simulation {' '.join(options)}")
    *traces, seen = out.decode().splitlines()
    return traces, Counter(json.loads(seen))
