"""A release is the same whoever makes it, names what is in it, and is signed so that anybody can check it."""

import json
import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
TOOLS: Final = ROOT / ".release" / "bin"
"""Made by `make test`, as `make release` makes it."""


def release(home: Path, tree: Path, *key: Path, umask: int = 0o022, **environ: str) -> dict[str, str]:
    """Make a release of a checkout; answers the checksums of its files by their names."""
    done = subprocess.run(
        ["bash", tree / "deploy" / "release.sh", TOOLS, home / "out", *key],
        env={**os.environ, **environ},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (home / "out" / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def checkout(home: Path) -> Path:
    """Clone what is committed, by another name than anybody else's."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, home / "tree"], check=True)
    return home / "tree"


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "a much longer name"
    one.mkdir()
    other.mkdir()
    return one, other


def test_two_people_make_the_same_release(homes: tuple[Path, Path]) -> None:
    """Neither place nor time zone, rights, locale or leftovers of earlier builds change a byte."""
    one, other = homes
    first = release(one, checkout(one))
    tree = checkout(other)
    (tree / "build" / "lib" / "farebox").mkdir(parents=True)
    (tree / "build" / "lib" / "farebox" / "left_over.py").write_text("")
    second = release(other, tree, umask=0o077, TZ="Pacific/Auckland", LC_ALL="C", PYTHONHASHSEED="7")
    assert first == second
    assert sorted(re.sub(r"-[0-9][0-9.]*[0-9]", "", name) for name in first) == [
        "farebox-py3-none-any.whl",
        "farebox.cdx.json",
        "farebox.lock",
    ]


def test_a_release_names_every_part_and_can_be_checked_and_not_forged(homes: tuple[Path, Path]) -> None:
    home, _ = homes
    key = home / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "somebody", "-f", key], check=True)
    names = release(home, checkout(home), key)
    out = home / "out"
    (bill,) = out.glob("*.cdx.json")
    components = json.loads(bill.read_bytes())["components"]
    locked = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert sorted((one["name"], one["version"]) for one in components) == sorted(locked)
    assert all(one["externalReferences"][0]["hashes"] for one in components)
    with zipfile.ZipFile(out / next(name for name in names if name.endswith(".whl"))) as wheel:
        inside = set(wheel.namelist())
    assert {"farebox/app.py", "farebox/py.typed", "farebox/config/example.toml"} <= inside
    assert not [name for name in inside if name.startswith(("tests", "bench")) or name.endswith(".pyc")]

    (out / "allowed_signers").write_text(f"maintainers {(home / 'key.pub').read_text()}")
    assert is_signed(out)
    sums = out / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("a", "b", 1))
    assert not is_signed(out)


def is_signed(out: Path) -> bool:
    """Check a release as docs/releasing.md says, word for word."""
    text = (ROOT / "docs" / "releasing.md").read_text()
    (commands,) = re.findall(r"## Check a release\n.*?```sh\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(["sh", "-euc", commands], cwd=out, capture_output=True, text=True, check=False)
    return done.returncode == 0


def test_the_tools_are_those_that_are_locked() -> None:
    """What tells of releases is itself locked by hashes, without a registry's address."""
    text = (ROOT / "requirements-release.lock").read_text()
    assert "http" not in text
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:", text, re.MULTILINE))
    assert len(locked) == text.count("==")
    found = subprocess.run(
        [TOOLS / "python", "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"],
        capture_output=True,
        check=True,
    )
    here = {re.sub(r"[-_.]+", "-", one["name"].lower()): one["version"] for one in json.loads(found.stdout)}
    assert {name: here.get(name) for name in locked if name != "pip"} == {
        name: version for name, version in locked.items() if name != "pip"
    }
