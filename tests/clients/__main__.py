"""`make clients`: every client does every exercise, and docs/clients.md tells how it went."""

import argparse
import asyncio
import re
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from tests.clients.rounds import Client, Exercise, exercise
from tests.clients.run import ROOT
from tests.clients.table import CLIENTS

PAGE: Final = ROOT / "docs" / "clients.md"
BEGIN: Final = "<!-- written by `make clients` -->"
END: Final = "<!-- end -->"
AT_ONCE: Final = 2


@dataclass
class Result:
    """How a client did; `hosts` are those it asked for besides the gateway."""

    client: Client
    failed: dict[str, str] = field(default_factory=dict)
    hosts: set[str] = field(default_factory=set)


async def attempt(result: Result, part: Exercise, room: asyncio.Semaphore) -> None:
    async with room:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="farebox-client-") as folder:
            try:
                result.hosts |= await exercise(result.client, part, Path(folder))
            except Exception:  # noqa: BLE001  whatever it is, it is told and counted, and the others go on
                result.failed[part.name] = traceback.format_exc()
    outcome = "FAILED" if part.name in result.failed else "ok"
    print(f"{outcome:7}{result.client.name}: {part.name} ({time.monotonic() - begun:.1f} s)", flush=True)
    if part.name in result.failed:
        print(result.failed[part.name], flush=True)


def row(result: Result, day: str) -> str:
    """Write a client's line of the table."""
    client = result.client
    names = [part.name for part in client.exercises]
    passed = len(names) - len(result.failed)
    outcome = f"{passed} of {len(names)}" + (f"; failed: {', '.join(result.failed)}" if result.failed else "")
    others = ", ".join(sorted({named(host) for host in result.hosts})) or "none"
    cells = (client.name, f"`{client.package}` {client.version}", "; ".join(names), outcome, others, day)
    return f"| {' | '.join(cells)} |"


def named(host: str) -> str:
    """Name a host; a registry may be any mirror of it, so its name says nothing."""
    return "its package registry" if host.startswith(("registry.", "pypi.")) else f"`{host}`"


def write(results: list[Result], day: str) -> None:
    """Put the table between its marks in docs/clients.md; the lines of clients that did not run stay."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    lines = {line.split("|")[1].strip(): line for line in old.splitlines() if line.startswith("|")}
    lines |= {result.client.name: row(result, day) for result in results}
    table = [
        "| Client | Package | Exercised | Passed | Other hosts it asked for | Day |",
        "|---|---|---|---|---|---|",
        *(lines[client.name] for client in CLIENTS if client.name in lines),
    ]
    PAGE.write_text(before + "\n".join([BEGIN, *table, END]) + after)


async def main(names: list[str], only: str) -> int:
    results = [Result(client) for client in CLIENTS if not names or client.env in names]
    room = asyncio.Semaphore(AT_ONCE)
    done = await asyncio.gather(
        *(
            attempt(result, part, room)
            for result in results
            for part in result.client.exercises
            if re.search(only, part.name)
        )
    )
    if not only:
        write(results, time.strftime("%Y-%m-%d", time.gmtime()))
    failed = sum(len(result.failed) for result in results)
    print(f"{len(results)} clients: {len(done) - failed} passed, {failed} failed")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make clients", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these, by their directory in tests/clients/envs")
    parser.add_argument("--only", default="", help="only exercises whose name matches; the table is then not written")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - {client.env for client in CLIENTS})
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such client; there are {', '.join(client.env for client in CLIENTS)}")
    sys.exit(uvloop.run(main(given.names, given.only)))
