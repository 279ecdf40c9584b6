"""Find the line on which each key of a TOML document stands. tomllib reads values exactly, but says no lines.

Works on documents that tomllib has accepted, so it need not recognise mistakes. Keys inside an inline table
or a list are not looked for: they stand on the line of the key they belong to, or a little below.
"""

import re
import tomllib
from collections.abc import Mapping

Path = tuple[str | int, ...]
"""Where a value is in a document: keys, and indices from 0 in lists."""

_SKIP = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)+")
_HEADER = re.compile(r"\[\[?(?P<key>(?:[^\]\"'#\n]|\"(?:[^\"\\]|\\.)*\"|'[^']*')+)\]\]?")
_KEY = re.compile(r"(?:[^=\"'#\n]|\"(?:[^\"\\]|\\.)*\"|'[^']*')+(?==)")
_VALUE_PIECE = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r"|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|#[^\n]*|[\[\]{}]|\n|[^\[\]{}\"'#\n]+",
    re.DOTALL,
)


def locate(text: str) -> Mapping[Path, int]:
    """Map the path of every table and key to its line, counted from 1."""
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    position = 0
    while position < len(text):
        if skipped := _SKIP.match(text, position):
            position = skipped.end()
            continue
        line = text.count("\n", 0, position) + 1
        if header := _HEADER.match(text, position):
            table = _enter(_parts(header["key"]), counts)
            if header.group().startswith("[["):
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            lines.setdefault(table, line)
            position = header.end()
            continue
        key = _KEY.match(text, position)
        if key is None:
            break
        path = table
        for part in _parts(key.group()):
            path = (*path, part)
            lines.setdefault(path, line)
        position = _skip_value(text, key.end() + 1)
    return lines


def line_of(lines: Mapping[Path, int], path: Path) -> int | None:
    """Give the line of a path, or of the nearest thing around it that has one."""
    for length in range(len(path), 0, -1):
        if line := lines.get(path[:length]):
            return line
    return None


def _parts(key: str) -> list[str]:
    """Split a dotted key, by letting tomllib read it."""
    parts = []
    value = tomllib.loads(f"{key} = 0")
    while isinstance(value, dict):
        part, value = next(iter(value.items()))
        parts.append(part)
    return parts


def _enter(parts: list[str], counts: Mapping[Path, int]) -> Path:
    """Follow a table's name; inside a list of tables it means the last one so far."""
    path: Path = ()
    for position, part in enumerate(parts):
        path = (*path, part)
        if position < len(parts) - 1 and path in counts:
            path = (*path, counts[path])
    return path


def _skip_value(text: str, position: int) -> int:
    depth = 0
    while position < len(text):
        piece = _VALUE_PIECE.match(text, position)
        if piece is None:
            break
        position = piece.end()
        if piece.group() in {"[", "{"}:
            depth += 1
        elif piece.group() in {"]", "}"}:
            depth -= 1
        elif piece.group() == "\n" and depth == 0:
            break
    return position
