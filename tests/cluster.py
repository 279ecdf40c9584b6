"""A PostgreSQL server of our own, made from Debian's package in a temporary directory and gone with the session.

Durable as an operator's is (fsync, data checksums), sorted by a language's rules and not by bytes, and spoken to as a
role that is no superuser. Nobody but this machine can reach it.
"""

import asyncio
import contextlib
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import asyncpg

T = TypeVar("T")

ROLE = "farebox"
"""Who the gateway is: owns its databases, may do nothing else."""
_SUPERUSER = "postgres"
_DEBIAN = Path("/usr/lib/postgresql")
_ENDS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to clients: one that connects while the server is down must not meet itself."""
_READY_S = 60
_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 4 * 2**30
_DOORS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{directory}'
"""
_SMALL = """
max_connections = 200
shared_buffers = 32MB
max_wal_size = 512MB
fsync = on
"""
_ACCESS = "local all all trust\nhost all all 127.0.0.1/32 trust\n"


def memory() -> Path:
    """Give a place for a server of many databases that no power cut threatens: memory, if there is room.

    Making and dropping a database takes a third of the time there, of which a suite makes thousands.
    """
    with contextlib.suppress(OSError):
        if shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES:
            return _MEMORY
    return Path("/tmp")


class PostgresMissing(Exception):
    """PostgreSQL's server programs are not on this machine."""


