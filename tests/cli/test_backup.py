"""`farebox backup`, and restores by the words of docs/operating.md: nothing lost, nothing booked twice."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farebox.accounts.accounts import find_account
from farebox.billing.ledger import Settle
from farebox.books.audit import audit
from farebox.books.spool import Spool
from farebox.store.backup import copy_database
from tests.cli.conftest import Farebox
from tests.cli.test_servers import environment
from tests.cluster import Cluster, find_programs
from tests.databases import read, sqlite_path, write
from tests.history import History, write_history
from tests.house.pages import ROOT, commands, section
from tests.old_schema import write_old_books
from tests.stage import Person, config_text, open_stage

TOKENS = 41
"""That went into the call which waits in the spool."""
COST = TOKENS * 1_500
OWNER = "customer0@example.com"


class Machine:
    """A machine as docs/operating.md describes it, in a directory of the test's own."""

    def __init__(self, directory: Path, database_url: str, spool: Path) -> None:
        self.home = directory / "var"
        self.etc = directory / "etc"
        self.backups = directory / "backups"
        for folder in (self.home, self.etc, self.backups):
            folder.mkdir(exist_ok=True)
        self.config = self.etc / "farebox.toml"
        self.database_url = database_url
        self.spool = spool
        self.database = f'spool = "{spool}"\nlease_s = 0.5'
        self.config.write_text(config_text(self.etc, database_url=database_url, database=self.database))
        self.history: History
        self.spooled = b""

    def live_through_a_day(self) -> None:
        """Write books whose last process died with two calls in flight, the end of one of them in its spool."""
        self.history = asyncio.run(write_history(self.database_url, in_flight=2))
        self.spooled, account_id, model = read(
            self.database_url, "SELECT request_id, account_id, model FROM hold ORDER BY request_id LIMIT 1"
        )[0]
        settle = Settle(
            request_id=self.spooled, account_id=account_id, kind="exact", model=model, outcome="finished", status=200,
            cost_nanos=COST, list_nanos=COST * 2, input_tokens=TOKENS, stop_reason="end_turn",
        )  # fmt: skip

        async def put() -> None:
            spool = Spool(self.spool, alert=lambda *_, **__: None)
            assert await spool.put(settle)
            spool.close()

        asyncio.run(put())

    def sh(self, script: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a script as the operator would, with PostgreSQL's programs and farebox in reach."""
        programs = [str(Path(sys.executable).parent)]
        if "postgresql" in self.database_url:
            programs.append(str(find_programs()))
        path = os.pathsep.join([*programs, os.environ["PATH"]])
        return subprocess.run(
            ["sh", "-e", "-c", script], cwd=self.home, capture_output=True, text=True, check=False, timeout=60,
            env=environment(PATH=path, FAREBOX_CONFIG=str(self.config), **more),
        )  # fmt: skip

    def documented(self, heading: str, **replaced: str) -> tuple[str, str]:
        """Give the commands below a heading, before the service is started and after; with this machine's paths."""
        lines = commands(section((ROOT / "docs" / "operating.md").read_text(), heading))
        text = "\n".join(line for line in lines if line != "systemctl stop farebox")
        places = {
            "/var/lib/farebox": str(self.home),
            "/etc/farebox/farebox.toml": str(self.config),
            "/backups": str(self.backups),
            "chown -R farebox:": f"chown -R {os.getuid()}:{os.getgid()}",
        }
        for documented, here in {**places, **replaced}.items():
            assert documented in text, documented
            text = text.replace(documented, here)
        before, started, after = text.partition("systemctl start farebox\n")
        assert started
        return before, after

    async def serves_the_books_of_that_day(self, after: str) -> None:
        """Start the service: the old keys work, and each of the two calls has ended, once."""
        async with open_stage(self.etc, database_url=self.database_url, database=self.database) as stage:
            for _ in range(200):
                await stage.gateway._settler.retry()  # type: ignore[union-attr]
                if not await stage.rows("SELECT 1 FROM hold WHERE expired_at IS NULL OR request_id = ?", self.spooled):
                    break
                await asyncio.sleep(0.05)
            kinds = await stage.rows("SELECT kind, charged_nanos FROM usage WHERE request_id = ?", self.spooled)
            assert kinds in ([("exact", COST)], [("late", COST)])
            account = await find_account(stage.gateway.store, OWNER)
            assert account.balance_nanos == self.history.balances[OWNER] - COST
            assert account.held_nanos == 0
            assert not [event for event in stage.events if event["level"] == "error"], stage.events
            checks = await audit(stage.gateway.store)
            assert all(check.ok for check in checks), checks
            proved = await asyncio.to_thread(self.sh, after)
            assert proved.returncode == 0, proved.stdout + proved.stderr
            assert "checks hold" in proved.stdout
            status, _ = await stage.ask(Person(account.id, OWNER, self.history.keys[OWNER]))
            assert status == 200

    async def serves_on(self) -> None:
        """Live on after the backup: calls, a new customer, and the spool delivered."""
        async with open_stage(self.etc, database_url=self.database_url, database=self.database) as stage:
            account = await find_account(stage.gateway.store, OWNER)
            for _ in range(3):
                assert (await stage.ask(Person(account.id, OWNER, self.history.keys[OWNER])))[0] == 200
            await stage.person("later@example.com", 5)
            await stage.gateway._settler.retry()  # type: ignore[union-attr]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Its books are in SQLite."""
    home = tmp_path / "var"
    return Machine(tmp_path, f"sqlite:///{home}/farebox.db", home / "farebox.db.spool")


def test_sqlite_is_restored_by_the_documented_steps(farebox: Farebox, machine: Machine) -> None:
    machine.live_through_a_day()
    copied = machine.sh(f"farebox backup --verify {machine.backups}/farebox.db")
    assert copied.returncode == 0, copied.stderr
    assert "2 calls were in flight" in copied.stdout
    asyncio.run(machine.serves_on())
    with sqlite_path(machine.database_url).open("r+b") as file:
        file.write(b"\0" * 4096)
    assert farebox("--config", str(machine.config), "audit").code == 1

    before, after = machine.documented("Restoring SQLite")
    restored = machine.sh(before)
    assert restored.returncode == 0, restored.stderr
    asyncio.run(machine.serves_the_books_of_that_day(after))
    assert read(machine.database_url, "SELECT 1 FROM account WHERE email = 'later@example.com'") == []


@pytest.fixture
def postgres_machine(tmp_path: Path, cluster: Cluster) -> Iterator[Machine]:
    name = "live_books"
    cluster.create_database(name)
    yield Machine(tmp_path, cluster.url(name), tmp_path / "var" / "spool")
    for each in (name, f"{name}_lost"):
        cluster.drop_database(each)


def test_postgresql_is_restored_by_the_documented_steps(postgres_machine: Machine, cluster: Cluster) -> None:
    machine = postgres_machine
    machine.live_through_a_day()
    dump = next(
        line for line in commands(section((ROOT / "docs" / "operating.md").read_text(), "Backups")) if "eval" in line
    )
    copied = machine.sh(dump.replace("/backups", str(machine.backups)))
    assert copied.returncode == 0, copied.stderr
    assert (machine.backups / "farebox.dump").stat().st_mode & 0o077 == 0
    asyncio.run(machine.serves_on())

    superuser = f"-h 127.0.0.1 -p {cluster.port} -U postgres"
    before, after = machine.documented(
        "Restoring PostgreSQL",
        **{
            "sudo -u postgres psql": f"psql {superuser}",
            "sudo -u postgres createdb": f"createdb {superuser}",
            "DATABASE farebox RENAME TO farebox_lost": "DATABASE live_books RENAME TO live_books_lost",
            "--template=template0 farebox": "--template=template0 live_books",
            "postgresql://farebox@127.0.0.1/farebox": machine.database_url,
        },
    )
    restored = machine.sh(before)
    assert restored.returncode == 0, restored.stderr
    assert (machine.home / "spool.lost").is_dir()
    asyncio.run(machine.serves_the_books_of_that_day(after))
    assert read(machine.database_url, "SELECT 1 FROM account WHERE email = 'later@example.com'") == []


def test_a_charge_that_reaches_the_database_between_the_two_is_in_both_and_counts_once(
    farebox: Farebox, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.live_through_a_day()

    def deliver_first(database: Path, to: Path, tell: Callable[[int, int], None]) -> None:
        asyncio.run(deliver())
        copy_database(database, to, tell)

    async def deliver() -> None:
        async with open_stage(machine.etc, database_url=machine.database_url, database=machine.database):
            pass

    monkeypatch.setattr(sys.modules["farebox.cli.backup"], "copy_database", deliver_first)
    copied = farebox("--config", str(machine.config), "backup", "--json", str(machine.backups / "farebox.db"))
    assert copied.code == 0, copied.err
    assert copied.lines[-1]["spooled"] == 1
    assert not list(machine.spool.glob("*.spool"))
    in_copy = f"sqlite:///{machine.backups}/farebox.db"
    assert read(in_copy, "SELECT count(*) FROM usage WHERE request_id = ?", machine.spooled) == [(1,)]
    before, after = machine.documented("Restoring SQLite")
    assert machine.sh(before).returncode == 0
    asyncio.run(machine.serves_the_books_of_that_day(after))


def test_a_backup_beside_a_busy_server_is_whole_and_disturbs_nobody(tmp_path: Path) -> None:
    out = asyncio.run(back_up_under_load(tmp_path))
    assert b'"verified":true' in out
    copy = tmp_path / "copy.db"
    assert copy.stat().st_mode & 0o077 == 0
    assert {path.name for path in tmp_path.glob("copy*")} == {"copy.db", "copy.db.spool"}
    assert read(f"sqlite:///{copy}", "SELECT count(*) FROM account") == [(3,)]


async def back_up_under_load(tmp_path: Path) -> bytes:
    """Run the command while eight customers call without a pause; answers what it printed."""
    async with open_stage(tmp_path) as stage:
        busy = await stage.person("busy@example.com", 100, plan="enterprise")
        done = False

        async def call_on() -> int:
            count = 0
            while not done or not count:
                status, _ = await stage.ask(busy)
                assert status == 200
                count += 1
            return count

        callers = [asyncio.create_task(call_on()) for _ in range(8)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from farebox.cli import main; main()"),
            *("backup", "--verify", "--json", "copy.db"),
            cwd=tmp_path, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        done = True
        assert sum(await asyncio.gather(*callers)) >= len(callers)
        assert process.returncode == 0, err
    return out


def test_a_backup_replaces_nothing_that_it_was_not_told_to(farebox: Farebox, machine: Machine) -> None:
    machine.live_through_a_day()
    config, dest = ("--config", str(machine.config)), str(machine.backups / "farebox.db")

    def refused(*words: str) -> str:
        ended = farebox(*config, "backup", *words)
        assert (ended.code, ended.err.count("\n")) == (1, 1), ended.err
        return ended.err

    assert farebox(*config, "backup", dest).code == 0
    assert "exist already" in refused(dest)
    assert "is a directory" in refused(str(machine.backups))
    assert "there is no directory" in refused(str(machine.backups / "nowhere" / "farebox.db"))
    assert "is the database itself" in refused("--force", str(machine.home / "farebox.db"))
    (machine.backups / "farebox.db.unfinished").write_text("what a killed one left")
    for path in machine.spool.glob("*.spool"):
        path.unlink()
    assert farebox(*config, "backup", "--force", dest).code == 0
    assert not list((machine.backups / "farebox.db.spool").iterdir())
    assert {path.name for path in machine.backups.iterdir()} == {"farebox.db", "farebox.db.spool"}


def test_a_copy_that_does_not_hold_is_not_kept(farebox: Farebox, machine: Machine) -> None:
    machine.live_through_a_day()
    config, dest = ("--config", str(machine.config)), machine.backups / "farebox.db"
    assert farebox(*config, "backup", str(dest)).code == 0
    before = dest.read_bytes()
    write(machine.database_url, "UPDATE account SET posted_nanos = posted_nanos + 1 WHERE id = 1")
    broken = farebox(*config, "backup", "--force", "--verify", str(dest))
    assert broken.code == 1
    assert "the copy does not hold, and is not kept" in broken.err
    assert "balances: account 1 has" in broken.err
    assert dest.read_bytes() == before
    assert {path.name for path in machine.backups.iterdir()} == {"farebox.db", "farebox.db.spool"}


def test_books_of_an_older_schema_are_copied_before_they_are_migrated(farebox: Farebox, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/farebox.db"
    write_old_books(url, tmp_path)
    assert farebox("backup", "copy.db").code == 0
    refused = farebox("backup", "--verify", "other.db")
    assert (refused.code, "has schema 1" in refused.err) == (1, True)
    nothing = farebox("backup", "--config", "nowhere.toml", "x.db")
    assert nothing.code == 1


def test_for_postgresql_the_line_to_run_is_printed_without_the_password(
    farebox: Farebox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql://farebox:s3cr%40et@db.internal:5433/books?sslmode=require&password=s3cret&search_path=x"
    monkeypatch.setenv("FAREBOX_DATABASE_URL", url)
    printed = farebox("backup", "my books.dump")
    assert printed.code == 0
    place = "postgresql://farebox@db.internal:5433/books?sslmode=require"
    line = f"(umask 077 && pg_dump --format=custom '--file={tmp_path}/my books.dump' '--dbname={place}')"
    assert printed.out == line + "\n"
    assert "Nothing is dumped yet" in printed.err
    again: dict[str, Any] = farebox("backup", "my books.dump", "--force", "--json").json
    assert (again["made"], again["command"], again["spooled"]) == (False, line, 0)
    assert "s3cr" not in printed.out + printed.err + str(again)
    assert farebox("backup", "--verify", "other.dump").code == 2
