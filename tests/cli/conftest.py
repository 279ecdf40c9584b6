"""The command line as people and scripts use it: in process, over a database of the test's own."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farebox.cli import main


class Run:
    """What one command left behind: exit code, and what it printed where."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Farebox = Callable[..., Run]


@pytest.fixture
def farebox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Farebox:
    for name in [name for name in os.environ if name.startswith("FAREBOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Run:
        with pytest.raises(SystemExit) as ended:
            main(words)
        captured = capsys.readouterr()
        return Run(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def at_books(request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let commands find their books in the database of the test; answers its URL."""
    request.getfixturevalue("farebox")  # which cleans the environment
    monkeypatch.setenv("FAREBOX_DATABASE_URL", database_url)
    return database_url
