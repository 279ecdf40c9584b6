"""Where the CPU time of a call goes, function by function: `python -m bench.profiling`; of an event: `--streams`.

Farebox serves with a sampler in it (bench/sampler.py), under the load of the benchmark. Shares are of all CPU time of
the process; microseconds are shares of what the benchmark measures a call or an event to cost at the same time.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench import phases, sampler, tools
from bench.__main__ import alone, measured, start_upstream
from bench.phases import Figures, Target, Timing
from bench.process import free_port
from bench.stacks import STACKS, Launch, Place, Stack

SECONDS: Final = 15
LEAST: Final = 0.008
"""The smallest share that has a line of its own."""
ROOMS: Final = (
    ("http/server.py", "reading requests, writing answers"),
    ("http/exchange.py", "reading requests, writing answers"),
    ("http/", "asking the upstream, reading its answer"),
    ("upstreams/", "choosing an upstream"),
    ("accounts/", "who is asking"),
    ("books/", "holding and settling: batching"),
    ("store/", "holding and settling: SQLite on the loop"),
    ("billing/", "bounds, prices and the ledger's rules"),
    ("gateway/sse.py", "reading usage beside the stream"),
    ("gateway/", "the story of a call"),
    ("workers/", "event loop and interpreter"),
    ("cli/", "event loop and interpreter"),
    ("", "everything else of ours"),
)
"""What the files are for, the first that fits."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.profiling", description=__doc__)
    parser.add_argument("--streams", action="store_true", help="1,000 streams of 25 events a second, not short calls")
    parser.add_argument("--lines", action="store_true", help="line by line instead of function by function")
    options = parser.parse_args()
    tools.debian_packages(postgres=False)
    scratch = tools.PEERS / "run"
    scratch.mkdir(parents=True, exist_ok=True)
    with ExitStack() as ending:
        ending.enter_context(alone())
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True)))
        upstream = start_upstream(ending, folder)
        place = Place(
            folder / "farebox", free_port(), f"http://127.0.0.1:{upstream.port}", upstream.certificate, ending
        )
        place.folder.mkdir()
        out = folder / "samples.json"
        figures = measured(_sampled(out), place, upstream, phases.FULL, _streams if options.streams else _calls)
        found = json.loads(out.read_text())
    each_us = figures["event_us" if options.streams else "c64_us"]
    print(
        table(found["lines"], found["others_s"], each_us, "event" if options.streams else "call", by_line=options.lines)
    )


def _sampled(out: Path) -> Stack:
    """Give the benchmark's own Farebox, with the sampler in it."""
    (stack,) = [one for one in STACKS if one.name == "farebox"]

    def launch(place: Place) -> Launch:
        assert stack.launch is not None
        plain = stack.launch(place)
        return replace(plain, argv=[sys.executable, str(Path(sampler.__file__)), str(out), *plain.argv[1:]])

    return replace(stack, launch=launch)


def _calls(target: Target, timing: Timing) -> Figures:
    figures: Figures = {}
    phases.closed(target, replace(timing, closed_s=SECONDS), figures, 64)
    return figures


def _streams(target: Target, timing: Timing) -> Figures:
    figures: Figures = {}
    phases.streams(target, replace(timing, streams_s=SECONDS), figures)
    return figures


def table(
    lines: Iterable[tuple[str, str, int, str, float]], others_s: float, each_us: float, unit: str, *, by_line: bool
) -> str:
    """Make the table: rooms with their sums, and below each what takes most in it."""
    rooms: defaultdict[str, float] = defaultdict(float, {"other threads: commits": others_s})
    parts: dict[str, defaultdict[str, float]] = {}
    for file, function, line, inner, seconds in lines:
        room = (
            next((name for begin, name in ROOMS if file.startswith(begin)), "")
            if file
            else "event loop and interpreter"
        )
        rooms[room] += seconds
        name = f"`{file}` {function}" + (f":{line}" if by_line else "") if file else inner
        parts.setdefault(room, defaultdict(float))[name] += seconds
    total = sum(rooms.values())
    rows = [f"| where | share | µs a {unit} |", "|---|---|---|"]
    for room, seconds in sorted(rooms.items(), key=lambda one: -one[1]):
        rows.append(f"| **{room}** | **{seconds / total:.1%}** | **{each_us * seconds / total:.1f}** |")
        rows += [
            f"| {name} | {part / total:.1%} | {each_us * part / total:.1f} |"
            for name, part in sorted(parts.get(room, {}).items(), key=lambda one: -one[1])
            if part / total >= LEAST
        ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
