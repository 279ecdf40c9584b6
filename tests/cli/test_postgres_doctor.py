"""The doctor on PostgreSQL: what would fail is found before the doors open, and no command shows the password."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from farebox.cli import postgres_checks
from farebox.store import schema
from tests.cli.conftest import Farebox
from tests.cluster import Cluster
from tests.databases import Databases, name_of
from tests.history import write_history
from tests.old_schema import write_old_books
from tests.stage import config_text

PASSWORD = "s3cr%40et"


@pytest.fixture
def url(databases: Databases, tmp_path: Path) -> Iterator[str]:
    with databases.fresh("postgresql", tmp_path) as fresh:
        (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=fresh))
        yield fresh


def found(farebox: Farebox, *names: str) -> dict[str, tuple[str, str]]:
    """Give status and words of checks; of several by one name the worst."""
    worst = {"ok": 0, "warn": 1, "fail": 2}
    seen = farebox("doctor", "--offline", "--json")
    findings: dict[str, tuple[str, str]] = {}
    for line in seen.lines:
        name, status = line["check"], line["status"]
        if name not in findings or worst[status] > worst[findings[name][0]]:
            findings[name] = (status, f"{line['found']} {line['advice'] or ''}")
    assert seen.code == int(any(status == "fail" for status, _ in findings.values()))
    assert set(names) <= set(findings)
    return findings


def test_it_is_content_with_a_good_server(farebox: Farebox, url: str, tmp_path: Path) -> None:
    asyncio.run(write_history(url, calls=21))
    names = (
        "database",
        "postgresql",
        "schema",
        "durability",
        "rights",
        "clock",
        "connections",
        "spool",
        "disk",
        "sync",
    )
    findings = found(farebox, *names)
    assert {name: findings[name][0] for name in names} == dict.fromkeys(names, "ok")
    assert "ms a round trip" in findings["database"][1]
    assert findings["postgresql"][1].startswith("PostgreSQL 1")
    assert f"schema {schema.VERSION}, " in findings["schema"][1]
    assert "fsync on, full_page_writes on, synchronous_commit on" in findings["durability"][1]
    assert "one process takes 6 at most" in findings["connections"][1]
    assert "sqlite" not in findings
    assert {path.name for path in tmp_path.iterdir()} == {"farebox.toml"}


def test_it_finds_a_server_that_cannot_be_reached(farebox: Farebox, tmp_path: Path) -> None:
    url = f"postgresql://farebox:{PASSWORD}@127.0.0.1:1/books"
    (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=url))
    status, words = found(farebox, "database")["database"]
    assert status == "fail"
    assert "postgresql://farebox@127.0.0.1:1/books cannot be reached" in words


@contextmanager
def configured(cluster: Cluster, **settings: str) -> Iterator[None]:
    cluster.configure(**settings)
    try:
        yield
    finally:
        cluster.configure(**dict.fromkeys(settings))


def test_it_finds_settings_that_would_lose_charges(farebox: Farebox, url: str, cluster: Cluster) -> None:
    with configured(cluster, full_page_writes="off", fsync="off"):
        shown = farebox("doctor", "--offline")
    assert shown.code == 1
    assert "fsync is off" in shown.out
    assert "full_page_writes is off" in shown.out
    for setting, value, words in (
        ("synchronous_commit", "off", "a crash can lose charges that were answered for"),
        ("synchronous_commit", "local", "a crash can lose charges"),
        ("default_transaction_read_only", "on", "the database takes no writes"),
    ):
        cluster.execute(f"ALTER DATABASE {name_of(url)} SET {setting} = {value}")
        status, told = found(farebox, "durability")["durability"]
        assert (status, words in told) == ("fail", True), told
        cluster.execute(f"ALTER DATABASE {name_of(url)} RESET ALL")


def test_it_finds_rights_that_are_missing_or_too_many(
    farebox: Farebox, url: str, cluster: Cluster, tmp_path: Path
) -> None:
    def told_to(role: str) -> tuple[str, str]:
        text = config_text(tmp_path, database_url=url.replace("farebox@", f"{role}@"))
        (tmp_path / "farebox.toml").write_text(text)
        return found(farebox, "rights")["rights"]

    cluster.execute("CREATE ROLE clerk LOGIN")
    try:
        status, words = told_to("clerk")
        assert (status, "clerk lacks SELECT on account" in words) == ("fail", True), words
        cluster.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk", database=name_of(url))
        status, words = told_to("clerk")
        assert (status, "clerk does not own the tables" in words) == ("warn", True), words
        status, words = told_to("postgres")
        assert (status, "postgres is a superuser" in words) == ("warn", True), words
    finally:
        cluster.execute("DROP OWNED BY clerk", database=name_of(url))
        cluster.execute("DROP ROLE clerk")


def test_it_finds_clocks_that_differ_and_entries_from_the_future(
    farebox: Farebox, url: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late:
        """This machine's clock, so many seconds behind."""

        monotonic = staticmethod(time.monotonic)

        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def time(self) -> float:
            return time.time() - self.seconds

    for seconds, status in ((10, "warn"), (100, "fail"), (0, "ok")):
        monkeypatch.setattr(postgres_checks, "time", Late(seconds))
        seen = found(farebox, "clock")["clock"]
        assert seen[0] == status, seen
    cluster.execute(
        "INSERT INTO transfer VALUES ('x', 4000000000000000, 'house:a', 'house:b', 1, 'c', 'a', 'm')",
        database=name_of(url),
    )
    status, words = found(farebox, "clock")["clock"]
    assert (status, "before the newest entry" in words) == ("fail", True)


