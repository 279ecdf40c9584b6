"""The ledger: hold, extend, settle, post. The only way to move money, and the batching under it.

Group commit: while one batch is being made durable the next one gathers, so a lone caller waits for one sync and a
crowd shares it. In a crowd a batch also waits a millisecond for those on their way: half as many syncs. A command
handed in is always answered: with its answer, or with StoreUnavailable.
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
    Verdict,
    customer_account,
)
from farebox.store.protocol import Store

T = TypeVar("T", bound=Answer)

_BATCH: Final = 400
_CROWD: Final = 8
"""After a batch of so many, a smaller one waits a moment for company, as PostgreSQL's commit_delay does."""
_COMPANY_S: Final = 0.001


class Ledger:
    """One per process, over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[Command, asyncio.Future[Answer]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._last_batch = 0
        self.batches = 0
        self.commands = 0

    def admit(self, command: Admit) -> asyncio.Future[Admission]:
        """Hold money for a call, or say why not. Idempotent on request_id. Raises StoreUnavailable.

        When the caller is cancelled while it waits, a hold it can no longer learn of is ended at once.
        """
        return cast("asyncio.Future[Admission]", self._hand_in(command))

    def resize(self, command: Resize) -> asyncio.Future[Resized]:
        """Grow or shrink a hold. Idempotent. Raises StoreUnavailable."""
        return cast("asyncio.Future[Resized]", self._hand_in(command))

    def settle(self, command: Settle) -> asyncio.Future[Settled]:
        """End a hold and book the call. Once on request_id, whatever is delivered again. Raises StoreUnavailable."""
        return cast("asyncio.Future[Settled]", self._hand_in(command))

    def post(self, transfer: Transfer) -> asyncio.Future[Posted]:
        """Move money between accounts. Once on the transfer's id. Raises StoreUnavailable."""
        return cast("asyncio.Future[Posted]", self._hand_in(transfer))

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
                if len(self._waiting) < self._last_batch and self._last_batch >= _CROWD:
                    await asyncio.sleep(_COMPANY_S)
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                self.batches += 1
                self.commands += len(batch)
                self._last_batch = len(batch)
                await self._apply(batch)
        finally:
            self._flusher = None

    async def _apply(self, batch: list[tuple[Command, "asyncio.Future[Answer]"]]) -> None:
        try:
            answers: list[Answer | Exception] = await self._store.apply([command for command, _ in batch])
        except Exception as error:  # noqa: BLE001  every waiting caller gets it
            answers = [error] * len(batch)
        for (command, future), answer in zip(batch, answers, strict=True):
            if future.done():
                self._nobody_waits(command, answer)
            elif isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _nobody_waits(self, command: Command, answer: Answer | Exception) -> None:
        if isinstance(command, Admit) and isinstance(answer, Admission) and answer.verdict is Verdict.ADMITTED:
            self._hand_in(
                Settle(
                    request_id=command.request_id,
                    account_id=command.account_id,
                    kind="waived",
                    model=command.model,
                    outcome="gateway_broke",
                    status=0,
                )
            )


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
