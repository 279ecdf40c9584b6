"""`farebox migrate` brings a populated database of the schema before up to date, in whole steps, on both stores."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from farebox.accounts.accounts import find_account
from farebox.books.audit import audit
from farebox.store import schema, sqlite
from farebox.store.open import open_store
from farebox.store.upgrade import schema_at, upgrade
from tests.cli.conftest import Farebox
from tests.cli.test_servers import environment
from tests.cluster import Cluster
from tests.databases import name_of, sqlite_path
from tests.history import History
from tests.old_schema import write_old_books
from tests.stage import Person, config_text, open_stage

IN_FLIGHT = 2


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> Iterator[str]:
    """A database without any table."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path}/farebox.db"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    with cluster.database() as url:
        yield url


@pytest.fixture
def old(empty_url: str, tmp_path: Path) -> History:
    """The configured database has schema 1: customers, closed days, and calls that a dead process left."""
    (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=empty_url))
    return write_old_books(empty_url, tmp_path, in_flight=IN_FLIGHT)


def look(url: str, sql: str, cluster: Cluster | None) -> list[tuple[object, ...]]:
    """Read past every check of the schema."""
    if cluster is not None:
        return [tuple(row) for row in cluster.fetch(sql, database=name_of(url))]
    with closing(sqlite3.connect(sqlite_path(url))) as db:
        return db.execute(sql).fetchall()


@pytest.fixture
def server(request: pytest.FixtureRequest, database_kind: str) -> Cluster | None:
    return request.getfixturevalue("cluster") if database_kind == "postgresql" else None


def is_still_old(url: str, server: Cluster | None) -> bool:
    """Tell whether the schema is 1 in every respect, and the books are all there."""
    columns = (
        "SELECT count(*) FROM information_schema.columns WHERE table_name = 'run'"
        if server
        else "SELECT count(*) FROM pragma_table_info('run')"
    )
    leases = "SELECT to_regclass('lease')" if server else "SELECT max(name) FROM sqlite_master WHERE name = 'lease'"
    counts = look(url, "SELECT (SELECT count(*) FROM usage), (SELECT count(*) FROM hold)", server)
    return (
        asyncio.run(schema_at(url)) == 1
        and look(url, columns, server) == [(3,)]
        and look(url, leases, server) == [(None,)]
        and counts == [(302, IN_FLIGHT)]
    )


def test_populated_books_are_brought_up_to_date_proved_and_served(
    farebox: Farebox, old: History, empty_url: str, tmp_path: Path
) -> None:
    refused = farebox("audit")
    assert refused.code == 1
    assert f"schema 1, this farebox needs {schema.VERSION}" in refused.err
    assert "farebox migrate" in refused.err
    assert farebox("serve").code == 1

    due = farebox("migrate", "--check")
    assert (due.code, "schema 1" in due.out) == (1, True)
    done = farebox("migrate", "--json").json
    assert (done["before"], done["schema"]) == (1, schema.VERSION)
    names = ["many processes", "people", "payments", "upstreams", "growth"]
    assert done["steps"] == [{"version": version, "name": name} for version, name in enumerate(names, 2)]
    assert farebox("migrate", "--check").code == 0
    assert "nothing to do" in farebox("migrate").out

    async def serve() -> None:
        database = "lease_s = 0.5"
        async with open_stage(tmp_path, database_url=empty_url, database=database) as stage:
            await holds_are_ended(empty_url)
            account = await find_account(stage.gateway.store, "customer1@example.com")
            assert account.balance_nanos == old.balances["customer1@example.com"]
            person = Person(account.id, account.email, old.keys[account.email])
            status, _ = await stage.ask(person)
            assert status == 200
            posted, held = await stage.balance(person)
            assert posted < old.balances[account.email]
            assert held == 0
            checks = await audit(stage.gateway.store)
            assert all(check.ok for check in checks), checks

    asyncio.run(serve())
    assert farebox("audit").code == 0


async def holds_are_ended(url: str) -> None:
    """Wait until what the dead process held is given back: at the start, or once nobody has seen it for a while."""
    store = await open_store(url, create=False)
    try:
        for _ in range(400):
            if not (await store.fetch("SELECT count(*) FROM hold WHERE expired_at IS NULL"))[0][0]:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("money is held still")
    finally:
        await store.close()


def test_a_new_database_is_made_by_migrate_as_well(farebox: Farebox, empty_url: str, tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=empty_url))
    due = farebox("migrate", "--check", "--json")
    assert (due.code, due.json["schema"]) == (1, 0)
    assert [step["version"] for step in due.json["to_do"]] == list(range(1, schema.VERSION + 1))
    looked = farebox("audit")
    assert looked.code == 1
    assert "there is no database" in looked.err or "has no books in it yet; `farebox migrate`" in looked.err
    assert "schema 2: many processes" in farebox("migrate").out
    assert farebox("audit").code == 0


