"""The PostgreSQL server that the tests make for themselves: what it survives, and that nothing of it survives them."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import cluster as ours
from tests.cluster import Cluster, PostgresMissing, find_programs


def test_a_database_outlives_every_end_of_the_server(cluster: Cluster) -> None:
    with cluster.database() as url:
        name = url.rpartition("/")[2]
        cluster.execute("CREATE TABLE kept (number bigint)", database=name)
        for number, end in enumerate((cluster.stop, lambda: cluster.stop("immediate"), cluster.kill)):
            cluster.execute(f"INSERT INTO kept VALUES ({number})", database=name)
            end()
            cluster.start()
            assert cluster.fetch("SELECT count(*) FROM kept", database=name) == [(number + 1,)]


def test_it_keeps_promises_as_an_operators_does_and_sorts_unlike_bytes(cluster: Cluster) -> None:
    shown = "current_setting('fsync'), current_setting('data_checksums'), current_setting('full_page_writes')"
    assert cluster.fetch(f"SELECT {shown}") == [("on", "on", "on")]
    assert cluster.fetch("SELECT 'a' < 'B'") == [(True,)]
    assert cluster.fetch("SELECT rolsuper FROM pg_roles WHERE rolname = 'farebox'") == [(False,)]


def test_a_fresh_database_is_a_copy_and_gone_after_use(cluster: Cluster) -> None:
    with cluster.database() as template:
        source = template.rpartition("/")[2]
        cluster.execute("CREATE TABLE made (number bigint)", database=source)
        with cluster.database(source) as url:
            name = url.rpartition("/")[2]
            assert cluster.fetch("SELECT count(*) FROM made", database=name) == [(0,)]
    assert cluster.fetch("SELECT 1 FROM pg_database WHERE datname IN ($1, $2)", source, name) == []


def test_settings_change_while_it_runs(cluster: Cluster) -> None:
    cluster.configure(default_transaction_read_only="on")
    assert cluster.fetch("SHOW default_transaction_read_only") == [("on",)]
    cluster.configure(default_transaction_read_only=None)
    assert cluster.fetch("SHOW default_transaction_read_only") == [("off",)]


def test_a_frozen_server_answers_nothing_until_it_is_thawed(cluster: Cluster) -> None:
    cluster.freeze()
    answered = threading.Event()

    def ask() -> None:
        cluster.fetch("SELECT 1")
        answered.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert not answered.wait(0.1)
    cluster.thaw()
    asking.join()
    assert answered.is_set()


def test_it_ends_with_a_session_that_is_killed() -> None:
    program = (
        "from tests.cluster import Cluster\n"
        "cluster = Cluster()\n"
        "print(cluster.directory, *cluster.processes(), flush=True)\n"
        "input()"
    )
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), *sys.path]))
    session = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with session:
        assert session.stdout is not None
        directory, *processes = session.stdout.readline().split()
        assert len(processes) > 3
        session.kill()
    left = [Path(directory), *(Path("/proc") / process for process in processes)]
    until = time.monotonic() + 20
    while any(path.exists() for path in left):
        assert time.monotonic() < until, f"left behind: {[path for path in left if path.exists()]}"
        time.sleep(0.01)


def test_missing_programs_are_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PostgresMissing, match="apt-get install"):
        find_programs()
