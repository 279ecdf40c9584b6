"""One life on one seed: customers, a gateway over SQLite, its upstream, and all that goes wrong between them."""

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final
from unittest import mock

import structlog

from farebox.app import Gateway, Inheritance, start_gateway
from farebox.config import Config, load_config
from farebox.http import doors, server
from farebox.logs import Logger
from farebox.store.sqlite import SqliteStore, open_store
from farebox.upstreams.simulator import Simulator
from tests.kill.crowd import PLAN, Crowd
from tests.kill.oracle import check_books
from tests.simulation.disk import Disk
from tests.simulation.network import Network
from tests.simulation.world import Node, World

_PORT: Final = 8_080
_SETTLED_S: Final = 120.0
"""Once nothing goes wrong any more, no hold may be left after this."""
_CONFIG: Final = """
[server]
port = {port}
metrics = "off"
shutdown_s = 10
handover_s = 30
[database]
url = "sqlite:///{database}"
[log]
level = "info"
[limits]
drain_s = 2
slice_tokens = 64
first_byte_s = 40
stall_s = 20
[[upstreams]]
name = "sim"
kind = "anthropic"
base_url = "http://127.0.0.1:{upstream}"
api_key = "literal"
"""
_HOUR_S: Final = 3_600.0
MUST_SEE: Final = (
    "trouble: kill", "trouble: restart", "trouble: hand over", "trouble: lose answers", "trouble: keep writing",
    "trouble: lose upstream", "trouble: cut", "trouble: slow down", "trouble: set clock", "killed with calls in flight",
    "killed while it started", "killed while it retired", "lost answers of commits", "found another one writing",
    "deposits that had been posted without an answer", "recovered, gateway_died", "exact, client_gone",
    "estimated, client_gone", "estimated, out_of_money", "waived, upstream_broke", "failed, refused_upstream",
    "answers had in full", "answers with 402", "answers with 502", "answers with 503",
    "answers with 529", "log: settles_spooled", "log: holds_recovered", "log: stray_holds_ended", "log: upstream_rests",
    "log: upstream_well_again", "log: books_available_again", "log: shortfall",
)  # fmt: skip
"""What lives that are hard enough have all seen, sooner or later."""
_DAY_NS: Final = 86_400 * 10**9


