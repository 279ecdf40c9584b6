"""Fuzz with the coverage as guide (Atheris); `make fuzz` runs all targets, one after the other.

python -m tests.fuzz                        all of them, 10 minutes in all
python -m tests.fuzz meter --minutes 60     one of them

What breaks a promise is written to .fuzz/ and its path printed. Kept in tests/fuzz/kept/, it is replayed by the suite.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["farebox"]):
    from tests.fuzz.targets import TARGETS

KEPT: Final = Path(__file__).with_name("kept")
FOUND: Final = Path(".fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("target", nargs="?", choices=(*TARGETS, "all"), default="all")
    parser.add_argument("--minutes", type=float, default=10, help="for all of them together")
    chosen = parser.parse_args()
    targets = list(TARGETS) if chosen.target == "all" else [chosen.target]
    if len(targets) == 1:
        _fuzz(targets[0], round(chosen.minutes * 60))
        return 0
    each = ("--minutes", f"{chosen.minutes / len(targets):.3f}")
    return max(subprocess.call([sys.executable, "-m", "tests.fuzz", target, *each]) for target in targets)


def _fuzz(target: str, seconds: int) -> None:
    """Fuzz one target; ends the process."""
    grown = FOUND / target
    grown.mkdir(parents=True, exist_ok=True)
    words = [f"-max_total_time={seconds}", f"-artifact_prefix={FOUND}/{target}-", "-max_len=2048", "-timeout=20"]
    words += ["-print_final_stats=1", "-rss_limit_mb=2048", str(grown), str(KEPT / target)]
    atheris.Setup([target, *words], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
