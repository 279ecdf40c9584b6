"""SQLite without its threads: what they do happens between two steps, or fails, or happens and is never answered."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from unittest import mock

import apsw

from farebox.books.spool import Spool
from farebox.errors import StoreUnavailable
from farebox.store import sqlite
from farebox.store.sqlite import SqliteStore
from tests.simulation.world import World, here

T = TypeVar("T")

_PATIENCE_S: Final = 1.5
_LOOK_AGAIN_S: Final = 0.02


class Disk:
    """The file that all nodes share, and what is wrong with it at the moment."""

    def __init__(self, world: World, path: Path) -> None:
        self._world = world
        self.path = path
        self.loses_answers = 0.0
        """How probable it is that something is done and said not to be."""
        self.slow_s = 0.000_5
        self.lost = 0
        """Commits that were made and said not to be."""
        self.busy = 0
        """Times that somebody found another one writing."""

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put this in the place of the threads, and let go of what a dead node had open."""
        make_store, make_spool = SqliteStore.__init__, Spool.__init__

        def store_made(store: SqliteStore, *args: Any, **named: Any) -> None:
            make_store(store, *args, **named)
            here().on_death.append(lambda: _let_go(store))

        def spool_made(spool: Spool, *args: Any, **named: Any) -> None:
            make_spool(spool, *args, **named)
            here().on_death.append(lambda: _drop(spool))

        def at_once(_: SqliteStore, task: Callable[[], T], busy_ms: int) -> T:  # noqa: ARG001  `_hand_in` waits
            return task()

        with (
            mock.patch.object(sqlite, "_hand_in", self._hand_in),
            mock.patch.object(SqliteStore, "__init__", store_made),
            mock.patch.object(SqliteStore, "_patiently", at_once),
            mock.patch.object(Spool, "__init__", spool_made),
        ):
            yield

    @contextlib.contextmanager
    def written_by_another(self) -> Iterator[None]:
        """Have another process in the middle of a transaction: nobody else can write."""
        other = apsw.Connection(str(self.path))
        try:
            other.execute("BEGIN IMMEDIATE")
            yield
        finally:
            other.close()

    def _hand_in(self, _: object, task: Callable[[], T]) -> "asyncio.Future[T]":
        world = self._world
        answer: asyncio.Future[T] = world.create_future()
        give_up_at = world.time() + _PATIENCE_S
        what = getattr(task, "__name__", "task")

        def do() -> None:
            try:
                result = task()
            except Exception as error:  # noqa: BLE001  whatever it is, it is the waiting one's
                if _is_busy(error) and world.time() < give_up_at:
                    self.busy += 1
                    world.call_later(_LOOK_AGAIN_S, do)
                else:
                    world.call_later(self._delay(), fail, error)
                return
            world.note(what)
            if self.loses_answers and world.random.random() < self.loses_answers:
                self.lost += what == "commit"
                words = "disk I/O error, after all"
                world.call_later(
                    self._delay(), fail, apsw.IOError(words) if what == "commit" else StoreUnavailable(words)
                )
            else:
                world.call_later(self._delay(), answer_with, result)

        def answer_with(result: T) -> None:
            if not answer.done():
                answer.set_result(result)

        def fail(error: Exception) -> None:
            if not answer.done():
                answer.set_exception(error)

        world.call_later(self._delay(), do)
        return answer

    def _delay(self) -> float:
        return self.slow_s * self._world.random.uniform(0.1, 1)


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, apsw.BusyError) or isinstance(error.__cause__, apsw.BusyError)


def _let_go(store: SqliteStore) -> None:
    """Do what the kernel does with the files of a process that is gone."""
    for work in (store._writing, store._reading):
        work.put(None)
    for connection in (store._reader, store._writer):
        connection.close(True)  # noqa: FBT003  what is open in it is rolled back
    store._unlock()


def _drop(spool: Spool) -> None:
    if spool._descriptor is not None:
        os.close(spool._descriptor)
        spool._descriptor = None
