"""A gateway behind each of the balancers in turn, and what none of them may keep."""

import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.deploy.balancers import SAMPLES, Balancer, Sample, balance
from tests.stage import Stage, open_stage

CANARY = "canary-3b9e-"
"""Part of the prompts and of every key here; no balancer may write it anywhere."""
KEYS = f'[keys]\nprefix = "{CANARY}"\n'

Balance = Callable[[int, int], AbstractAsyncContextManager[Balancer]]


def _openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for the name localhost that vouches for itself; both.pem has the key in it, too."""
    directory = tmp_path_factory.mktemp("certificates")
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    _openssl(directory, *new, *names, "-keyout", "server.key", "-out", "server.pem")
    both = (directory / "server.pem").read_text() + (directory / "server.key").read_text()
    (directory / "both.pem").write_text(both)
    return directory


@pytest.fixture(params=SAMPLES, ids=lambda sample: sample.name)
def balanced(request: pytest.FixtureRequest, tmp_path: Path, certificates: Path) -> Balance:
    """Start one of the balancers before two ports; afterwards, look for what it should not have kept."""
    sample: Sample = request.param

    @asynccontextmanager
    async def start(first: int, second: int) -> AsyncIterator[Balancer]:
        async with balance(sample, tmp_path / sample.name, certificates, (first, second)) as balancer:
            yield balancer
        assert CANARY.encode() not in balancer.traces()

    return start


@pytest.fixture
async def front(tmp_path: Path, balanced: Balance) -> AsyncIterator[tuple[Stage, Balancer]]:
    """A gateway behind a balancer that takes it for two; the stage's own calls go through the balancer."""
    async with (
        open_stage(tmp_path, KEYS, limits="drain_s = 0") as stage,
        balanced(stage.gateway.port, stage.gateway.port) as balancer,
    ):
        stage.client = balancer.client
        yield stage, balancer
