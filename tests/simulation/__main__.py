"""Live one or more lives: `python -m tests.simulation --seed 1 --hours 1`; the same seed lives the same life."""

import argparse
import os
import sys
import traceback
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.simulation.life import Life


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lives", type=int, default=1, help="with seeds that follow each other")
    parser.add_argument("--hours", type=float, default=1.0, help="how long each life is")
    chosen = parser.parse_args()
    seen: Counter[str] = Counter()
    lives: list[Life] = []
    for seed in range(chosen.seed, chosen.seed + chosen.lives):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="farebox-life-", dir="/dev/shm") as directory:
            life = Life(seed, Path(directory), chosen.hours)
            lives.append(life)
            try:
                seen += life.run()
            except BaseException:  # noqa: BLE001  told, and the end
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        print(f"seed {seed}: {life.world.trace} {life.world.steps} steps {time.monotonic() - began:.2f} s", flush=True)
    print(dict(sorted(seen.items())))
    sys.stdout.flush()
    os._exit(0)  # the dead are not to be buried: their coroutines would run on


if __name__ == "__main__":
    main()
