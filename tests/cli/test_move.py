"""`farebox migrate --to` moves a live installation: whole, proved and served as before, or not at all."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import apsw
import asyncpg
import pytest

from farebox.accounts.accounts import list_accounts
from farebox.books.audit import audit
from farebox.books.moving import move
from farebox.errors import StoreUnavailable
from farebox.store import schema, sqlite
from farebox.store.protocol import Row
from farebox.store.sealed import _PostgresSealed, _SqliteSealed
from farebox.store.urls import database_name, is_postgres
from tests.cli.conftest import Farebox
from tests.cli.test_servers import environment
from tests.cluster import Cluster
from tests.databases import Databases, name_of, read, sqlite_path, write
from tests.history import write_history
from tests.old_schema import write_old_books
from tests.stage import Person, config_text, open_stage

DIRECTIONS = (("sqlite", "postgresql"), ("postgresql", "sqlite"))
COUNTED = "SELECT " + ", ".join(f"(SELECT count(*) FROM {table})" for table in schema.TABLES)


class Places:
    """Two databases of either kind: the old one, and an empty one to move into."""

    def __init__(self, old: str, new: str) -> None:
        self.old = old
        self.new = new

    @property
    def words(self) -> tuple[str, ...]:
        return ("migrate", "--from", self.old, "--to", self.new)


@pytest.fixture(params=DIRECTIONS, ids=lambda pair: f"{pair[0]}-to-{pair[1]}")
def places(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> Iterator[Places]:
    source, target = request.param
    with databases.fresh(source, tmp_path) as old, databases.fresh(target, tmp_path) as new:
        yield Places(old, new.replace("farebox.db", "new.db"))


def fingerprint(url: str) -> str:
    """Tell whether anything has changed: a file to the last byte, a server's tables to the last row."""
    if not is_postgres(url):
        return hashlib.sha256(sqlite_path(url).read_bytes()).hexdigest()
    rows = [read(url, f"SELECT * FROM {table} ORDER BY 1") for table in (*schema.TABLES, "lease")]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def is_empty(url: str) -> bool:
    if not is_postgres(url) and not sqlite_path(url).exists():
        return True
    return read(url, COUNTED) == [(0,) * len(schema.TABLES)]


def test_a_live_installation_moves_whole_and_serves_as_before(farebox: Farebox, places: Places, tmp_path: Path) -> None:
    history = asyncio.run(write_history(places.old, calls=3_000))
    before = fingerprint(places.old)
    counts = read(places.old, COUNTED)
    digests = read(places.old, "SELECT day, previous_sha256, sha256 FROM day_close ORDER BY day")
    moved = farebox(*places.words, "--json")
    assert moved.code == 0, moved.err
    assert fingerprint(places.old) == before
    assert moved.lines[-1]["rows"] == dict(zip(schema.TABLES, counts[0], strict=True))
    assert moved.lines[-1]["rows"]["usage"] == history.calls
    stages = [line["stage"] for line in moved.lines if line["event"] == "progress" and line["done"] == line["total"]]
    assert "copy usage" in stages
    assert "new books: day digests" in stages
    assert read(places.new, "SELECT day, previous_sha256, sha256 FROM day_close ORDER BY day") == digests

    async def serve() -> None:
        async with open_stage(tmp_path, database_url=places.new) as stage:
            store = stage.gateway.store
            accounts = {account.email: account for account in await list_accounts(store)}
            assert {email: account.balance_nanos for email, account in accounts.items()} == history.balances
            for email, key in history.keys.items():
                status, _ = await stage.ask(Person(accounts[email].id, email, key))
                assert status == 200
            newcomer = await stage.person("newcomer@example.com", 1)
            assert newcomer.account_id == max(account.id for account in accounts.values()) + 1
            assert (await stage.ask(newcomer))[0] == 200
            checks = await audit(store)
            assert all(check.ok for check in checks), checks

    asyncio.run(serve())
    assert farebox("audit").code == 0


