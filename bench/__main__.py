"""Run the benchmark: interleaved rounds, one table, JSON when asked."""

import argparse
import contextlib
import fcntl
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import Popen

from bench import phases, report, tools
from bench.phases import Figures, Target, Timing, measure_memory, measure_speed
from bench.process import LOAD_CORE, free_port, running
from bench.stacks import STACKS, UPSTREAM_KEY, Place, Stack, farebox, terminator

START_LIMIT_S = 120
_OWN_FILES = 80
"""What a gateway has open beside its streams: books, log, the doors, a few connections."""

Phase = Callable[[Target, Timing], Figures]


@dataclass(frozen=True)
class Upstream:
    """The mock and the TLS terminator in front of it, for the whole benchmark."""

    pid: int
    port: int
    tls_port: int
    certificate: Path


def main() -> None:
    options = _options()
    if options.crowd:
        print(json.dumps(_crowd(options.crowd, options.prompt_kib), indent=1))
        return
    if options.overload:
        print(json.dumps(_overload(options.overload, options.connections), indent=1))
        return
    chosen = [s for s in STACKS if (s.name in options.only if options.only else s.quick or not options.quick)]
    rounds = options.rounds or (1 if options.quick else 3)
    timing = phases.QUICK if options.quick else phases.FULL
    tools.debian_packages(postgres=any(s.postgres for s in chosen))
    results: dict[str, list[Figures]] = {s.name: [] for s in chosen}
    scratch = tools.PEERS / "run"  # on a real disk: fsync into a tmpfs would flatter whoever syncs
    scratch.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(alone())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True)))
        upstream = start_upstream(stack, folder)
        for number in range(rounds):
            for chosen_stack in chosen:
                tools.say(f"round {number + 1}/{rounds}: {chosen_stack.label}")
                place = folder / f"{number}-{chosen_stack.name}"
                place.mkdir()
                results[chosen_stack.name].append(_one(chosen_stack, place, upstream, timing))
    if options.json:
        print(json.dumps({"rounds": results, "summary": report.summary(results)}, indent=1))
    else:
        print(report.markdown(results))
    if options.write:
        report.write(options.write, results)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Two benchmarks on the same cores would measure each other: the second waits."""
    with (tools.PEERS / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tools.say("waiting for another benchmark to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _options() -> argparse.Namespace:
    names = [s.name for s in STACKS]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="every figure of every round, and the summary")
    parser.add_argument("--quick", action="store_true", help="one round, short windows, nginx and Farebox only")
    parser.add_argument("--rounds", type=int, help="3 unless told")
    parser.add_argument("--only", type=lambda text: text.split(","), help="some of: " + ",".join(names))
    parser.add_argument("--write", type=Path, help="also put the table between the marks in this file")
    parser.add_argument("--crowd", type=int, metavar="N", help="instead: Farebox alone with N streams open, in JSON")
    parser.add_argument(
        "--overload", type=float, metavar="X", help="instead: Farebox alone at X times what it can serve, in JSON"
    )
    parser.add_argument(
        "--connections", type=int, metavar="N", default=4000, help="with --overload: how many its clients may open"
    )
    parser.add_argument("--prompt-kib", type=int, metavar="K", default=1, help="with --crowd: the size of each request")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"--only {','.join(sorted(unknown))}: choose from {', '.join(names)}")
    return options


def start_upstream(stack: ExitStack, folder: Path) -> Upstream:
    certificate, key = tools.certificate()
    port, tls_port = free_port(), free_port()
    mock = running([str(tools.program("upstream")), str(port)], cores=LOAD_CORE, log=folder / "upstream.log")
    process = stack.enter_context(mock)
    home = folder / "terminator"
    home.mkdir()
    command = terminator(Place(home, tls_port, f"http://127.0.0.1:{port}", certificate), key)
    stack.enter_context(running(command, cores=LOAD_CORE, log=folder / "terminator.log"))
    return Upstream(process.pid, port, tls_port, certificate)


def _one(stack: Stack, folder: Path, upstream: Upstream, timing: Timing) -> Figures:
    """Measure one gateway once: speed in one process, memory in a fresh one."""
    if stack.launch is None:
        headers = {"x-api-key": UPSTREAM_KEY}
        load = tools.program("load")
        target = Target(upstream.port, "/v1/messages", headers, None, "", None, upstream.pid, load, folder)
        return measure_speed(target, timing)
    figures: Figures = {}
    for name, phase in (("speed", measure_speed), ("memory", measure_memory)):
        with ExitStack() as ending:
            (folder / name).mkdir()
            base = f"https://localhost:{upstream.tls_port}" if stack.tls else f"http://127.0.0.1:{upstream.port}"
            place = Place(folder / name, free_port(), base, upstream.certificate, ending)
            figures |= measured(stack, place, upstream, timing, phase)
    return figures


def _crowd(streams: int, kib: int) -> Figures:
    """Measure one gateway with very many streams open."""
    return _by_itself(streams, streams + 100, partial(phases.measure_crowd, streams=streams, kib=kib))


def _overload(times: float, connections: int) -> Figures:
    """Measure one gateway, with the limit of calls at once that it comes with, at more than it can serve."""
    return _by_itself(connections, 2000, partial(phases.measure_overload, times=times, connections=connections))


def _by_itself(connections: int, most: int, phase: Phase) -> Figures:
    """Measure one gateway alone. Each connection may take two of the files that a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * connections + _OWN_FILES
    if hard < needed:
        sys.exit(f"{connections} connections take {needed} open files and {hard} are allowed: raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    tools.debian_packages(postgres=False)
    scratch = tools.PEERS / "run"
    scratch.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(alone())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True)))
        upstream = start_upstream(stack, folder)
        place = Place(folder / "alone", free_port(), f"http://127.0.0.1:{upstream.port}", upstream.certificate, stack)
        place.folder.mkdir()
        wide = Stack("farebox", "Farebox, billing on", partial(farebox, most=most))
        return measured(wide, place, upstream, phases.FULL, phase)


def measured(stack: Stack, place: Place, upstream: Upstream, timing: Timing, phase: Phase) -> Figures:
    """Start a gateway, wait for its first answer, check it, measure it, stop it."""
    assert stack.launch is not None
    launch, folder = stack.launch(place), place.folder
    load, log = tools.program("load"), folder / "gateway.log"
    started = time.monotonic()
    with running(launch.argv, cores=stack.cores, log=log, env=launch.env, cwd=folder) as process:
        gateway = (process.pid, stack.cores, launch.database)
        target = Target(place.port, launch.path, launch.headers, *gateway, upstream.pid, load, folder)
        try:
            start_s = _first_answer(target, started, process)
            phases.check(target)
            time.sleep(1)
            figures = {"start_s": start_s} | phase(target, timing)
        except Exception:
            tools.say(f"--- the end of {log}\n{log.read_text(errors='replace')[-3000:]}")
            raise
    if launch.verify:
        try:
            launch.verify()
        except tools.CommandFailed as failed:
            tools.say(str(failed))
            figures[f"{folder.name}_books_errors"] = 1
    return figures


def _first_answer(target: Target, started: float, process: Popen[bytes]) -> float:
    """Return the seconds from `started` to the first request that succeeds."""
    payload = phases.body(stream=False)
    while time.monotonic() < started + START_LIMIT_S and process.poll() is None:
        try:
            status, _ = phases.ask(target, payload)
            if status == 200:
                return time.monotonic() - started
        except OSError:
            pass
        time.sleep(0.02)
    raise RuntimeError(f"it ended, or gave no answer within {START_LIMIT_S} s")


if __name__ == "__main__":
    main()
