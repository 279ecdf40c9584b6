"""Who waits for a hold waits for so long and no longer, and whoever went away owns nothing."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from farebox.billing.ledger import Admission, Admit, Answer, Command, Settle
from farebox.errors import StoreUnavailable
from farebox.ids import new_request_id
from farebox.store.protocol import Store
from tests.books.nodes import CENT, Node, open_node, until


class Gated:
    """A store whose admissions wait at a gate, before they are written or after."""

    def __init__(self, store: Store, *, after: bool) -> None:
        self._store = store
        self._after = after
        self.gate = asyncio.Event()
        self.reached = asyncio.Event()

    async def apply(self, batch: Sequence[Command], lane: int = 0) -> list[Answer | Exception]:
        if not any(isinstance(command, Admit) for command in batch):
            return await self._store.apply(batch, lane)
        answers = await self._store.apply(batch, lane) if self._after else []
        self.reached.set()
        await self.gate.wait()
        return answers or await self._store.apply(batch, lane)


@pytest.fixture
async def node(database_url: str) -> AsyncIterator[Node]:
    async with open_node(database_url) as opened:
        yield opened


def gated(node: Node, *, after: bool) -> Gated:
    store = Gated(node.store, after=after)
    node.ledger._store = store  # type: ignore[assignment]
    return store


def admission(node: Node) -> Admit:
    return Admit(new_request_id(node.clock()), node.account, node.key, "opus", CENT, CENT, 1, 1)


async def ended_free(node: Node) -> None:
    """Wait until the hold that nobody wanted any more is gone, and see what became of it."""
    await until(lambda: node.rows("SELECT 1 FROM usage"))
    assert await node.rows("SELECT kind, outcome, charged_nanos FROM usage") == [("waived", "gateway_broke", 0)]
    assert await node.balance() == (100 * CENT, 0, 0)
    assert node.ledger.live == set()


@pytest.mark.parametrize("after", [True, False])
async def test_a_hold_that_comes_too_late_is_refused_and_ended(node: Node, *, after: bool) -> None:
    store = gated(node, after=after)
    with pytest.raises(StoreUnavailable, match="too long"):
        await node.ledger.hold(admission(node), 0.05)
    store.gate.set()
    await ended_free(node)


@pytest.mark.parametrize("after", [True, False])
async def test_a_hold_whose_caller_was_cancelled_is_ended(node: Node, *, after: bool) -> None:
    store = gated(node, after=after)
    waiting = asyncio.create_task(node.ledger.hold(admission(node), 5))
    await store.reached.wait()
    waiting.cancel()
    store.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await ended_free(node)


async def test_a_hold_whose_caller_is_cancelled_in_the_very_moment_is_ended(node: Node) -> None:
    """The answer is there, and nobody has taken it yet."""
    waiting, answer, admitted = await about_to_be_answered(node, patience_s=5)
    await asyncio.sleep(0)
    answer.set_result(admitted)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await ended_free(node)


async def test_a_hold_that_is_there_in_the_very_moment_is_had(node: Node) -> None:
    """Its time is up, and its answer has come: better than to refuse, and give back."""
    waiting, answer, admitted = await about_to_be_answered(node, patience_s=0)
    asyncio.get_running_loop().call_soon(answer.set_result, admitted)  # after it began to wait, before it gives up
    assert await waiting == admitted
    assert len(node.ledger.live) == 1


async def about_to_be_answered(
    node: Node, *, patience_s: float
) -> "tuple[asyncio.Task[Admission], asyncio.Future[Admission], Admission]":
    """Begin to wait for a hold that is there already, but for its answer."""
    admitted = await node.ledger.admit(admission(node))
    answer: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
    node.ledger.admit = lambda command: answer  # type: ignore[method-assign]  # noqa: ARG005
    (request_id,) = node.ledger.live
    command = Admit(request_id, node.account, node.key, "opus", CENT, CENT, 1, 1)
    return asyncio.create_task(node.ledger.hold(command, patience_s)), answer, admitted


async def test_commands_that_are_no_calls_wait_for_the_books_to_come_back(node: Node) -> None:
    """New calls are turned away together; what was handed in for old ones stays in line."""
    request_id = await node.hold(CENT)
    real = node.ledger._store

    class Away:
        async def apply(self, *_: object) -> list[Answer | Exception]:
            await asyncio.sleep(0.02)
            node.ledger._store = real
            raise StoreUnavailable("away")

    node.ledger._store = Away()  # type: ignore[assignment]
    first = node.ledger.admit(admission(node))
    await asyncio.sleep(0)
    settle = node.ledger.settle(
        Settle(
            request_id=request_id, account_id=node.account, kind="exact", model="opus", outcome="finished", status=200
        )
    )
    second = node.ledger.admit(admission(node))
    answers = await asyncio.gather(first, settle, second, return_exceptions=True)
    assert [isinstance(answer, StoreUnavailable) for answer in answers] == [True, False, True]
    assert await node.rows("SELECT kind FROM usage") == [("exact",)]
