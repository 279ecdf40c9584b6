"""A process that spools settles, and delivers them now and then, and tells what it was answered.

python -m tests.disk.spooler SPOOL TOLD SEED SETTLES

It does so three times, as three processes would one after the other: the later ones find what the earlier ones left.
"""

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any, Final, cast

from farebox.billing.ledger import Settle, Settled
from farebox.books.ledger import Ledger
from farebox.books.spool import Spool
from farebox.errors import StoreUnavailable

_AT_ONCE: Final = 6
_LIVES: Final = 3


class Books:
    """Books that take what they are given, or are away; they last, and tell of what they have taken."""

    def __init__(self, told: int, choices: random.Random) -> None:
        self.away = True
        self._told = told
        self._random = choices

    async def settle(self, settle: Settle) -> Settled:
        await asyncio.sleep(0)
        if self.away or self._random.random() < 0.02:
            raise StoreUnavailable("away")
        tell(self._told, {"booked": settle.request_id.hex()})
        return Settled(settle.cost_nanos, 0, now=True)

    async def give_back(self, *_: object) -> int:
        return 0


def tell(descriptor: int, line: dict[str, Any]) -> None:
    data = json.dumps(line).encode() + b"\n"
    assert os.write(descriptor, data) == len(data)


async def spool(directory: Path, told: int, choices: random.Random, settles: int) -> None:
    """Put so many settles, many at once, and deliver them once in a while."""
    books = Books(told, choices)
    spooling = Spool(directory, alert=lambda *_, **__: None)
    count = 0

    async def put_some() -> None:
        nonlocal count
        while count < settles:
            count += 1
            one = Settle(
                request_id=choices.randbytes(16), account_id=1, kind="exact", model="any", outcome="finished",
                status=200, cost_nanos=count, tries="x" * choices.choice((0, 300, 3_000)),
            )  # fmt: skip
            tell(told, {"sent": one.request_id.hex()})
            if await spooling.put(one):
                tell(told, {"kept": one.request_id.hex()})
            if choices.random() < 0.03:
                await deliver()

    async def deliver() -> None:
        books.away = choices.random() < 0.3
        try:
            await spooling.deliver(cast("Ledger", books), lambda *_: None)
        except StoreUnavailable:
            return
        except OSError as error:
            tell(told, {"trouble": str(error)})

    await asyncio.gather(*(put_some() for _ in range(_AT_ONCE)))
    if choices.random() < 0.3:
        await deliver()
    spooling.close()


async def _live(directory: Path, told: int, seed: int, settles: int) -> None:
    choices = random.Random(seed)
    for _ in range(_LIVES):
        await spool(directory, told, choices, settles // _LIVES)


if __name__ == "__main__":
    _, place, told_in, seeded, number = sys.argv
    to = os.open(told_in, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    asyncio.run(_live(Path(place), to, int(seeded), int(number)))
