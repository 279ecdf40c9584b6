"""A gateway that is one process, first or taking over: it serves, is succeeded, retires, and keeps its successors."""

import asyncio
import signal
from typing import Final

import uvloop

from farebox.app import Gateway, start_gateway
from farebox.config import Config
from farebox.workers.life import run_until_told
from farebox.workers.process import GO, HURRY, RETIRE, STOP
from farebox.workers.succession import Generation, Heir, Succession

_POST_S: Final = 1.0
_SLACK_S: Final = 0.1
"""The clock of a loop is a millisecond or so behind."""


def serve_alone(config: Config, heir: Heir | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then let calls in flight end. Answers the exit code. Raises FareboxError."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # while it starts; only a first generation reloads
    return uvloop.run(_take_over(config, heir) if heir is not None else _serve_first(config))


async def _serve_first(config: Config) -> int:
    """Serve, be succeeded as often as SIGHUP comes, and stay until all successors have ended."""
    return await _First(config, await start_gateway(config)).run()


class _First:
    """The first generation."""

    def __init__(self, config: Config, gateway: Gateway) -> None:
        self._gateway = gateway
        self._registry = gateway.registry()
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()
        self._succeeded = asyncio.Event()
        self._changes = asyncio.Event()
        self._heard: dict[int, Generation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._succession = Succession(
            config,
            gateway.doors,
            gateway.metrics_doors,
            gateway.store.copy_lock(),
            log=gateway.log,
            retire=self._retire,
            changed=self._look_anew,
        )

    async def run(self) -> int:
        """Serve, and then keep; answers the exit code."""
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        ending = asyncio.create_task(self._end_others())
        await run_until_told(self._gateway, self._told, self._succeeded, self._hurry)
        self._succession.post(self._registry)
        self._succession.forget_own()
        while not self._told.is_set() or self._succession.generations:
            self._changes.clear()
            await self._changes.wait()
        await ending
        return self._succession.exit_code

    def _reload(self) -> None:
        self._succession.begin()
        if self._succession.due_s is not None:
            delay_s = self._succession.due_s - self._loop.time() + _SLACK_S
            self._loop.call_later(delay_s, self._succession.expire)

    def _retire(self) -> None:
        task = asyncio.create_task(self._let_go())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _let_go(self) -> None:
        await self._gateway.close_metrics()
        await self._post()
        self._gateway.jobs.every(_POST_S, "post_metrics", self._post)
        self._succession.let_go()
        self._succeeded.set()

    async def _end_others(self) -> None:
        await self._told.wait()
        self._succession.stop()
        self._changes.set()

    def _hurry(self) -> None:
        self._gateway.hurry()
        self._succession.hurry()

    def _look_anew(self) -> None:
        """Listen to all generations there are, and to no other; end when nobody is left who could serve."""
        now = {one.fileno(): one for one in self._succession.generations}
        for file in self._heard.keys() - now.keys():
            self._loop.remove_reader(file)
        for file in now.keys() - self._heard.keys():
            self._loop.add_reader(file, self._succession.hear, now[file])
        self._heard = now
        if self._succession.has_failed:
            self._told.set()
        self._changes.set()

    async def _post(self) -> None:
        self._succession.post(self._registry)


async def _take_over(config: Config, heir: Heir) -> int:
    """Be a gateway that takes over from another, until a signal, an order, or the end of the first generation."""
    loop = asyncio.get_running_loop()
    told, succeeded = asyncio.Event(), asyncio.Event()
    starting = asyncio.create_task(start_gateway(config, inheritance=heir.inheritance()))
    orders: asyncio.Queue[bytes] = asyncio.Queue()

    def obey() -> None:
        ordered = heir.line.orders()
        if not ordered:
            loop.remove_reader(heir.line)
        if not ordered or STOP in ordered or HURRY in ordered:
            told.set()
            if not starting.done():
                starting.cancel()
            elif HURRY in ordered:
                starting.result().hurry()
        orders.put_nowait(ordered)

    loop.add_reader(heir.line, obey)
    try:
        gateway = await starting
    except asyncio.CancelledError:
        return 0
    registry = gateway.registry()

    async def post() -> None:
        heir.post(registry)

    async def follow() -> None:
        """Take the metrics over, and give them away again."""
        while True:
            ordered = await orders.get()
            if GO in ordered:
                await gateway.open_metrics()
            if RETIRE in ordered:
                await gateway.close_metrics()
                heir.post(registry)
                heir.line.let_go()
                succeeded.set()

    following = asyncio.create_task(follow())
    gateway.jobs.every(_POST_S, "post_metrics", post)
    heir.line.ready()
    await run_until_told(gateway, told, succeeded)
    following.cancel()
    heir.post(registry)
    return 0
