"""The life of a gateway's process after its start: what it is told, by signals, by a line or by its successors."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable
from typing import Any, Final

from farebox.app import Gateway

_COLLECT_AFTER: Final = 20_000
"""New objects that outlive the old ones by so many start a round of the garbage collector; 700 by default."""


async def run_until_told(
    gateway: Gateway,
    told: asyncio.Event | None = None,
    succeeded: asyncio.Event | None = None,
    hurry: Callable[[], None] | None = None,
) -> None:
    """Wait for SIGTERM or SIGINT, or for `told`, then stop the gateway. Once it is `succeeded`, let it retire before.

    A second signal ends the calls that are still in flight. One that comes with `told` is no second one: who stops all
    processes of a service signals each, and their supervisor as well.
    """
    told = told or asyncio.Event()
    succeeded = succeeded or asyncio.Event()
    signals = 0

    def tell() -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            (hurry or gateway.hurry)()
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, tell)
    _calm_collector()
    ending = asyncio.create_task(told.wait())
    await _first(ending, asyncio.create_task(succeeded.wait()))
    if not told.is_set():
        await _first(ending, asyncio.create_task(gateway.retire()))
    ending.cancel()
    await gateway.stop()


async def _first(ending: asyncio.Task[Any], other: asyncio.Task[Any]) -> None:
    """Wait until one of two has ended; the second is then ended, in order."""
    await asyncio.wait([ending, other], return_when=asyncio.FIRST_COMPLETED)
    other.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await other


def _calm_collector() -> None:
    """Keep the garbage collector off what lives as long as the process, and let calls come and go between its rounds.

    A call leaves no cycles behind; looking for them took 5 % of the time of a busy gateway.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
