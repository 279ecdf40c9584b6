"""The supervisor, as a process of its own, over workers that serve, fail, die and get stuck as they are told."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_servers import environment


class Troupe:
    """A running supervisor, with what it logs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self._log.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"\n")]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [told for told in self.events if told["event"] == event]

    def call(self) -> int:
        """Be answered by some worker, with its process id."""
        with socket.create_connection(("127.0.0.1", self.events[0]["port"]), timeout=5) as caller:
            return int(caller.recv(100))

    def workers(self) -> set[int]:
        """The workers that serve: those that have answered in 60 calls."""
        return {self.call() for _ in range(60)}

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def has_buried(self, count: int) -> Callable[[], bool]:
        return lambda: len(self.logged("worker_died")) == count

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@contextmanager
def troupe(tmp_path: Path, stop_s: float = 10, **acts: list[str]) -> Iterator[Troupe]:
    """Start a supervisor. Whatever the test did, it leaves no process behind."""
    log = tmp_path / "log"
    named = {name.removeprefix("w"): names for name, names in acts.items()}
    words = json.dumps({"acts": named, "stop_s": stop_s})
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.workers.troupe", words],
            cwd=Path(__file__).parents[2], env=environment(), stderr=errors, start_new_session=True,
        )  # fmt: skip
    started = Troupe(process, log)
    try:
        until(lambda: started.events or process.poll() is not None)
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(holds: Callable[[], object], timeout_s: float = 10) -> None:
    limit = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < limit, "it does not come true"
        time.sleep(0.005)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_all_workers_answer_at_one_socket_and_end_with_0(tmp_path: Path) -> None:
    with troupe(tmp_path, w1=["serve"], w2=["serve"], w3=["serve"]) as running:
        until(lambda: len(running.children()) == 3 and running.workers() == set(running.children()))
        names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in running.children()}
        assert names == {"farebox 1", "farebox 2", "farebox 3"}
        assert running.end() == 0
        assert not running.logged("worker_died")


def test_a_dead_worker_is_started_again_at_once_then_after_longer_and_longer_pauses(tmp_path: Path) -> None:
    with troupe(tmp_path, w1=["serve"], w2=["serve"]) as running:
        until(lambda: len(running.workers()) == 2)
        mortal, other = running.children()
        for deaths in (1, 2, 3):
            os.kill(mortal, signal.SIGKILL)
            killed_s = time.monotonic()
            until(running.has_buried(deaths))
            assert running.call()
            assert [told["again_in_s"] for told in running.logged("worker_died")] == [0, 1, 2][:deaths]
            if deaths < 3:
                until(lambda: len(running.workers()) == 2)
                assert deaths - 1 <= time.monotonic() - killed_s < deaths
                (mortal,) = set(running.children()) - {other}
        assert {(told["worker"], told["signal"]) for told in running.logged("worker_died")} == {("1", "SIGKILL")}
        assert running.end() == 0  # in the middle of a pause


@pytest.mark.parametrize(("act", "words"), [("fail", "farebox.toml:7: is wrong"), ("err", "ZeroDivisionError: a bug")])
def test_who_fails_before_all_were_ready_ends_the_whole_with_its_words(tmp_path: Path, act: str, words: str) -> None:
    with troupe(tmp_path, w1=["serve"], w2=["idle"], w3=[act]) as running:
        assert running.process.wait(10) == 1
        assert [told["event"] for told in running.events] == ["open", "failed"]
        assert running.events[1]["words"].startswith(words)


def test_who_dies_without_a_word_is_no_mistake_of_the_operator(tmp_path: Path) -> None:
    with troupe(tmp_path, w1=["die", "serve"], w2=["serve"]) as running:
        until(lambda: len(running.workers()) == 2)
        assert [told["worker"] for told in running.logged("worker_died")] == ["1"]
        assert running.end() == 0


def test_who_fails_once_all_were_ready_is_started_again(tmp_path: Path) -> None:
    """As when the database is away while a worker dies of something else."""
    with troupe(tmp_path, w1=["serve", "fail", "serve"], w2=["serve"]) as running:
        until(lambda: len(running.workers()) == 2)
        os.kill(running.children()[0], signal.SIGKILL)
        until(running.has_buried(2))
        until(lambda: len(running.workers()) == 2)
        died = running.logged("worker_died")
        assert [(told.get("error"), told.get("exit_code")) for told in died][1:] == [
            ("farebox.toml:7: is wrong; say what is right", 1)
        ]
        assert running.end() == 0


def test_a_worker_that_ends_in_order_is_replaced_without_an_alert(tmp_path: Path) -> None:
    with troupe(tmp_path, w1=["resign", "serve"]) as running:
        first = running.call()
        assert running.call() != first
        assert [told["level"] for told in running.logged("worker_ended")] == ["info"]
        assert not running.logged("worker_died")
        assert running.end() == 0


def test_who_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    with troupe(tmp_path, w1=["serve", "starve", "serve"], w2=["serve"]) as running:
        until(lambda: len(running.workers()) == 2)
        os.kill(running.children()[0], signal.SIGKILL)
        until(running.has_buried(2))
        until(lambda: len(running.workers()) == 2)
        assert running.logged("worker_died")[1]["error"] == "cannot be started: Too many open files"
        assert running.end() == 0


def test_workers_do_not_need_the_supervisor_to_serve(tmp_path: Path) -> None:
    with troupe(tmp_path, w1=["serve"], w2=["serve"]) as running:
        until(lambda: len(running.workers()) == 2)
        running.process.send_signal(signal.SIGSTOP)
        until(lambda: len(running.workers()) == 2)
        running.process.send_signal(signal.SIGCONT)
        assert running.end() == 0


def test_a_second_signal_hurries_them(tmp_path: Path) -> None:
    with troupe(tmp_path, w1=["dawdle"], w2=["dawdle"]) as running:
        until(lambda: len(running.children()) == 2)
        running.process.send_signal(signal.SIGTERM)
        until(lambda: _refused(running))
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(0.3)
        assert running.end() == 0


def test_who_does_not_end_is_killed_when_the_time_is_up(tmp_path: Path) -> None:
    with troupe(tmp_path, 0.3, w1=["be_stuck"], w2=["serve"]) as running:
        until(running.workers)
        assert running.end() == 1
        assert [told["worker"] for told in running.logged("worker_killed")] == ["1"]


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with troupe(tmp_path, w1=["serve"], w2=["serve"], w3=["idle"]) as running:
        until(lambda: len(running.workers()) == 2)
        children = running.children()
        running.process.kill()
        until(lambda: not any(map(runs, children)))
        with pytest.raises(OSError, match="refused"):
            running.call()


def test_a_signal_at_any_moment_of_the_start_ends_all_in_order(tmp_path: Path) -> None:
    """Neither the one who forks loses it nor the one who is forked; each moment is another one."""
    codes = set()
    for attempt in range(12):
        with troupe(tmp_path, w1=["serve"], w2=["idle"], w3=["serve"], w4=["serve"]) as running:
            time.sleep(attempt * 0.002)
            codes.add(running.end())
            assert not running.logged("worker_died")
    assert codes <= {0, -signal.SIGTERM}  # the latter: before it had begun to supervise


def _refused(running: Troupe) -> bool:
    try:
        running.call()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False