class Cluster:
    """A running server. Methods wait until the thing is done; all may be called from any thread."""

    def __init__(self, *, within: Path = Path("/tmp"), settings: str = _SMALL, through: Sequence[str] = ()) -> None:
        """Start one in a directory `within` (short: a socket's path has 107 bytes), by way of a command like nice."""
        programs, owner = find_programs(), _owner()
        self.directory = Path(tempfile.mkdtemp(prefix="farebox-", dir=within))
        self.port = _free_port()
        self._numbers = itertools.count(1)
        self._pid = 0
        self._turn = threading.Lock()
        data = self.directory / "data"
        self._pid_file = data / "postmaster.pid"
        try:
            if owner is not None:
                os.chown(self.directory, *owner)
            _initdb(programs, data, owner)
            with (data / "postgresql.conf").open("a") as file:
                file.write(_DOORS.format(port=self.port, directory=self.directory) + settings)
            (data / "pg_hba.conf").write_text(_ACCESS)
            keeper = Path(__file__).with_name("keeper.py")
            shown = "{}:{}".format(*owner) if owner else ""
            self._keeper = subprocess.Popen(
                [sys.executable, "-IS", keeper, self.directory, shown, *through, programs / "postgres", "-D", data],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # an interrupt of the session is not its own
            )
        except BaseException:
            shutil.rmtree(self.directory)
            raise
        try:
            self.start()
            self.execute(f"CREATE ROLE {ROLE} LOGIN")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, database: str, *, role: str = ROLE) -> str:
        """Give the address of a database, as the configuration takes it."""
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server, after whatever end it had, and wait until it takes connections."""
        with self._turn:
            self._reap()
            self._pid = int(self._ask("start"))
            _wait_until(self._is_ready, _READY_S, "the server does not come up", self._log)

    def stop(self, how: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """End the server: "smart" waits for its clients, "fast" hangs up, "immediate" leaves the rest to recovery."""
        os.kill(self._pid, _ENDS[how])
        with self._turn:
            self._reap()

    def restart(self, how: Literal["smart", "fast", "immediate"] = "fast") -> None:
        self.stop(how)
        self.start()

    def kill(self) -> None:
        """Kill all of the server's processes in the middle of whatever they do. `start` then recovers."""
        self.freeze()
        processes = self.processes()
        for process in processes:
            _send(process, signal.SIGKILL)
        with self._turn:
            self._reap()
        _wait_until(lambda: not any(map(_runs, processes)), _READY_S, "killed processes live on", self._log)

    def freeze(self) -> None:
        """Stop all of the server's processes where they are: connections stay open, nothing is answered."""
        for process in self.processes():  # the first one makes no more of them
            _send(process, signal.SIGSTOP)
        for process in self.processes():
            _send(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let frozen processes go on."""
        for process in reversed(self.processes()):
            _send(process, signal.SIGCONT)

    def processes(self) -> list[int]:
        """Give the server's process ids, its first one first."""
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        return [self._pid, *map(int, children)]

    def configure(self, **settings: str | int | None) -> None:
        """Change settings (None: back to the default) that need no restart, and wait until they are in force."""
        before = self.fetch("SELECT pg_conf_load_time()")
        for name, value in settings.items():
            self.execute(f"ALTER SYSTEM SET {name} = '{value}'" if value is not None else f"ALTER SYSTEM RESET {name}")
        self.execute("SELECT pg_reload_conf()")
        _wait_until(lambda: self.fetch("SELECT pg_conf_load_time()") != before, _READY_S, "no reload", self._log)

    def create_database(self, name: str, template: str | None = None) -> None:
        """Make a database that the gateway's role owns: empty, or a copy of one that nobody is connected to."""
        how = "FILE_COPY" if self.directory.is_relative_to(_MEMORY) else "WAL_LOG"  # whichever is quicker there
        self.execute(f"CREATE DATABASE {name} OWNER {ROLE} TEMPLATE {template or 'template0'} STRATEGY {how}")

    def drop_database(self, name: str) -> None:
        """Remove a database if it is there, whoever is connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @contextlib.contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """Lend a fresh database; answers its URL."""
        name = f"fresh{next(self._numbers)}"
        self.create_database(name, template)
        try:
            yield self.url(name)
        finally:
            self.drop_database(name)

    def fetch(self, sql: str, *params: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the superuser, over a connection of its own."""
        return run(self._as_superuser(database, lambda connection: connection.fetch(sql, *params)))

    def execute(self, script: str, *, database: str = "postgres") -> None:
        """Run statements as the superuser, in one session of their own."""
        run(self._as_superuser(database, lambda connection: connection.execute(script)))

    async def _as_superuser(self, database: str, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        connection = await asyncpg.connect(self.url(database, role=_SUPERUSER), timeout=_READY_S)
        try:
            return await work(connection)
        finally:
            await connection.close()

    def close(self) -> None:
        """End the server and remove its directory."""
        with self._turn:
            self._keeper.communicate(timeout=2 * _READY_S)

    def _is_ready(self) -> bool:
        """Read what the server says of itself, as pg_ctl does."""
        assert _runs(self._pid), f"the server does not start:\n{self._log()}"
        try:
            lines = self._pid_file.read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._pid) and lines[7].strip() == "ready"

    def _reap(self) -> None:
        if self._pid:
            self._ask("wait")
            self._pid = 0

    def _ask(self, question: str) -> str:
        to_keeper, from_keeper = self._keeper.stdin, self._keeper.stdout
        assert to_keeper is not None
        assert from_keeper is not None
        print(question, file=to_keeper, flush=True)
        answer: str = from_keeper.readline()
        assert answer, f"the keeper is gone:\n{self._log()}"
        return answer

    def _log(self) -> str:
        """Give the end of what the server said."""
        return (self.directory / "log").read_text(errors="replace")[-3_000:]


def find_programs() -> Path:
    """Give the directory of the newest PostgreSQL server. Raises PostgresMissing."""
    found = [path.parent for path in _DEBIAN.glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    raise PostgresMissing(
        "PostgreSQL's server programs are not here, and the books are tested on them: run `make test`, which installs "
        "them, or `apt-get install postgresql`"
    )


def _owner() -> tuple[int, int] | None:
    """Give user and group to run the server as where we are root, as whom it refuses to run."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise PostgresMissing("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` here")


def _initdb(programs: Path, data: Path, owner: tuple[int, int] | None) -> None:
    user, group = owner or (None, None)
    options = ["--username", _SUPERUSER, "--auth", "trust", "--data-checksums", "--encoding", "UTF8", "--no-sync"]
    locale = ["--locale", "C.UTF-8", "--locale-provider", "icu", "--icu-locale", "en-US"]
    made = subprocess.run(
        [programs / "initdb", "--pgdata", data, *options, *locale],
        cwd=data.parent,
        user=user,
        group=group,
        extra_groups=[] if owner else None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr


def _free_port() -> int:
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where a loop is running already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _runs(process: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _wait_until(check: Callable[[], bool], timeout_s: float, otherwise: str, log: Callable[[], str]) -> None:
    until = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < until, f"{otherwise}:\n{log()}"
        time.sleep(0.005)
