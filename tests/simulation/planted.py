"""Bugs of the kind that has cost others money, planted one at a time: lives that do not find them prove nothing."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final
from unittest import mock

from farebox.billing.ledger import Settle, Settled
from farebox.books import keeping
from farebox.books.spool import Spool
from farebox.gateway.call import Call, Outcome
from farebox.gateway.settling import Settler

_end = Settler.end


async def _forget_who_hung_up(settler: Settler, call: Call, outcome: Outcome) -> Settled | None:
    if outcome is Outcome.CLIENT_GONE:
        return None
    return await _end(settler, call, outcome)


async def _deliver_first(settler: Settler, call: Call, outcome: Outcome) -> Settled | None:
    async def later() -> None:
        await asyncio.sleep(0.02)
        await _end(settler, call, outcome)

    settler.later = asyncio.create_task(later())  # type: ignore[attr-defined]
    return Settled(0, 0, now=True)


async def _say_that_it_is_done(_: Settler, settle: Settle) -> Settled:  # noqa: ARG001
    return Settled(0, 0, now=True)


Plant = Callable[[], AbstractContextManager[Any]]
PLANTED: Final[dict[str, Plant]] = {
    "a hold is forgotten when its client hangs up": lambda: mock.patch.object(Settler, "end", _forget_who_hung_up),
    "an answer ends before its charge is durable": lambda: mock.patch.object(Settler, "end", _deliver_first),
    "a charge that was not answered is not delivered again": lambda: mock.patch.object(
        Settler, "_insist", _say_that_it_is_done
    ),
    "holds of a dead process stay": lambda: mock.patch.object(
        keeping, "resolve_orphans", mock.AsyncMock(return_value=0)
    ),
    "a spooled charge is forgotten": lambda: mock.patch.object(Spool, "_hand_in", mock.AsyncMock()),
}
"""By what is wrong with them."""
