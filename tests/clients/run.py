"""Starts clients as their users do: as processes of their own, with an environment that holds nothing else."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.stage import Person, Stage

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENVS = ROOT / ".clients"
"""Where install.sh puts the clients, each in a directory of its own."""
LIMIT_S = 120.0


@dataclass
class Ended:
    code: int
    out: str
    err: str


async def run(*command: str | Path, env: Mapping[str, str], cwd: Path, limit_s: float = LIMIT_S) -> Ended:
    """Run a command to its end; ended by force, and a failure, when that takes too long."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), "LANG": "C.UTF-8", **env},
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), limit_s)
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"{command[0]} had not ended after {limit_s:g} s: {out!r} {err!r}") from None
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


def wanted(path: Path) -> Path:
    """Give the path of a client. One that is missing is a failure, never a skip."""
    assert path.exists(), f"{path} is missing: run tests/clients/install.sh, as `make test` does"
    return path


async def charges(stage: Stage, person: Person) -> list[tuple[str, str, int]]:
    """Give kind, model and charge of each of a customer's calls, oldest first."""
    return [
        (row[0], row[1], row[2])
        for row in await stage.rows(
            "SELECT kind, model, charged_nanos FROM usage WHERE account_id = ? ORDER BY at", person.account_id
        )
    ]


async def check_books(stage: Stage, person: Person, before_nanos: int) -> int:
    """Nothing is held, and the balance went down by exactly what the usage says; answers that."""
    posted, held = await stage.balance(person)
    charged = sum(row[2] for row in await charges(stage, person))
    assert held == 0
    assert posted == before_nanos - charged
    return charged
