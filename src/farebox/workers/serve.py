"""Gateways as workers: each with a loop, connections and counts of its own, all at the same doors."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

import uvloop
from prometheus_client.registry import Collector

from farebox.app import Inheritance, start_gateway
from farebox.config import Config
from farebox.gateway.metrics import metrics_server
from farebox.http.doors import close_doors, doors_at
from farebox.logs import Logger, make_logger
from farebox.workers.board import Board
from farebox.workers.life import run_until_told
from farebox.workers.process import GO, HURRY, RETIRE, STOP, TOLD_BY, Line
from farebox.workers.succession import Heir, Succession
from farebox.workers.supervisor import Role, Supervisor
from farebox.workers.totals import Roster, Totals

_POST_S: Final = 1.0
"""How old the figures of a living worker are at most."""
_END_S: Final = 25.0
"""What a worker may need beyond `shutdown_s`, to end the streams that are left, settle, and close the books."""

Doors = list[socket.socket]


def serve_with_workers(config: Config, heir: Heir | None = None) -> int:
    """Serve with `server.workers` processes until SIGTERM or SIGINT. Answers the exit code. Raises FareboxError."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # while it starts; only a first generation reloads
    server = config.server
    log = make_logger(config.log.level, config.log.format)
    doors = heir.doors if heir is not None else doors_at(server.host, server.port)
    metrics_doors = heir.metrics_doors if heir is not None else _metrics_doors(config)
    board = Board(1 + server.workers)
    roster = Roster(board, server.workers)
    posts_metrics = bool(metrics_doors)

    def work(number: int, line: Line) -> int:
        close_doors(metrics_doors)
        post = partial(roster.report, number) if posts_metrics else None
        return uvloop.run(_work(config, str(number), doors, post, line))

    def show_metrics(line: Line) -> int:
        close_doors(doors)
        shown = Totals(board)
        if heir is not None:
            post = partial(heir.post, shown)
            return uvloop.run(_show_metrics(heir.add(shown), metrics_doors, line, log, post, takes_over=True))
        return uvloop.run(_show_metrics(shown, metrics_doors, line, log, partial(succession.post, shown)))

    workers = [
        Role(str(number), partial(work, number), partial(roster.begin, number), partial(roster.end, number))
        for number in range(1, server.workers + 1)
    ]
    supervisor = Supervisor(
        workers,
        [Role("metrics", show_metrics)] if posts_metrics else [],
        log=log,
        stop_s=server.shutdown_s + _END_S,
        stopping=partial(close_doors, doors),
        line=heir.line if heir is not None else None,
    )
    if heir is None:
        succession = Succession(config, doors, metrics_doors, None, log=log, retire=supervisor.retire)
        supervisor.succession = succession
    metrics_port = metrics_doors[0].getsockname()[1] if posts_metrics else None
    port = doors[0].getsockname()[1]
    log.info("supervising", workers=server.workers, host=server.host, port=port, metrics_port=metrics_port)
    gc.collect()
    gc.freeze()  # pages that no collector touches stay shared: 14 MB of its own for a worker, 21 without
    try:
        return supervisor.run()
    finally:
        log.info("stopped")


def _metrics_doors(config: Config) -> list[socket.socket]:
    address = config.server.metrics_address
    return doors_at(*address) if address is not None else []


async def _work(config: Config, name: str, doors: Doors, post: Callable[[Collector], None] | None, line: Line) -> int:
    """Be a gateway until a signal, an order, or the end of the supervisor."""
    told, succeeded = asyncio.Event(), asyncio.Event()
    starting = asyncio.create_task(start_gateway(config, inheritance=Inheritance(doors), worker=name))

    def obey() -> None:
        orders = line.orders()
        if not orders:
            loop.remove_reader(line)
        if orders == RETIRE:
            succeeded.set()
            return
        told.set()
        if not starting.done():
            starting.cancel()
        elif HURRY in orders:
            starting.result().hurry()

    loop = asyncio.get_running_loop()
    loop.add_reader(line, obey)
    try:
        gateway = await starting
    except asyncio.CancelledError:
        return 0
    line.ready()
    if post is not None:
        registry = gateway.registry()

        async def post_metrics() -> None:
            post(registry)

        gateway.jobs.every(_POST_S, "post_metrics", post_metrics)
    await run_until_told(gateway, told, succeeded)
    if post is not None:
        post(registry)
    return 0


async def _show_metrics(
    shown: Collector, doors: Doors, line: Line, log: Logger, post: Callable[[], None], *, takes_over: bool = False
) -> int:
    """Serve what all workers count until the line tells to end; signals are for those who have calls to end.

    One that takes over waits until the one before has closed the door, and one that retires posts for the next.
    """
    loop = asyncio.get_running_loop()
    for number in TOLD_BY:
        signal.signal(number, signal.SIG_IGN)
    orders: asyncio.Queue[bytes] = asyncio.Queue()
    loop.add_reader(line, lambda: orders.put_nowait(line.orders()))
    server = metrics_server(shown, log.error)
    if not takes_over:
        await server.listen_at(doors)
    line.ready()
    retires = False
    while True:
        ordered = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POST_S if retires or takes_over else None):
                ordered = await orders.get()
                if not ordered or STOP in ordered:
                    break
        if GO in ordered:
            await server.listen_at(doors)
        if RETIRE in ordered:
            retires = True
            close_doors(doors)
            await server.close(0)
        if retires or takes_over:
            post()
        if RETIRE in ordered:
            line.let_go()
    loop.remove_reader(line)
    if retires or takes_over:
        post()
    await server.close(1)
    await server.shut()
    return 0
