"""docs/security.md answers every line of the standard at levels 1 and 2, once, with tests that there are."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "security.md").read_text()
LINES: Final = {
    "1.1": (1, 2), "1.2": range(1, 10), "1.3": range(1, 12), "1.4": range(1, 4), "1.5": (1, 2),
    "2.1": range(1, 4), "2.2": range(1, 4), "2.3": range(1, 5), "2.4": (1,),
    "3.2": (1, 2), "3.3": range(1, 5), "3.4": range(1, 7), "3.5": range(1, 6), "3.7": (1, 2),
    "4.1": range(1, 4), "4.2": (1,), "4.3": (1, 2), "4.4": range(1, 5),
    "5.1": (1,), "5.2": range(1, 4), "5.3": (1, 2), "5.4": range(1, 4),
    "6.1": range(1, 4), "6.2": range(1, 13), "6.3": range(1, 5), "6.4": range(1, 5), "6.5": range(1, 6),
    "6.6": range(1, 4), "6.8": range(1, 5),
    "7.1": range(1, 4), "7.2": range(1, 5), "7.3": (1, 2), "7.4": range(1, 6), "7.5": (1, 2), "7.6": (1, 2),
    "8.1": (1, 2), "8.2": range(1, 4), "8.3": (1,), "8.4": (1,),
    "9.1": range(1, 4), "9.2": range(1, 5),
    "10.1": (1, 2), "10.2": (1, 2), "10.3": range(1, 5), "10.4": range(1, 12), "10.5": range(1, 6), "10.6": (1, 2),
    "10.7": range(1, 4),
    "11.1": (1, 2), "11.2": range(1, 4), "11.3": range(1, 4), "11.4": range(1, 5), "11.5": (1,), "11.6": (1,),
    "12.1": range(1, 4), "12.2": (1, 2), "12.3": range(1, 5),
    "13.1": (1,), "13.2": range(1, 6), "13.3": (1, 2), "13.4": range(1, 6),
    "14.1": (1, 2), "14.2": range(1, 5), "14.3": range(1, 4),
    "15.1": range(1, 4), "15.2": range(1, 4), "15.3": range(1, 8),
    "16.1": (1,), "16.2": range(1, 6), "16.3": range(1, 5), "16.4": range(1, 4), "16.5": range(1, 4),
    "17.1": (1,), "17.2": range(1, 5), "17.3": (1, 2),
}  # fmt: skip
"""The requirements of levels 1 and 2 of OWASP ASVS 5.0.0, by section."""


def answered() -> list[str]:
    """Give the numbers of all lines that the page answers."""
    found = []
    for cell in re.findall(r"^\| ([\d., to]+) \| (?:yes|house|no use|open) \|", PAGE, re.MULTILINE):
        for part in cell.split(", "):
            first, _, last = part.partition(" to ")
            section, number = first.rsplit(".", 1)
            end = int(last.rsplit(".", 1)[1]) if last else int(number)
            found += [f"{section}.{one}" for one in range(int(number), end + 1)]
    return found


def test_every_line_is_answered_once() -> None:
    wanted = [f"{section}.{number}" for section, numbers in LINES.items() for number in numbers]
    assert sorted(answered()) == sorted(wanted)


def test_what_is_met_names_what_shows_it() -> None:
    """Every test that is named is there; a file alone stands for all of its tests."""
    names = re.findall(r"`((?:\w+/)+test_\w+\.py)(?:::(\w+))?`", PAGE)
    assert len(names) > 100
    for file, test in names:
        text = (ROOT / "tests" / file).read_text()
        assert not test or f"def {test}(" in text, f"{file}::{test}"