class Life:
    """What happens in so many hours. `seen` counts it."""

    def __init__(self, seed: int, directory: Path, hours: float, *, calm_s: float = _HOUR_S) -> None:
        self.world = World(seed)
        self.chance = self.world.random
        self.network = Network(self.world)
        self.directory = directory
        self.disk = Disk(self.world, directory / "farebox.db")
        self.hours = hours
        self.calm_s = calm_s
        """How long it is quiet, on the average, between the times in which all come and everything goes wrong."""
        self.seen: Counter[str] = Counter()
        self.log: list[dict[str, Any]] = []
        self.simulator: Simulator
        self.upstream = Node("upstream")
        self.store: SqliteStore
        self.crowd: Crowd
        self.gateway: Gateway | None = None
        self.node = Node("none")
        self.nodes: list[Node] = []
        """All there ever were: what is let go of would run its `finally`."""
        self.config: Config
        self._generation = 0

    def run(self) -> Counter[str]:
        """Live it, and check what must hold. Raises AssertionError, with the seed."""
        gc.disable()  # a coroutine of a dead node that was collected would run its `finally`
        try:
            with self._installed():
                self.world.live(self._live())
        except BaseException as error:
            error.add_note(f"seed {self.world.seed}, {self.world.time() - 1_000:.3f} s into the life")
            raise
        finally:
            self.node.die()
        return self.seen

    @contextlib.contextmanager
    def _installed(self) -> Iterator[None]:
        with (
            self.disk.installed(),
            mock.patch.object(server, "open_doors", self.network.open_doors),
            mock.patch.object(doors, "open_doors", self.network.open_doors),
        ):
            yield

    async def _live(self) -> None:
        self.simulator = Simulator(speed=0, api_key="literal", keep=2_000_000, seed=self.world.seed)
        await self.upstream.spawn(self.simulator.listen())
        path = self.directory / "farebox.toml"
        path.write_text(_CONFIG.format(port=_PORT, database=self.disk.path, upstream=self.simulator.port) + PLAN)
        path.chmod(0o600)
        self.config = load_config(path, {})
        self.store = await open_store(self.disk.path, plans=self.config.plans)
        self.crowd = Crowd(self.store, self.chance, self.seen, lambda: _PORT)
        await self.crowd.open_accounts()
        await self._start()
        self.world.is_idle = lambda: not self.crowd.calling.total()
        end_at = self.world.time() + self.hours * _HOUR_S
        while self.world.time() < end_at:
            await self._rush()
            await asyncio.sleep(min(self.chance.expovariate(1 / self.calm_s), max(end_at - self.world.time(), 0)))
        await self._stop()
        await self._check()

    async def _rush(self) -> None:
        """Have all come at once, and things go wrong; then nothing more goes wrong, and everything comes to its end."""
        self.seen["rushes"] += 1
        self.crowd.begin(8, pause_s=4, deposit_pause_s=10)
        end_at = self.world.time() + self.chance.expovariate(1 / 30)
        while self.world.time() < end_at:
            await asyncio.sleep(self.chance.expovariate(1 / 5))
            await self._trouble()
        await self.crowd.end()
        give_up_at = self.world.time() + _SETTLED_S
        while (held := await self._held()) and self.world.time() < give_up_at:  # noqa: ASYNC110  a virtual second
            await asyncio.sleep(1)
        assert not held, f"{held} holds are left {_SETTLED_S:.0f} s after the last trouble"

    async def _check(self) -> None:
        """See what the books say of the whole life, once nobody serves them any more."""
        await check_books(self.store, self.simulator, self.crowd.answers, self.crowd.deposited, self.seen)
        failed = [event for event in self.log if event["event"] in {"call_failed", "exchange_failed"}]
        assert not failed, failed
        for event in self.log:
            if event["level"] != "info":
                self.seen[f"log: {event['event']}"] += 1
        self.seen["lost answers of commits"] += self.disk.lost
        self.seen["found another one writing"] += self.disk.busy

    async def _held(self) -> int:
        rows = await self.store.fetch("SELECT count(*) FROM hold WHERE amount_nanos > 0")
        return int(rows[0][0])

    # what goes wrong

    async def _trouble(self) -> None:
        troubles = {
            self._kill: 6, self._restart: 2, self._hand_over: 3, self._lose_answers: 3, self._keep_writing: 3,
            self._lose_upstream: 2, self._cut: 3, self._slow_down: 2, self._set_clock: 2,
        }  # fmt: skip
        trouble = self.chance.choices(list(troubles), list(troubles.values()))[0]
        name = trouble.__name__.strip("_").replace("_", " ")
        self.world.note(name)
        self.seen[f"trouble: {name}"] += 1
        await trouble()

    async def _kill(self) -> None:
        self.seen["killed with calls in flight"] += bool(await self._held())
        await asyncio.sleep(self.chance.uniform(0, 0.05))
        self._die()
        await asyncio.sleep(self.chance.choice((0.0, 0.5, 3.0, 90.0)) * self.chance.random())
        await self._start(dying=self.chance.random() < 0.2)

    async def _restart(self) -> None:
        await self._stop()
        await asyncio.sleep(self.chance.uniform(0, 2))
        await self._start()

    async def _hand_over(self) -> None:
        """Have a new generation take over while the old one ends its calls."""
        old, old_node = self.gateway, self.node
        assert old is not None
        lock = old.store.copy_lock()
        await self._start(Inheritance(doors=self.network.open_doors("", _PORT), books_lock=lock))
        retiring = old_node.spawn(_leave(old))
        if self.chance.random() < 0.3:
            await asyncio.sleep(self.chance.uniform(0, 1))
            old_node.die()
            self.network.cut_all(old_node)
            self.seen["killed while it retired"] += 1
        else:
            await self._over(retiring, old_node)

    async def _lose_answers(self) -> None:
        self.disk.loses_answers = self.chance.uniform(0.05, 0.9)
        await asyncio.sleep(self.chance.choice((1, 10, 60)) * self.chance.random())
        self.disk.loses_answers = 0.0

    async def _keep_writing(self) -> None:
        with contextlib.ExitStack() as writing:
            while True:
                try:
                    writing.enter_context(self.disk.written_by_another())
                    break
                except Exception:  # noqa: BLE001  somebody else writes
                    await asyncio.sleep(0.001)
            await asyncio.sleep(self.chance.choice((0.1, 2, 40)) * self.chance.uniform(0.5, 1))
            if self.chance.random() < 0.3:
                self._die()
        if self.gateway is None:
            await self._start()

    async def _lose_upstream(self) -> None:
        self.network.down.add(self.simulator.port)
        if self.chance.random() < 0.5:
            self.network.cut_all(self.upstream)
        await asyncio.sleep(self.chance.choice((1, 10, 100)) * self.chance.random())
        self.network.down.clear()

    async def _cut(self) -> None:
        self.network.cut_all(self.node)

    async def _slow_down(self) -> None:
        self.network.slow_s, self.disk.slow_s = self.chance.choice(((0.05, 0.000_5), (0.000_3, 0.4), (0.02, 0.1)))
        await asyncio.sleep(self.chance.uniform(1, 60))
        self.network.slow_s, self.disk.slow_s = 0.000_3, 0.000_5

    async def _set_clock(self) -> None:
        """Set the wall clock, which counts from the next start on."""
        self.world.wall_offset_ns += int(
            self.chance.choice((10**9, 3_600 * 10**9, _DAY_NS)) * self.chance.uniform(-1, 1)
        )
        await self._kill()

    # the gateway

    async def _start(self, inheritance: Inheritance | None = None, *, dying: bool = False) -> None:
        """Start a gateway; one that is `dying` is killed somewhere on its way, and another one started."""
        while True:
            self._generation += 1
            self.world.pid += 1
            self.node = node = Node(f"gateway {self._generation}")
            self.nodes.append(node)
            starting = node.spawn(start_gateway(self.config, logger=self._logger(), inheritance=inheritance))
            if dying:
                await asyncio.sleep(self.chance.uniform(0, 0.03))
                if not starting.done():
                    self.seen["killed while it started"] += 1
                    self._die()
                    dying = False
                    continue
            await self._over(starting, node)
            error = starting.exception()
            if error is None:
                self.gateway = starting.result()
                return
            self.seen[f"did not start: {type(error).__name__}"] += 1
            node.die()
            await asyncio.sleep(0.5)

    async def _stop(self) -> None:
        if self.gateway is not None:
            await self._over(self.node.spawn(self.gateway.stop()), self.node)
            self.gateway = None
            self.network.cut_all(self.node)

    def _die(self) -> None:
        self.node.die()
        self.network.cut_all(self.node)
        self.gateway = None

    async def _over(self, task: "asyncio.Task[Any]", node: Node) -> None:
        """Wait for a task of a node that may die."""
        while not task.done() and not node.dead:  # noqa: ASYNC110  virtual milliseconds
            await asyncio.sleep(0.005)

    def _logger(self) -> Logger:
        def record(_: Any, level: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
            self.log.append({**event, "level": level})
            raise structlog.DropEvent

        logger: Logger = structlog.wrap_logger(
            structlog.PrintLogger(), processors=[record], wrapper_class=structlog.make_filtering_bound_logger(10)
        )
        return logger


async def _leave(gateway: Gateway) -> None:
    await gateway.retire()
    await gateway.stop()
