"""Gateways as workers: each with a loop, connections and counts of its own, all at the same doors."""

import asyncio
import gc
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import uvloop
from msgspec.structs import replace
from prometheus_client.registry import Collector

from farebox.app import Inheritance, start_gateway
from farebox.config import Config
from farebox.gateway.metrics import metrics_server
from farebox.http.doors import close_doors, doors_at
from farebox.logs import Logger, make_logger
from farebox.workers.board import Board
from farebox.workers.life import run_until_told
from farebox.workers.process import HURRY, TOLD_BY, Line
from farebox.workers.succession import Heir
from farebox.workers.supervisor import Role, Supervisor
from farebox.workers.totals import Roster, Totals

_POST_S: Final = 1.0
"""How old the figures of a living worker are at most."""
_END_S: Final = 25.0
"""What a worker may need beyond `shutdown_s`, to end the streams that are left, settle, and close the books."""

Doors = Sequence[socket.socket]


def serve_with_workers(config: Config, heir: Heir | None = None) -> int:
    """Serve with `server.workers` processes until SIGTERM or SIGINT. Answers the exit code. Raises FareboxError."""
    server = config.server
    log = make_logger(config.log.level, config.log.format)
    doors = doors_at(server.host, server.port)
    metrics_doors = doors_at(*server.metrics_address) if server.metrics_address else []
    board = Board(1 + server.workers)
    roster = Roster(board, server.workers)
    posts_metrics = bool(metrics_doors)
    config = replace(config, server=replace(server, metrics="off"))

    def work(number: int, line: Line) -> int:
        close_doors(metrics_doors)
        post = partial(roster.report, number) if posts_metrics else None
        return uvloop.run(_work(config, str(number), doors, post, line))

    def show_metrics(line: Line) -> int:
        close_doors(doors)
        return uvloop.run(_show_metrics(Totals(board), metrics_doors, line, log))

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
    )
    metrics_port = metrics_doors[0].getsockname()[1] if posts_metrics else None
    port = doors[0].getsockname()[1]
    log.info("supervising", workers=server.workers, host=server.host, port=port, metrics_port=metrics_port)
    gc.collect()
    gc.freeze()  # pages that no collector touches stay shared: 14 MB of its own for a worker, 21 without
    try:
        return supervisor.run()
    finally:
        log.info("stopped")


async def _work(config: Config, name: str, doors: Doors, post: Callable[[Collector], None] | None, line: Line) -> int:
    """Be a gateway until a signal, an order, or the end of the supervisor."""
    told = asyncio.Event()
    starting = asyncio.create_task(start_gateway(config, inheritance=Inheritance(doors), worker=name))

    def obey() -> None:
        orders = line.orders()
        if not orders:
            loop.remove_reader(line)
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
    await run_until_told(gateway, told)
    if post is not None:
        post(registry)
    return 0


async def _show_metrics(totals: Totals, doors: Doors, line: Line, log: Logger) -> int:
    """Serve what all workers count until the line tells to end; signals are for those who have calls to end."""
    loop = asyncio.get_running_loop()
    for number in TOLD_BY:
        signal.signal(number, signal.SIG_IGN)
    told = asyncio.Event()
    loop.add_reader(line, told.set)
    server = metrics_server(totals, log.error)
    await server.listen_at(doors)
    line.ready()
    await told.wait()
    loop.remove_reader(line)
    await server.close(1)
    await server.shut()
    return 0
