"""Live one or more lives, one after the other: `python -m tests.simulation --seed 1 --hours 1`.

The same seed lives the same life, step by step: the trace is the same. A failure tells the seed.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from tests.simulation.life import Life
from tests.simulation.planted import PLANTED


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lives", type=int, default=1, help="with seeds that follow each other")
    parser.add_argument("--hours", type=float, default=1.0, help="how long each life is")
    parser.add_argument("--calm", type=float, default=3_600, metavar="S", help="seconds between times of trouble")
    parser.add_argument("--plant", choices=PLANTED, help="with a bug that must be found")
    chosen = parser.parse_args()
    lives: list[Life] = []
    seen: Counter[str] = Counter()
    try:
        with PLANTED[chosen.plant]() if chosen.plant else contextlib.nullcontext():
            for seed in range(chosen.seed, chosen.seed + chosen.lives):
                with tempfile.TemporaryDirectory(prefix="farebox-life-", dir="/dev/shm") as directory:
                    lives.append(Life(seed, Path(directory), chosen.hours, calm_s=chosen.calm))
                    seen += lives[-1].run()
                print(f"seed {seed}: {lives[-1].world.steps} steps, trace {lives[-1].world.trace}", flush=True)
        print(json.dumps(dict(sorted(seen.items()))))
    except BaseException:  # noqa: BLE001  told, and the end
        traceback.print_exc()
        _end(1)
    _end(0)


def _end(code: int) -> None:
    """End without burying the dead: their coroutines would run on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
