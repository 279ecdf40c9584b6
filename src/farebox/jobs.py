"""Background work: loops that survive their own failures, started and ended by the composition root."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

Job = Callable[[], Awaitable[None]]
Log = Callable[..., Any]


class Jobs:
    """Runs each job again and again, with a pause between runs. A failing run is logged, counted and tried again."""

    def __init__(self, log_error: Log) -> None:
        self._log_error = log_error
        self._tasks: list[asyncio.Task[None]] = []
        self.failures = 0

    def every(self, pause_s: float, name: str, job: Job) -> None:
        """Begin a job."""
        self._tasks.append(asyncio.create_task(self._loop(pause_s, name, job), name=name))

    async def stop(self) -> None:
        """End all jobs, in the middle of whatever they wait for."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()

    async def _loop(self, pause_s: float, name: str, job: Job) -> None:
        while True:
            await asyncio.sleep(pause_s)
            try:
                await job()
            except Exception as error:  # noqa: BLE001  the outermost loop of a job
                self.failures += 1
                self._log_error("job_failed", job=name, error=f"{type(error).__name__}: {error}")
