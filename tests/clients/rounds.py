"""One exercise of one client: a gateway with a customer, the client as a process of its own, what must be true after.

A client gets an empty home, its documented settings and nothing else. Whatever it wants of other hosts than the gateway
goes to a proxy that writes down the host and refuses.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.clients.run import ENVS, HERE, Ended, charges, check_books, run, wanted
from tests.stage import Person, Stage, open_stage

OPENED: Final = 100 * 10**9
LIMIT_S: Final = 180.0
_SWITCHED_ON: Final = "[batches]\npoll_s = 0.1\n[features]\nfiles = true\n"


class Fence:
    """A proxy that lets nothing through and knows who was asked for."""

    def __init__(self) -> None:
        self.hosts: set[str] = set()

    async def refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError):
            asked = (await reader.readline()).decode("latin-1").split()
            if len(asked) > 1:
                host = asked[1].removeprefix("https://").removeprefix("http://").split("/")[0]
                self.hosts.add(host.removesuffix(":443"))
            writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
        writer.close()


@asynccontextmanager
async def open_fence() -> AsyncIterator[tuple[Fence, dict[str, str]]]:
    """Start a fence; answers it and the variables that lead a client to it."""
    fence = Fence()
    server = await asyncio.start_server(fence.refuse, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    try:
        yield fence, {**dict.fromkeys(names, address), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    finally:
        server.close()


@dataclass(frozen=True)
class Client:
    """A client of the table; `settings` are what docs/clients.md tells its users to set, for HOST and KEY."""

    name: str
    package: str
    """Its registry and its name there; the version stands in the lock of its environment."""
    env: str
    """Its directory under envs/ and under .clients/."""
    settings: tuple[str, ...]
    exercises: tuple["Exercise", ...]
    quiet: Mapping[str, str] = field(default_factory=dict)
    """Its switches against telemetry and look-ups of versions."""
    script: str = ""
    """The directory under envs/ that has its scenes, where it is not its own."""

    @property
    def version(self) -> str:
        """The version that the lock names."""
        lock = HERE / "envs" / self.env / "package.json"
        if lock.exists():
            return str(json.loads(lock.read_text())["dependencies"][self.package])
        lines = (HERE / "envs" / self.env / "requirements.txt").read_text().splitlines()
        (found,) = [line for line in lines if line.startswith(f"{self.package}==")]
        return found.split()[0].removeprefix(f"{self.package}==")

    @property
    def home(self) -> Path:
        return wanted(ENVS / self.env)


@dataclass(frozen=True)
class Round:
    """What an exercise has at hand."""

    client: Client
    stage: Stage
    person: Person
    home: Path
    env: Mapping[str, str]

    async def run(self, *command: str | Path, **env: str) -> Ended:
        """Run a command to its end, in this round's home."""
        return await run(*command, env={**self.env, **env}, cwd=self.home, limit_s=LIMIT_S)

    async def scene(self, name: str) -> Any:
        """Run a scene of the client's script; answers what it saw."""
        folder = HERE / "envs" / (self.client.script or self.client.env)
        script = next(folder.glob("scenes.*"))
        if script.suffix == ".mjs":
            (self.home / "node_modules").symlink_to(self.client.home / "node_modules")
            ended = await self.run("node", shutil.copy(script, self.home), name)
        else:
            ended = await self.run(self.client.home / "bin" / "python", script, name)
        assert ended.code == 0, f"{ended.err[-3000:]}{ended.out[-1000:]}"
        return json.loads(ended.out.splitlines()[-1])

    def sent(self, path: str = "/v1/messages") -> int:
        """Count what came to the upstream."""
        return sum(1 for request in self.stage.simulator.requests if request.path == path)


@dataclass(frozen=True)
class Exercise:
    name: str
    act: Callable[[Round], Awaitable[None]]
    calls: int | None
    """How many calls are charged; None: one at least."""
    poor: bool = False
    """Done by bob, who has no money."""


async def exercise(client: Client, part: Exercise, folder: Path) -> set[str]:
    """Do one exercise and look at the books after; answers the other hosts that the client asked for.

    Raises AssertionError when anything is not as it should be.
    """
    home = folder / "home"
    home.mkdir()
    async with (
        open_stage(folder, _SWITCHED_ON, limits="attempts = 1") as stage,
        open_fence() as (fence, proxied),
    ):
        person = stage.bob if part.poor else stage.alice
        base = stage.base_url.removesuffix("/api/proxy")
        env = {
            name: value.replace("https://HOST", base).replace("KEY", person.key)
            for name, _, value in (setting.partition("=") for setting in client.settings)
        }
        at = Round(client, stage, person, home, {**proxied, **client.quiet, **env})
        await part.act(at)
        opened = 0 if part.poor else OPENED
        async with asyncio.timeout(15):
            while (await stage.balance(person))[1]:  # noqa: ASYNC110  the gateway's own doing
                await asyncio.sleep(0.02)
        await check_books(stage, person, opened)
        paid = [row for row in await charges(stage, person) if row[2]]
        assert {row[0] for row in paid} <= {"exact"}, paid
        assert len(paid) == part.calls if part.calls is not None else paid, paid
        assert all(person.key.encode() not in value for r in stage.simulator.requests for _, value in r.headers)
        return fence.hosts
