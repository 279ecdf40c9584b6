"""docs/faults.md: each fault says what the customer sees, what the books say, and names tests that there are."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "faults.md").read_text()
_ROW: Final = re.compile(
    r"^\| (?P<fault>[^|]+) \| (?P<customer>[^|]+) \| (?P<books>[^|]+) \| (?P<tests>[^|]+) \|$", re.MULTILINE
)
_TEST: Final = re.compile(r"`((?:\w+/)+test_\w+\.py)::(\w+)`")


def _rows() -> list[re.Match[str]]:
    return [row for row in _ROW.finditer(PAGE) if not set(row["fault"]) <= {"-"} and row["fault"] != "Fault"]


def test_there_are_at_least_forty_kinds_of_faults_each_told_once() -> None:
    first_cell = re.compile(r"^\| ([^|]+) \|", re.MULTILINE)
    told = [(section, cell) for section in PAGE.split("\n## ")[1:] for cell in first_cell.findall(section)]
    faults = [(section.partition("\n")[0], fault) for section, fault in told if fault not in {"Fault", "---"}]
    assert len(set(faults)) == len(faults) == len(_rows()) >= 40


def test_every_fault_names_tests_that_there_are() -> None:
    for row in _rows():
        named = _TEST.findall(row["tests"])
        assert ", ".join(f"`{file}::{test}`" for file, test in named) == row["tests"], row["fault"]
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