def test_it_finds_too_few_connections(farebox: Farebox, url: str, cluster: Cluster, tmp_path: Path) -> None:
    cluster.execute(f"ALTER DATABASE {name_of(url)} CONNECTION LIMIT 11")
    assert found(farebox, "connections")["connections"][0] == "ok"
    text = (tmp_path / "farebox.toml").read_text().replace("[server]", "[server]\nworkers = 2")
    (tmp_path / "farebox.toml").write_text(text)
    status, words = found(farebox, "connections")["connections"]
    assert (status, "11 left for this machine" in words, "2 processes take 12" in words) == ("fail", True, True), words


def test_it_finds_an_old_schema_and_none(farebox: Farebox, cluster: Cluster, tmp_path: Path) -> None:
    with cluster.database() as empty:
        (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=empty))
        assert found(farebox, "schema")["schema"][0] == "ok"
        write_old_books(empty, tmp_path)
        status, words = found(farebox, "schema")["schema"]
        assert (status, "schema 1" in words, "farebox migrate" in words) == ("warn", True, True)


def test_it_finds_what_waits_in_the_spool_and_a_spool_that_cannot_be_written(
    farebox: Farebox, database_url: str, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "1-00.spool").write_bytes(b"one\ntwo\n")
    text = config_text(tmp_path, database_url=database_url, database=f'spool = "{spool}"')
    (tmp_path / "farebox.toml").write_text(text)
    status, words = found(farebox, "spool")["spool"]
    assert (status, "up to 2 calls wait" in words) == ("warn", True)
    (tmp_path / "file").write_text("")
    (tmp_path / "farebox.toml").write_text(text.replace('spool"', 'file/spool"'))
    assert found(farebox, "spool")["spool"][0] == "fail"


WORDS = (
    ("config", "check"), ("config", "show"), ("doctor", "--offline"), ("audit",), ("account", "list"), ("serve",),
    ("migrate",), ("migrate", "--check"), ("migrate", "--to", "sqlite:///new.db"), ("backup", "dump"),
)  # fmt: skip
URLS = (
    f"postgresql://farebox:{PASSWORD}@127.0.0.1:1/books",
    "postgresql://farebox@127.0.0.1:1/books?password=s3cret&sslmode=prefer",
    "postgresql:///books?host=127.0.0.1&port=1&user=farebox&password=s3cr@et",
    "postgresql://farebox:s3cr/et@127.0.0.1:1/books",
    "postgresql://farebox:s3cr#et@127.0.0.1:1/books",
    "postgresql://farebox:s3cr?et@127.0.0.1:1/books",
    "postgresql://farebox:s3cr@et@127.0.0.1:1/books",
    "postgresql://farebox:s3cret@127.0.0.1:99999/books",
    "postgresql://farebox:s3cret@[127.0.0.1/books",
    "postgresql://farebox:s3cret@127.0.0.1",
    "mysql://farebox:s3cret@127.0.0.1/books",
)


@pytest.mark.parametrize("url", URLS)
def test_no_command_shows_the_password(
    farebox: Farebox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr("farebox.books.keeping._WAIT_S", 0.0)
    (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=url))
    for words in WORDS:
        for more in ((), ("--json",)):
            seen = farebox(*words, *more)
            told = seen.out + seen.err
            assert told, words
            assert "s3cr" not in told, (words, told)
            assert "Traceback" not in told, (words, told)
        for path in tmp_path.glob("dump*"):
            path.rmdir()
