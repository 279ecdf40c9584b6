"""The clients of docs/clients.md that start fast, each with what says most; `make clients` runs all with everything."""

from pathlib import Path

import pytest

from tests.clients.rounds import Client, Exercise, exercise
from tests.clients.table import CLIENTS

QUICK = {
    "anthropic-1": {"message", "tool", "structured output"},
    "typescript-sdk": {"tool", "structured output", "thinking over two turns"},
    "pydantic-ai": {"stream", "tool"},
    "vercel-ai": {"stream", "tool"},
    "openai-python": {"stream", "tool"},
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
