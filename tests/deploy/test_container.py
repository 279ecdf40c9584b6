"""The container file: what it says, as far as it can be tried without building an image."""

import asyncio
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Final

from farebox.cli import cli
from farebox.config import load_config
from tests.deploy.balancers import DEPLOY
from tests.house.pages import ROOT
from tests.stage import open_stage

_CONTINUED: Final = re.compile(r"\\\n")
CONFIGURATION: Final = '[[upstreams]]\nname = "sim"\nkind = "simulator"\n'


def instructions(name: str) -> list[str]:
    """What stands behind each instruction of this name, in order."""
    lines = _CONTINUED.sub(" ", (DEPLOY / "Containerfile").read_text()).splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]


def variables() -> dict[str, str]:
    return dict(word.split("=", 1) for line in instructions("ENV") for word in shlex.split(line))


def test_what_is_built_from_is_let_in_and_nothing_else() -> None:
    """Keys, books and history stay where they are, whatever lies about in the checkout."""
    copied = {word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]}
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    assert {line.removeprefix("!") for line in rest if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_what_is_installed_is_what_was_locked() -> None:
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert len(installs) == 2
    assert "--require-hashes -r requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation" in installs[1]


def test_it_serves_as_nobody_special_and_brings_no_secret() -> None:
    assert instructions("USER") == ["10001:10001"]
    assert instructions("ARG") == []
    assert not [name for name in variables() if re.search("KEY|SECRET|PASSWORD|TOKEN", name)]


def test_its_variables_are_settings(tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text(CONFIGURATION)
    told = {name: value for name, value in variables().items() if name.startswith("FAREBOX_")}
    config = load_config(tmp_path / "farebox.toml", told)
    (volume,) = instructions("VOLUME")
    assert config.server.host == "0.0.0.0"
    assert instructions("EXPOSE") == [f"{config.server.port} {config.server.metrics.rpartition(':')[2]}"]
    assert config.database_path is not None
    assert {str(config.database_path.parent), str(config.spool_path.parent)} == {volume}


def test_what_it_starts_is_a_command() -> None:
    entry, words = (json.loads(instructions(name)[-1]) for name in ("ENTRYPOINT", "CMD"))
    assert entry == ["farebox"]
    assert words[0] in cli.commands


async def test_its_health_check_tells_whether_the_gateway_serves(tmp_path: Path, unused_tcp_port: int) -> None:
    (check,) = instructions("HEALTHCHECK")
    words: list[str] = json.loads(check.partition(" CMD ")[2])
    assert words[0] == "python3"

    async def health(port: int) -> Any:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words[1:], env={"FAREBOX_SERVER_PORT": str(port)}, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(10):
            return await process.wait()

    async with open_stage(tmp_path) as stage:
        assert await health(stage.gateway.port) == 0
    assert await health(unused_tcp_port) != 0
