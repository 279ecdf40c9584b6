"""The ledger: hold, extend, settle, post. The only way to move money, and the batching under it.

Group commit without a timer: while one batch is being made durable the next one gathers, so a lone caller waits for
one sync and a crowd shares it. A command handed in is always answered: with its answer, or with StoreUnavailable.
"""

import asyncio
from typing import Final, TypeVar, cast

from farebox.billing.ledger import (
    Admission,
    Admit,
    Answer,
    Command,
    Posted,
    Resize,
    Resized,
    Settle,
    Settled,
    Transfer,
    customer_account,
)
from farebox.store.protocol import Store

T = TypeVar("T", bound=Answer)

_BATCH: Final = 400


class Ledger:
    """One per process, over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[Command, asyncio.Future[Answer]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self.batches = 0
        self.commands = 0

    async def admit(self, command: Admit) -> Admission:
        """Hold money for a call, or say why not. Idempotent on request_id. Raises StoreUnavailable."""
        return cast("Admission", await self._hand_in(command))

    async def resize(self, command: Resize) -> Resized:
        """Grow or shrink a hold. Idempotent. Raises StoreUnavailable."""
        return cast("Resized", await self._hand_in(command))

    async def settle(self, command: Settle) -> Settled:
        """End a hold and book the call. Once on request_id, whatever is delivered again. Raises StoreUnavailable."""
        return cast("Settled", await self._hand_in(command))

    async def post(self, transfer: Transfer) -> Posted:
        """Move money between accounts. Once on the transfer's id. Raises StoreUnavailable."""
        return cast("Posted", await self._hand_in(transfer))

    async def drained(self) -> None:
        """Wait until everything handed in has been answered."""
        while self._flusher is not None:
            await asyncio.wait([self._flusher])

    def _hand_in(self, command: Command) -> "asyncio.Future[Answer]":
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((command, answer))
        if self._flusher is None:
            self._flusher = loop.create_task(self._flush())
        return answer

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                self.batches += 1
                self.commands += len(batch)
                await self._apply(batch)
        finally:
            self._flusher = None

    async def _apply(self, batch: list[tuple[Command, "asyncio.Future[Answer]"]]) -> None:
        try:
            answers: list[Answer | Exception] = await self._store.apply([command for command, _ in batch])
        except Exception as error:  # noqa: BLE001  every waiting caller gets it
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


def credit(transfer_id: str, account_id: int, amount_nanos: int, *, code: str, actor: str, memo: str) -> Transfer:
    """Make the transfer that gives a customer money: "deposit" from cash, "promotion" or "credit" from the house."""
    house = {"deposit": "house:cash", "promotion": "house:promotion"}.get(code, "house:adjustments")
    return Transfer(
        id=transfer_id,
        debit_account=house,
        credit_account=customer_account(account_id),
        amount_nanos=amount_nanos,
        code=code,
        actor=actor,
        memo=memo,
    )


def debit(transfer_id: str, account_id: int, amount_nanos: int, *, actor: str, memo: str) -> Transfer:
    """Make the transfer that takes money from a customer by hand. At most the free balance can go."""
    return Transfer(
        id=transfer_id,
        debit_account=customer_account(account_id),
        credit_account="house:adjustments",
        amount_nanos=amount_nanos,
        code="debit",
        actor=actor,
        memo=memo,
    )


async def resolve_orphans(store: Store, ledger: Ledger) -> int:
    """End every hold that an earlier process left: free for the customer, since nobody can tell what came of the call.

    For a store with one serving process, before its doors open (promises 4 and 5). Answers how many there were.
    """
    rows = await store.fetch("SELECT request_id, account_id, model FROM hold")
    settles = [
        ledger.settle(
            Settle(
                request_id=request_id,
                account_id=account_id,
                kind="recovered",
                model=model,
                outcome="gateway_died",
                status=0,
            )
        )
        for request_id, account_id, model in rows
    ]
    await asyncio.gather(*settles)
    return len(settles)
