"""The clients of docs/clients.md that start fast, each with what says most; `make clients` runs all with everything."""

import urllib.error
import urllib.request
from asyncio import to_thread
from pathlib import Path

import pytest

from tests.clients import __main__ as make_clients
from tests.clients.rounds import Client, Exercise, Round, exercise
from tests.clients.table import CLIENTS
from tests.stage import MODEL

QUICK = {
    "typescript-sdk": {"tool"},
    "pydantic-ai": {"tool"},
    "openai-python": {"stream"},
}
PARTS = [
    pytest.param(client, part, id=f"{client.env}-{part.name}")
    for client in CLIENTS
    for part in client.exercises
    if part.name in QUICK.get(client.env, ())
]


def test_every_quick_exercise_is_one() -> None:
    assert len(PARTS) == sum(map(len, QUICK.values()))


@pytest.mark.parametrize(("client", "part"), PARTS)
async def test_a_client_does_its_exercise_and_the_books_agree(client: Client, part: Exercise, tmp_path: Path) -> None:
    await exercise(client, part, tmp_path)


def fetch(address: str, proxy: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"https": proxy}))
    with pytest.raises(urllib.error.URLError):
        opener.open(address, timeout=10)


async def call(at: Round) -> None:
    """Stand in for a client: one call, after a look at its maker's page."""
    await to_thread(fetch, "https://news.example/latest", at.env["HTTPS_PROXY"])
    assert at.env["BASE"] == at.stage.base_url
    assert (await at.stage.ask(at.person, model=MODEL))[0] == 200


STAND_IN = Client("A stand-in", "none", "none", ("BASE=https://HOST/api/proxy",), ())


async def test_what_a_client_wants_of_other_hosts_is_refused_and_told(tmp_path: Path) -> None:
    assert await exercise(STAND_IN, Exercise("call", call, 1), tmp_path) == {"news.example"}


@pytest.mark.parametrize("calls", [0, 2])
async def test_another_number_of_charges_than_expected_is_a_failure(tmp_path: Path, calls: int) -> None:
    with pytest.raises(AssertionError, match="exact"):
        await exercise(STAND_IN, Exercise("call", call, calls), tmp_path)


async def test_a_failure_of_one_client_fails_the_run_and_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = (Exercise("call", call, 1), Exercise("calls", call, 2))
    failing = Client("A stand-in", "none", "none", STAND_IN.settings, parts)
    monkeypatch.setattr(make_clients, "CLIENTS", (failing,))
    assert await make_clients.main([], "call") == 1
    assert "1 clients: 1 passed, 1 failed" in capsys.readouterr().out
