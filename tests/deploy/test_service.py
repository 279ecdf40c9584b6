"""The systemd unit: systemd understands all of it, it leaves the gateway time to end, and lets it do little else."""

import configparser
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from farebox.cli import cli
from farebox.config.settings import ServerSettings
from farebox.gateway.settings import CallLimits
from farebox.http.server import ServerLimits
from farebox.workers.serve import _END_S
from farebox.workers.supervisor import _LAST_S
from tests.deploy.balancers import DEPLOY, put_in

UNIT = DEPLOY / "farebox.service"
EXPOSURE = 20
"""Tenths: what systemd itself calls OK; 96 is a service without any of it."""


@pytest.fixture(scope="module")
def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser["Service"]


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    unit = tmp_path / "farebox.service"
    unit.write_text(
        put_in(UNIT.read_text(), {"/opt/farebox/.venv/bin/farebox": f"{Path(sys.executable).parent}/farebox"})
    )
    done = subprocess.run(["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_is_locked_in() -> None:
    words = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", "--no-pager", str(UNIT)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_leaves_time_to_end(unit: configparser.SectionProxy) -> None:
    """With workers, which take longest: what calls in flight get, what the books get, what the supervisor takes."""
    assert int(unit["TimeoutStopSec"]) > ServerSettings().shutdown_s + _END_S + _LAST_S


def test_it_may_open_what_full_load_takes(unit: configparser.SectionProxy) -> None:
    assert int(unit["LimitNOFILE"]) > ServerLimits().connections + 2 * CallLimits().concurrent_calls


def test_a_reload_is_the_signal_that_has_a_new_process_take_over(unit: configparser.SectionProxy) -> None:
    program, signal_name, whom = unit["ExecReload"].split()
    assert (Path(program).name, signal_name, whom) == ("kill", f"-{signal.SIGHUP.name.removeprefix('SIG')}", "$MAINPID")


def test_what_it_starts_is_a_command(unit: configparser.SectionProxy) -> None:
    program, name, *words = unit["ExecStart"].split()
    command = cli.commands[name]
    assert program.endswith("/bin/farebox")
    command.make_context(name, words)