@pytest.mark.usefixtures("old")
def test_a_step_that_fails_in_the_middle_leaves_the_schema_before(
    farebox: Farebox, empty_url: str, server: Cluster | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = schema.script
    with monkeypatch.context() as patched:
        patched.setattr(schema, "script", lambda version, dialect: real(version, dialect) + "; SELECT no_such_thing();")
        failed = farebox("migrate")
    assert failed.code == 1
    assert "no_such_thing" in failed.err
    assert is_still_old(empty_url, server)
    assert farebox("migrate").code == 0
    assert asyncio.run(schema_at(empty_url)) == schema.VERSION


KILLED = """
import os, signal
import apsw
from farebox.cli import main
from farebox.store import schema

schema.STEPS, schema.VERSION = schema.STEPS[:2], 2

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

real = schema.script
apsw.connection_hooks.append(lambda connection: connection.create_scalar_function("die", die, 0))
schema.script = lambda version, dialect: real(version, dialect) + ("SELECT die();" if dialect == "sqlite" else "")
schema.postgres_ledger = die
main(["migrate"])
"""
"""Dies with the step's statements done, and its version not written."""


@pytest.mark.usefixtures("old")
def test_kill_9_in_the_middle_of_a_step_leaves_the_schema_before(
    farebox: Farebox, empty_url: str, server: Cluster | None, tmp_path: Path
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment(), check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert is_still_old(empty_url, server)
    assert farebox("migrate").code == 0
    assert asyncio.run(schema_at(empty_url)) == schema.VERSION


@pytest.mark.parametrize("fails", range(1, schema.VERSION + 1))
def test_a_first_start_that_is_cut_short_leaves_nothing_half_made(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """Neither for the next start, nor for another process that starts at the same time and looks meanwhile."""
    script = schema.script

    def failing(version: int, dialect: schema.Dialect) -> str:
        return script(version, dialect) + ("; SELECT nothing" if version == fails else "")

    monkeypatch.setattr(schema, "script", failing)
    with pytest.raises(Exception, match="nothing"):
        asyncio.run(_open_and_close(empty_url))
    monkeypatch.undo()
    assert asyncio.run(schema_at(empty_url)) == 0
    asyncio.run(_open_and_close(empty_url))
    assert asyncio.run(schema_at(empty_url)) == schema.VERSION


async def _open_and_close(url: str) -> None:
    await (await open_store(url)).close()


@pytest.mark.usefixtures("old")
def test_of_several_migrations_at_once_each_step_is_done_by_one(empty_url: str) -> None:
    done: list[list[int]] = [[] for _ in range(4)]

    async def race() -> None:
        await asyncio.gather(*(upgrade(empty_url, one.append) for one in done))

    asyncio.run(race())
    assert sorted(version for one in done for version in one) == list(range(2, schema.VERSION + 1))
    assert asyncio.run(schema_at(empty_url)) == schema.VERSION


def add_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    real, extra = schema.script, schema.VERSION + 1
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, "extra"))
    monkeypatch.setattr(schema, "VERSION", extra)
    monkeypatch.setattr(
        schema, "script", lambda version, d: "CREATE TABLE extra (n BIGINT);" if version == extra else real(version, d)
    )


def test_a_database_that_is_served_is_not_migrated(
    farebox: Farebox, empty_url: str, server: Cluster | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=empty_url))
    assert farebox("migrate").code == 0
    before = schema.VERSION
    add_a_step(monkeypatch)
    if server is None:
        served = sqlite.lock(sqlite_path(empty_url))
    else:
        name = name_of(empty_url)
        beat = "INSERT INTO run (id, started_at, node, lease_until) VALUES (7, 1, 'far-away', now_us() + 30000000)"
        server.execute(beat, database=name)
    refused = farebox("migrate")
    assert refused.code == 1
    assert "serves" in refused.err
    assert asyncio.run(schema_at(empty_url)) == before
    if server is None:
        os.close(served)
    else:
        assert "far-away" in refused.err
        server.execute("UPDATE run SET stopped_at = 1", database=name)
    assert f"schema {before + 1}: extra" in farebox("migrate").out


def test_a_schema_from_the_future_is_left_alone(
    farebox: Farebox, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=empty_url))
    with monkeypatch.context() as future:
        add_a_step(future)
        assert farebox("migrate").code == 0
    for words in (("migrate",), ("migrate", "--check"), ("audit",)):
        refused = farebox(*words)
        assert refused.code == 1
        assert f"newer than the {schema.VERSION} known here; upgrade farebox" in refused.out + refused.err


def test_a_file_that_is_no_database_is_told_in_one_line(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "farebox.db").write_bytes(b"not a database at all" * 100)
    refused = farebox("migrate")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "cannot be read" in refused.err