def test_people_are_told_what_was_moved_and_what_to_do_next(
    farebox: Farebox, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(write_history(places.old))
    monkeypatch.setenv("NEW_BOOKS", places.new)
    moved = farebox("migrate", "--from", places.old, "--to", "env:NEW_BOOKS")
    assert moved.code == 0, moved.err
    assert f'set [database] url = "{places.new}"' in moved.out
    assert "let nothing serve it any more" in moved.out
    assert "copy usage: 302\n" in moved.err
    again = farebox(*places.words)
    assert again.code == 1
    filled = "account, api_key, run, price_list, usage, transfer, day_close"
    filled += ", hour_close, usage_hour, house_hour, house_day, usage_day"
    assert f"has books in it already ({filled})" in again.err


def test_on_a_terminal_each_stage_is_a_bar(
    farebox: Farebox, databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with databases.fresh("sqlite", tmp_path) as old:
        asyncio.run(write_history(old))
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        moved = farebox("migrate", "--from", old, "--to", f"sqlite:///{tmp_path}/new.db")
    assert moved.code == 0
    assert any("copy usage" in line and "100%" in line for line in moved.err.replace("\r", "\n").splitlines())


KILLED = """
import os, signal
from farebox.books import moving
from farebox.cli import main
from farebox.store import sealed

moving._PAGE = 50
for kind in (sealed._SqliteSealed, sealed._PostgresSealed):
    async def fill(self, table, columns, rows, real=kind.fill, seen=[]):
        await real(self, table, columns, rows)
        seen.append(table)
        if seen.count("usage") == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    kind.fill = fill
main(os.environ["WORDS"].split())
"""


def test_a_move_that_is_killed_leaves_the_new_database_empty_and_the_old_one_as_it_was(
    farebox: Farebox, places: Places, tmp_path: Path
) -> None:
    asyncio.run(write_history(places.old))
    before = fingerprint(places.old)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env=environment(WORDS=" ".join(places.words)), check=False,
        timeout=60,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert is_empty(places.new)
    assert fingerprint(places.old) == before
    assert farebox(*places.words).code == 0


def test_what_changes_on_the_way_is_noticed_though_no_check_of_the_audit_sees_it(
    farebox: Farebox, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(write_history(places.old))
    for kind in (_SqliteSealed, _PostgresSealed):
        real = kind.fill

        async def fill(
            self: object, table: str, columns: Sequence[str], rows: Sequence[Row], real: object = real
        ) -> None:
            if table == "api_key":
                rows = [tuple("desktop" if value == "laptop" else value for value in row) for row in rows]
            await real(self, table, columns, rows)  # type: ignore[operator]

        monkeypatch.setattr(kind, "fill", fill)
    refused = farebox(*places.words)
    assert refused.code == 1
    assert "api_key did not arrive as it was" in refused.err
    assert is_empty(places.new)


def test_nobody_writes_or_serves_meanwhile(places: Places, cluster: Cluster) -> None:
    asyncio.run(write_history(places.old))
    tried: set[str] = set()

    def intrude(stage: str, _done: int, _total: int) -> None:
        if stage != "copy usage":
            return
        for url in (places.old, places.new):
            if is_postgres(url):
                script = "SET lock_timeout = '50ms'; UPDATE account SET email = email"
                with pytest.raises(asyncpg.LockNotAvailableError):
                    cluster.execute(script, database=name_of(url))
            else:
                with pytest.raises(StoreUnavailable, match="another farebox serves"):
                    sqlite.lock(sqlite_path(url))
                with pytest.raises(apsw.BusyError):
                    apsw.Connection(str(sqlite_path(url))).execute("BEGIN IMMEDIATE")
            tried.add(url)

    asyncio.run(move(places.old, places.new, spools=[], tell=intrude))
    assert tried == {places.old, places.new}


# what is refused


def refuse(farebox: Farebox, places: Places, words: str) -> None:
    before = fingerprint(places.old)
    refused = farebox(*places.words)
    assert refused.code == 1
    assert words in refused.err, refused.err
    assert is_empty(places.new)
    assert fingerprint(places.old) == before


def test_books_that_are_served_are_not_moved(farebox: Farebox, places: Places) -> None:
    asyncio.run(write_history(places.old))
    if is_postgres(places.old):
        write(places.old, "UPDATE run SET stopped_at = NULL, lease_until = now_us() + 20000000")
        refuse(farebox, places, "farebox serves the database on")
        return
    served = sqlite.lock(sqlite_path(places.old))
    refuse(farebox, places, "another farebox serves")
    os.close(served)


def test_books_with_calls_in_flight_are_not_moved_until_they_were_ended(farebox: Farebox, places: Places) -> None:
    asyncio.run(write_history(places.old, in_flight=2))
    refuse(farebox, places, "holds money for 2 calls of a process that died: start farebox on it")


def test_books_that_wait_for_calls_in_the_spool_are_not_moved(farebox: Farebox, places: Places, tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=places.old))
    asyncio.run(write_history(places.old))
    spool = tmp_path / (f"{database_name(places.old)}.spool" if is_postgres(places.old) else "farebox.db.spool")
    spool.mkdir()
    (spool / "1-00.spool").write_bytes(b"a line\n")
    refuse(farebox, places, f"1 calls wait in {spool}")


def test_books_that_do_not_hold_are_not_moved(farebox: Farebox, places: Places) -> None:
    asyncio.run(write_history(places.old))
    write(places.old, "UPDATE account SET posted_nanos = posted_nanos + 1 WHERE id = 1")
    refuse(farebox, places, "the old books do not hold, nothing was moved; balances: account 1 has")


def test_books_of_an_older_schema_are_not_moved(farebox: Farebox, tmp_path: Path) -> None:
    places = Places(f"sqlite:///{tmp_path}/farebox.db", f"sqlite:///{tmp_path}/new.db")
    write_old_books(places.old, tmp_path)
    refuse(farebox, places, f"has schema 1, this farebox needs {schema.VERSION}")


def test_what_makes_no_sense_is_refused_in_words(farebox: Farebox, tmp_path: Path) -> None:
    here = f"sqlite:///{tmp_path}/farebox.db"
    for words, code, told in (
        (("--from", here), 2, "--from needs --to"),
        (("--check", "--to", here), 2, "--check looks at a schema"),
        (("--to", "farebox.db"), 2, "it must be like"),
        (("--to", "env:NOWHERE"), 2, "the variable NOWHERE is not set"),
        (("--to", "postgresql://u:s3cr/et@h/d"), 2, "cannot be read"),
        (("--from", here, "--to", here), 1, "is both old and new"),
        (("--from", here, "--to", f"sqlite:///{tmp_path}/new.db"), 1, "there is no database at"),
    ):
        refused = farebox("migrate", *words)
        assert (refused.code, told in refused.err) == (code, True), (words, refused.err)
        assert "s3cr" not in refused.err + refused.out
        assert refused.err.count("\n") == 1
    assert not list(tmp_path.glob("new.db"))


TABLES_OF_POSTGRESQL = (
    "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') "
    "AND NOT relispartition"
)


def test_every_table_is_moved_in_the_order_of_its_key(database_url: str) -> None:
    """But `lease`, which says who leads now, `challenge`, which lives for minutes, and the schema's own."""
    asyncio.run(write_history(database_url, calls=7))
    if is_postgres(database_url):
        tables = read(database_url, TABLES_OF_POSTGRESQL)
        keys = dict(
            read(
                database_url,
                "SELECT conrelid::regclass::text, attname::text FROM pg_constraint "
                "JOIN pg_attribute ON attrelid = conrelid AND ARRAY[attnum] = conkey WHERE contype = 'p'",
            )
        )
    else:
        tables = read(database_url, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        keys = {
            table: read(database_url, f"SELECT group_concat(name) FROM pragma_table_info('{table}') WHERE pk")[0][0]
            for table in schema.TABLES
        }
    assert {name for (name,) in tables} - {"lease", "challenge", "schema_version"} == set(schema.TABLES)
    assert {table: keys[table] for table in schema.TABLES} == schema.TABLES


def test_a_commit_whose_answer_is_lost_is_told_as_such(
    farebox: Farebox, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(write_history(places.old))
    for kind in (_SqliteSealed, _PostgresSealed):
        real = kind.commit

        async def commit(self: object, real: object = real) -> None:
            await real(self)  # type: ignore[operator]
            raise StoreUnavailable("the connection was cut")

        monkeypatch.setattr(kind, "commit", commit)
    told = farebox(*places.words)
    assert told.code == 1
    assert "the books may have arrived or not: move again" in told.err
    assert "has books in it already" in farebox(*places.words).err
