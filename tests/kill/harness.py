"""kill -9, again and again: the real `farebox serve` under load, with an upstream and customers that survive it.

Here one process over SQLite; several over PostgreSQL are in nodes.py.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from farebox.config import load_config
from farebox.store.sqlite import SqliteStore, open_store
from farebox.upstreams.simulator import Simulator
from tests.kill.crowd import PLAN, Crowd
from tests.kill.oracle import check_books

COMMAND = (sys.executable, "-c", "from farebox.cli import main; main()", "serve", "--config")
READY_S = 4.0
_CUSTOMERS = 14
_PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to clients: one that connects while a server is down must not meet itself."""
_CONFIG = """
[server]
port = {port}
metrics = "off"
shutdown_s = 10
[database]
url = "{url}"
{database}
[log]
level = "warning"
[limits]
drain_s = 0.3
slice_tokens = 64
retry_wait_s = 0.01
[[upstreams]]
name = "sim"
kind = "anthropic"
base_url = "http://127.0.0.1:{upstream}"
api_key = "literal"
"""


class Server:
    """A `farebox serve` as a process of its own, on a port of its own, that can be killed and started again."""

    def __init__(self, directory: Path, name: str, url: str, upstream: int, database: str = "") -> None:
        self.port = free_port()
        self.config = directory / f"{name}.toml"
        self.log = directory / f"{name}.log"
        self.process: asyncio.subprocess.Process | None = None
        self.before: tuple[str, ...] = ()
        """What it is started by, such as a program that meddles with its calls of the kernel and becomes it."""
        text = _CONFIG.format(port=self.port, url=url, upstream=upstream, database=database) + PLAN
        self.config.write_text(text)
        self.config.chmod(0o600)

    async def launch(self) -> None:
        """Start it, and do not wait until it answers."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FAREBOX_", "ANTHROPIC_"))}
        environment = kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.before, *COMMAND, str(self.config), env=environment, stdout=log, stderr=log
            )

    async def answers(self) -> None:
        """Wait until it takes connections."""
        assert self.process is not None
        began = time.monotonic()
        while not self.is_up:
            assert self.process.returncode is None, self.last_words()
            assert time.monotonic() - began < 10 * READY_S, f"the server does not come up: {self.last_words()}"
            await asyncio.sleep(0.01)

    @property
    def is_up(self) -> bool:
        """Whether it takes connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=0.2).close()
        except OSError:
            return False
        return True

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """Stop it in order."""
        assert self.process is not None
        self.send(signal.SIGTERM)
        assert await asyncio.wait_for(self.process.wait(), 20) == 0, self.last_words()

    async def close(self) -> None:
        """Kill it if it runs, or is stopped."""
        if self.process is not None and self.process.returncode is None:
            await self.kill()

    def last_words(self) -> str:
        return self.log.read_text()[-2000:]


class Killing:
    """One run. `seen` counts what happened, so that a run that has gone soft can be told."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.seed = seed
        self.random = random.Random(seed)
        self.simulator = Simulator(speed=0, api_key="literal", keep=2_000_000)
        self.ready_s: list[float] = []
        self.seen: Counter[str] = Counter()
        self.store: SqliteStore
        self.server: Server
        self.crowd: Crowd

    async def run(self, kills: int, on_progress: Callable[[int], None] | None = None) -> None:
        """Kill so often, end in order, and check. A failure names the seed."""
        try:
            await self._open()
            self.crowd.begin(_CUSTOMERS)
            for number in range(kills):
                await self._start()
                await asyncio.sleep(self.random.uniform(0.05, 0.7))
                await self._kill()
                if on_progress:
                    on_progress(number + 1)
            await self._start()
            await asyncio.sleep(0.5)
            await self.crowd.end()
            await self._check_running()
            await self.server.stop()
            await check_books(self.store, self.simulator, self.crowd.answers, self.crowd.deposited, self.seen)
            assert await self._count("SELECT count(*) FROM hold") == 0
        except AssertionError as error:
            error.add_note(f"FAREBOX_SEED={self.seed}")
            raise
        finally:
            await self._close()

    async def _open(self) -> None:
        await self.simulator.listen()
        url = f"sqlite:///{self.directory}/farebox.db"
        self.server = Server(self.directory, "farebox", url, self.simulator.port)
        plans = load_config(self.server.config, {}).plans
        self.store = await open_store(self.directory / "farebox.db", plans=plans)
        self.crowd = Crowd(self.store, self.random, self.seen, lambda: self.server.port)
        await self.crowd.open_accounts()

    async def _start(self) -> None:
        """Start the server; when it answers, nothing of the one before it is held any more."""
        began = time.monotonic()
        await self.server.launch()
        await self.server.answers()
        self.ready_s.append(time.monotonic() - began)
        left = await self._count("SELECT count(*) FROM hold WHERE run_id < (SELECT max(id) FROM run)")
        assert left == 0, f"{left} holds of a dead process after the doors opened"

    async def _kill(self) -> None:
        await self.server.kill()
        held = await self._count("SELECT count(*) FROM hold")
        self.seen["killed with calls in flight"] += held > 0
        self.seen["calls in flight when killed"] += held

    async def _close(self) -> None:
        self.crowd.stop()
        await self.server.close()
        await self.store.close()
        await self.simulator.close()

    async def _check_running(self) -> None:
        """See that money is free again once nobody calls, while the server runs."""
        for _ in range(100):
            if not await self._count("SELECT count(*) FROM hold"):
                return
            await asyncio.sleep(0.1)
        raise AssertionError("holds are left though no call is")

    async def _count(self, sql: str) -> int:
        return int((await self.store.fetch(sql))[0][0])


def free_port() -> int:
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
