"""How commands share syncs: a crowd's batches wait for company, a lone command's never do."""

import asyncio
from collections.abc import Sequence
from typing import cast

from farebox.billing.ledger import Answer, Command, Posted
from farebox.books.ledger import Ledger, credit
from farebox.store.protocol import Store


class Notebook:
    """A store that only notes how many commands came at once."""

    def __init__(self) -> None:
        self.lanes = 1
        self.sizes: list[int] = []

    async def apply(self, batch: Sequence[Command], _lane: int) -> list[Answer | Exception]:
        self.sizes.append(len(batch))
        return [Posted(now=True) for _ in batch]


async def test_after_a_crowd_commands_that_come_one_by_one_share_a_batch() -> None:
    notebook = Notebook()
    ledger = Ledger(cast("Store", notebook))
    await asyncio.gather(*_commands(ledger, 8))
    await _one_by_one(ledger, 8)
    assert notebook.sizes == [8, 8]


async def test_without_a_crowd_nobody_waits_for_company() -> None:
    notebook = Notebook()
    ledger = Ledger(cast("Store", notebook))
    await asyncio.gather(*_commands(ledger, 7))
    await _one_by_one(ledger, 3)
    assert notebook.sizes == [7, 1, 1, 1]


async def test_after_a_crowd_one_that_comes_alone_waits_once_and_is_answered() -> None:
    notebook = Notebook()
    ledger = Ledger(cast("Store", notebook))
    await asyncio.gather(*_commands(ledger, 8))
    await asyncio.wait_for(asyncio.gather(*_commands(ledger, 1)), 5)
    await _one_by_one(ledger, 2)
    assert notebook.sizes == [8, 1, 1, 1]


def _commands(ledger: Ledger, count: int) -> list["asyncio.Future[Posted]"]:
    return [ledger.post(credit(f"t{n}", 1, 1, code="credit", actor="alice", memo="")) for n in range(count)]


async def _one_by_one(ledger: Ledger, count: int) -> None:
    """Hand in commands in turns of the loop that follow each other at once."""
    answers = []
    for _ in range(count):
        answers += _commands(ledger, 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*answers)
