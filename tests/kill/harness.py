"""kill -9, again and again: the real `farebox serve` under load, with an upstream and customers that survive it.

The oracle is outside: the simulator knows what it generated, the clients what they received in full. `check` joins
both with the books.
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
from typing import Any

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.books.audit import audit
from farebox.books.ledger import Ledger, credit
from farebox.clock import steady_clock
from farebox.config import load_config
from farebox.errors import StoreUnavailable
from farebox.store.sqlite import SqliteStore, open_store
from farebox.upstreams.simulator import Simulator
from tests.kill.client import Seen, call

COMMAND = (sys.executable, "-c", "from farebox.cli import main; main()", "serve", "--config")
READY_S = 2.0
NANOS = {
    "claude-sonnet-4-6": (1_500, 1_875, 3_000, 150, 7_500),
    "claude-haiku-4-5": (400, 500, 800, 40, 2_000),
}
"""Nano-dollars a token, from the seed contract: input, writes for 5 minutes and an hour, reads, output."""
_WORKERS = 14
_CONFIG = """
[server]
port = {port}
metrics = "off"
shutdown_s = 10
[database]
url = "sqlite:///{directory}/farebox.db"
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
[[plans]]
name = "all"
requests_per_minute = 1_000_000
tokens_per_minute = 1_000_000_000
concurrent = 1000
top_up = 0
"""
_FAULTS = (
    "cut_after=4", "reset_after=6", "error=529", "error=400", "error=500", "fail_first=1", "truncate", "refusal=0",
    "refusal=9", "error_after=5", "garbage_after=5", "close_before", "many_deltas=3", "cache_read=500",
    "cache_write_5m=300", "cache_write_1h=200", "wrong_length",
)  # fmt: skip


class Killing:
    """One run. `seen` counts what happened, so that a run that has gone soft can be told."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.seed = seed
        self.random = random.Random(seed)
        self.simulator = Simulator(speed=0, api_key="literal", keep=2_000_000)
        self.port = _free_port()
        self.config = directory / "farebox.toml"
        self.keys: list[str] = []
        self.answers: list[Seen] = []
        self.deposited: set[str] = set()
        self.ready_s: list[float] = []
        self.seen: Counter[str] = Counter()
        self.store: SqliteStore
        self._process: asyncio.subprocess.Process | None = None
        self._accounts: list[int] = []
        self._running = True

    async def run(self, kills: int, on_progress: Callable[[int], None] | None = None) -> None:
        """Kill so often, end in order, and check. A failure names the seed."""
        try:
            await self._open()
            workers = [asyncio.create_task(self._customer()) for _ in range(_WORKERS)]
            workers.append(asyncio.create_task(self._depositor()))
            for number in range(kills):
                await self._start()
                await asyncio.sleep(self.random.uniform(0.05, 0.7))
                await self._kill()
                if on_progress:
                    on_progress(number + 1)
            await self._start()
            await asyncio.sleep(0.5)
            self._running = False
            await asyncio.gather(*workers)
            await self._check_running()
            await self._end()
            await self.check()
        except AssertionError as error:
            error.add_note(f"FAREBOX_SEED={self.seed}")
            raise
        finally:
            await self._close()

    async def _open(self) -> None:
        await self.simulator.listen()
        text = _CONFIG.format(port=self.port, directory=self.directory, upstream=self.simulator.port)
        self.config.write_text(text)
        self.config.chmod(0o600)
        plans = load_config(self.config, {}).plans
        self.store = await open_store(self.directory / "farebox.db", plans=plans)
        now = steady_clock()()
        for number, nanos in enumerate((10**12, 10**12, 10**12, 3_000_000, 1_500_000, 0)):
            account = await create_account(self.store, f"c{number}@example.com", "all", now)
            self.keys.append((await create_key(self.store, account.id, "k", "sk-cc-", now))[1])
            self._accounts.append(account.id)
            if nanos:
                await self._deposit(account.id, nanos, f"first:{number}")

    async def _start(self) -> None:
        """Start the server; when it answers, nothing of the one before it is held any more."""
        began = time.monotonic()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FAREBOX_", "ANTHROPIC_"))}
        environment = kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        log = (self.directory / "serve.log").open("ab")
        with log:
            self._process = await asyncio.create_subprocess_exec(
                *COMMAND, str(self.config), env=environment, stdout=log, stderr=log
            )
        while not _answers(self.port):
            assert self._process.returncode is None, (self.directory / "serve.log").read_text()[-2000:]
            assert time.monotonic() - began < 20 * READY_S, "the server does not come up"
            await asyncio.sleep(0.01)
        self.ready_s.append(time.monotonic() - began)
        left = await self._count("SELECT count(*) FROM hold WHERE run_id < (SELECT max(id) FROM run)")
        assert left == 0, f"{left} holds of a dead process after the doors opened"

    async def _kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        held = await self._count("SELECT count(*) FROM hold")
        self.seen["killed with calls in flight"] += held > 0
        self.seen["calls in flight when killed"] += held

    async def _end(self) -> None:
        """Stop in order."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(self._process.wait(), 20) == 0

    async def _close(self) -> None:
        self._running = False
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self.store.close()
        await self.simulator.close()

    async def _customer(self) -> None:
        """Make calls of every kind, one after the other, whatever becomes of the server."""
        while self._running:
            number = self.random.choices(range(len(self.keys)), (6, 6, 6, 2, 2, 1))[0]
            model = self.random.choice(list(NANOS))
            tokens = self.random.choice((1, 8, 60, 400, 1_500))
            knobs = f"tokens={tokens}"
            if self.random.random() < 0.5:
                knobs += f" rate={tokens * self.random.choice((2, 5, 30))} ttft={self.random.choice((0, 30))}"
            if self.random.random() < 0.25:
                knobs += " " + self.random.choice(_FAULTS)
            body = {
                "model": model,
                "max_tokens": self.random.choice((1, 50, 2_000)),
                "stream": self.random.random() < 0.7,
                "messages": [{"role": "user", "content": f"[[sim {knobs}]] {self.random.random()}"}],
            }
            hang_up_s = self.random.uniform(0.001, 0.2) if self.random.random() < 0.15 else None
            seen = await call(self.port, self.keys[number], body, hang_up_s=hang_up_s)
            if seen.refused:
                await asyncio.sleep(0.02)
            else:
                self.answers.append(seen)

    async def _depositor(self) -> None:
        """Credit money from a process of its own, as the command line does, delivering everything twice."""
        number = 0
        while self._running:
            number += 1
            account = self.random.choice(self._accounts[3:5])
            nanos = self.random.choice((1_000, 200_000, 900_000))
            for _ in range(2):
                with contextlib.suppress(StoreUnavailable):
                    await self._deposit(account, nanos, f"deposit:{number}")
            await asyncio.sleep(0.05)

    async def _deposit(self, account_id: int, nanos: int, name: str) -> None:
        transfer = credit(name, account_id, nanos, code="deposit", actor="test", memo="")
        posted = await Ledger(self.store).post(transfer)
        assert posted.now or name in self.deposited
        self.deposited.add(name)

    async def _check_running(self) -> None:
        """See that money is free again once nobody calls, while the server runs."""
        for _ in range(100):
            if not await self._count("SELECT count(*) FROM hold"):
                return
            await asyncio.sleep(0.1)
        raise AssertionError("holds are left though no call is")

    async def check(self) -> None:
        """Join what clients saw, what the upstream generated and what the books say."""
        rows = await self.store.fetch(
            "SELECT message_id, kind, outcome, model, input_tokens, cache_write_5m_tokens, cache_write_1h_tokens, "
            "cache_read_tokens, output_tokens, cost_nanos, charged_nanos, shortfall_nanos, waived_nanos FROM usage"
        )
        names = (
            "message_id",
            "kind",
            "outcome",
            "model",
            "i",
            "w5",
            "w1",
            "r",
            "o",
            "cost",
            "charged",
            "short",
            "waived",
        )
        booked = [dict(zip(names, row, strict=True)) for row in rows]
        generated = {request.message_id: request for request in self.simulator.requests if request.message_id}
        self._check_charges(booked, generated)
        self._check_answers(booked)
        assert await self._count("SELECT count(*) FROM hold") == 0
        assert await self._count("SELECT count(*) FROM account WHERE posted_nanos < 0 OR held_nanos <> 0") == 0
        there = {row[0] for row in await self.store.fetch("SELECT id FROM transfer")}
        assert there == self.deposited
        broken = [check for check in await audit(self.store) if not check.ok]
        assert not broken, broken
        assert not self.simulator.crashes, self.simulator.crashes

    def _check_charges(self, booked: list[dict[str, Any]], generated: dict[str, Any]) -> None:
        """See that nothing was charged but what the upstream did, at the published prices (promise 2)."""
        charged: set[str] = set()
        for row in booked:
            self.seen[f"{row['kind']}, {row['outcome']}"] += 1
            if row["cost"] == 0:
                continue
            request = generated.get(row["message_id"])
            assert request is not None, f"charged for an answer that nobody gave: {row}"
            assert row["message_id"] not in charged, f"booked twice: {row}"
            charged.add(row["message_id"])
            usage = request.usage
            split = usage.get("cache_creation") or {}
            said = (
                usage["input_tokens"],
                split.get("ephemeral_5m_input_tokens", 0),
                split.get("ephemeral_1h_input_tokens", 0),
                usage["cache_read_input_tokens"],
            )
            assert (row["w5"], row["w1"], row["r"]) == said[1:], (row, usage)
            # the estimate counts bytes of text, the simulator characters, of which a few are not ASCII
            assert row["o"] <= usage["output_tokens"] * 11 // 10 + 1, (row, usage)
            assert row["i"] <= said[0], (row, usage)
            if row["kind"] == "exact":
                assert (row["i"], row["o"]) == (said[0], usage["output_tokens"]), (row, usage)
            assert row["cost"] == _price(row), row
            assert row["charged"] + row["short"] + row["waived"] == row["cost"], row
            assert row["charged"] == 0 or row["kind"] in {"exact", "estimated"}, row
            self.seen["shortfalls"] += row["short"] > 0

    def _check_answers(self, booked: list[dict[str, Any]]) -> None:
        """See that each answer a client had to its end was charged, once, for all the upstream reported (promise 1)."""
        by_id: dict[str, list[dict[str, Any]]] = {}
        for row in booked:
            by_id.setdefault(row["message_id"], []).append(row)
        for seen in self.answers:
            self.seen[f"answers with {seen.status}"] += 1
            if not seen.finished:
                continue
            self.seen["answers had in full"] += 1
            rows = by_id.get(seen.message_id or "", [])
            assert len(rows) == 1, f"{seen} is booked {len(rows)} times"
            row = rows[0]
            assert row["kind"] == "exact", (seen, row)
            refused = row["cost"] == 0 and row["o"] == 0  # a refusal without output, which is free
            assert refused or row["cost"] == _price(row) > 0, row
            assert row["charged"] + row["short"] == row["cost"], row

    async def _count(self, sql: str) -> int:
        return int((await self.store.fetch(sql))[0][0])


def _price(row: dict[str, Any]) -> int:
    """Price by the seed contract: whole nano-dollars a token, so that there is nothing to round."""
    rates = next(rates for name, rates in NANOS.items() if row["model"].startswith(name))
    return sum(row[name] * rate for name, rate in zip(("i", "w5", "w1", "r", "o"), rates, strict=True))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
    except OSError:
        return False
    return True
