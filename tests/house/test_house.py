"""The house stays one that can be walked through: what no test of behaviour would notice."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import farebox
from tests.house.pages import ROOT, anchors, links, pages

SRC = ROOT / "src" / "farebox"
FUNCTION_LINES = 70
FILE_LINES = 500
CHANGING = {"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update"}
MUTABLE = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict"}
LEFT_UNDONE = re.compile(r"\b(?:TO" + "DO|FIX" + "ME|XX" + r"X)\b")


def sources() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def told(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{told(path)}: {node.name} has {lines} lines"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert not long


def test_no_file_is_longer_than_one_noun() -> None:
    lines = {told(path): path.read_text().count("\n") for path in sources()}
    assert not {file: count for file, count in lines.items() if count > FILE_LINES}


def test_nothing_is_left_for_later() -> None:
    files = [path for top in ("src", "tests", "bench", "docs") for path in (ROOT / top).rglob("*.*")]
    kinds = {".py", ".sql", ".toml", ".md", ".c", ".sh"}
    texts = [path for path in files if path.suffix in kinds and "node_modules" not in path.parts]
    assert [told(path) for path in texts if path.is_relative_to(SRC)]
    assert not [path for path in texts if LEFT_UNDONE.search(path.read_text())]


# state


def module_state(text: str) -> list[str]:
    """Find what a module keeps between calls: containers that are no constants, constants that are changed."""
    tree = ast.parse(text)
    found = []
    constants = set()
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and _is_container(statement.value):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            constants |= names
            found += [f"{name} is a container, and no constant" for name in names if not _is_constant(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            found.append(f"global {', '.join(node.names)}")
        changed = _changed(node)
        if isinstance(changed, ast.Name) and changed.id in constants:
            found.append(f"{changed.id} is changed in line {changed.lineno}")
    return found


def _is_container(value: ast.expr | None) -> bool:
    literals = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    called = value.func if isinstance(value, ast.Call) else None
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return isinstance(value, literals) or name in MUTABLE


def _is_constant(name: str) -> bool:
    return name == "__all__" or (name.isupper() and name != "_")


def _changed(node: ast.AST) -> ast.expr | None:
    """Give the object that a node changes in place, if it does."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
        return node.func.value
    return node.target if isinstance(node, ast.AugAssign) else None


def test_no_module_keeps_state() -> None:
    assert not [f"{told(path)}: {words}" for path in sources() for words in module_state(path.read_text())]


@pytest.mark.parametrize(
    "text",
    [
        "cache = {}",
        "cache: Final = []",
        "from collections import deque\n_seen = deque()",
        "import collections\nseen = collections.defaultdict(int)",
        "LIMITS = {}\ndef learn(name):\n    LIMITS[name] = 1",
        "_SEEN = set()\ndef see(name):\n    _SEEN.add(name)",
        "_COUNT = 0\ndef count():\n    global _COUNT\n    _COUNT += 1",
    ],
)
def test_state_of_a_module_would_be_found(text: str) -> None:
    assert module_state(text)


# layers of the house


def copied(folder: Path) -> Path:
    shutil.copytree(SRC, folder / "farebox", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder / "farebox"


def lint(folder: Path) -> tuple[int, str]:
    """Run import-linter over a copy of the package, by the contract of this repository."""
    ended = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout


def test_imports_go_down_only(tmp_path: Path) -> None:
    copied(tmp_path)
    code, out = lint(tmp_path)
    assert code == 0, out
    assert "1 kept, 0 broken" in out


WRONG = {
    "a rule that asks the store": ("billing/intruder.py", "import farebox.store.protocol", "farebox.billing"),
    "a value that knows a rule": ("money.py", "\nfrom farebox.billing import plans", "farebox.money"),
    "the data plane that reaches for its root": ("gateway/intruder.py", "from farebox import app", "farebox.gateway"),
    "a neighbour, at the last moment": (
        "accounts/intruder.py",
        "def a():\n    import farebox.upstreams.pool",
        "farebox.accounts",
    ),
    "HTTP that knows money": ("http/intruder.py", "from farebox.books import ledger", "farebox.http"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_import_that_goes_up_or_aside_is_found(tmp_path: Path, name: str) -> None:
    file, line, room = WRONG[name]
    with (copied(tmp_path) / file).open("a") as module:
        module.write(line + "\n")
    code, out = lint(tmp_path)
    assert code == 1, out
    assert "0 kept, 1 broken" in out
    assert f"{room} is not allowed to import" in out


# documents


def test_every_link_between_documents_leads_somewhere() -> None:
    broken = []
    for page in pages():
        for link in links(page.read_text()):
            if link.startswith(("https://", "http://", "mailto:")):
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert versions[0] == farebox.__version__ == declared
