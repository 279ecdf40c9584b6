"""`make failover`: every way to fail, one after the other, and the table of docs/reliability.md."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.failover.faulty import WAYS
from tests.failover.run import Result, Times, run

_HEAD = (
    "| One of three | Calls, of them during the fault | Failed | Broken | p50 / p99 before, ms "
    "| p50 / p99 during it, ms | Rests after, s | Back after, s | Books |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def row(result: Result) -> str:
    """Write a row of the table."""
    ejected = "never" if result.ejected_s is None else f"{result.ejected_s:.2f}"
    back = "-" if result.ejected_s is None else "later" if result.returned_s is None else f"{result.returned_s:.1f}"
    cells = (
        result.way,
        f"{result.calls}, {result.faulty_calls}",
        f"{result.failed} ({100 * result.failed / result.calls:.2g} %)",
        f"{result.broken}",
        f"{result.calm_p50_ms:.0f} / {result.calm_p99_ms:.0f}",
        f"{result.fault_p50_ms:.0f} / {result.fault_p99_ms:.0f}",
        ejected,
        back,
        result.books,
    )
    return f"| {' | '.join(cells)} |"


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.failover", description=__doc__)
    parser.add_argument("--rate", type=int, default=200, help="calls a second")
    parser.add_argument("ways", nargs="*", help="words in the names of the ways to play; none: all")
    args = parser.parse_args()
    chosen = [way for way in WAYS if not args.ways or any(word in way.name for word in args.ways)]
    sys.stdout.write(_HEAD + "\n")
    for way in chosen:
        with tempfile.TemporaryDirectory() as directory:
            result = await run(Path(directory), way, Times(rate=args.rate))
        sys.stdout.write(row(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
