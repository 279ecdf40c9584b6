"""The ledger: hold, extend, settle, post. The only way to move money, and the batching under it.

Group commit: while one batch is being made durable the next one gathers, so a lone caller waits for one sync and a
crowd shares it. In a crowd a batch also waits a millisecond for those on their way: half as many syncs. A command
handed in is always answered: with its answer, or with StoreUnavailable. A store with several lanes gets several
batches at once, an account always in the same lane.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, cast

from farebox.billing.ledger import (
    Admission,
    Admit,
    Answer,
    Command,
    Expire,
    Expired,
    Posted,
    Resize,
    Resized,
    Settle,
    Settled,
    Transfer,
    Verdict,
    customer_account,
    customer_id,
)
from farebox.errors import StoreUnavailable
from farebox.store.protocol import Store

_BATCH: Final = 400
_CROWD: Final = 8
"""After a batch of so many, one of fewer waits a moment for company, as PostgreSQL's commit_delay does."""
_COMPANY_S: Final = 0.001


class Ledger:
    """One per process, over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queues = [_Queue(self, number) for number in range(store.lanes)]
        self.live: set[bytes] = set()
        """Calls that were let in here and whose end, which somebody here sees to, is not in the books yet."""
        self.trouble: StoreUnavailable | None = None
        """Why a batch could not be written since somebody last saw to that (Bookkeeping.beat)."""
        self.batches = 0
        self.commands = 0

    def admit(self, command: Admit) -> asyncio.Future[Admission]:
        """Hold money for a call, or say why not. Idempotent on request_id. Raises StoreUnavailable.

        When the caller is cancelled while it waits, a hold it can no longer learn of is ended at once.
        """
        return cast("asyncio.Future[Admission]", self._hand_in(command, command.account_id))

    async def hold(self, command: Admit, patience_s: float) -> Admission:
        """Admit, and wait for the answer no longer than that. Raises StoreUnavailable.

        Whoever is told nothing, or was cancelled, owns nothing: a hold that has come to be all the same is ended.
        """
        answer = self.admit(command)
        try:
            async with asyncio.timeout(patience_s):
                return await answer
        except TimeoutError as error:
            if answer.cancelled():
                raise StoreUnavailable("the database took too long") from error
            return answer.result()  # it came in the very moment
        except asyncio.CancelledError:
            if not answer.cancelled() and answer.exception() is None:
                self.disown(command, answer.result())
            raise

    def resize(self, command: Resize) -> asyncio.Future[Resized]:
        """Grow or shrink a hold. Idempotent. Raises StoreUnavailable."""
        return cast("asyncio.Future[Resized]", self._hand_in(command, command.account_id))

    def settle(self, command: Settle) -> asyncio.Future[Settled]:
        """End a hold and book the call. Once on request_id, whatever is delivered again. Raises StoreUnavailable."""
        return cast("asyncio.Future[Settled]", self._hand_in(command, command.account_id))

    def expire(self, command: Expire) -> asyncio.Future[Expired]:
        """Give back what a hold of a dead process holds. Idempotent. Raises StoreUnavailable."""
        return cast("asyncio.Future[Expired]", self._hand_in(command, command.account_id))

    def post(self, transfer: Transfer) -> asyncio.Future[Posted]:
        """Move money between accounts. Once on the transfer's id. Raises StoreUnavailable."""
        account_id = customer_id(transfer.debit_account) or customer_id(transfer.credit_account) or 0
        return cast("asyncio.Future[Posted]", self._hand_in(transfer, account_id))

    async def give_back(self, settle: Settle, settled: Settled) -> int:
        """Give back what was charged for a call that is to be free after all; answers how much that is.

        Of an answer whose end was not delivered, since nobody could tell that it was paid. Once on the call's id,
        however often. Raises StoreUnavailable.
        """
        owed = settled.charged_nanos if settle.waive and not settled.now else 0
        if owed:
            memo = "charged, but not delivered: the books could not be written"
            refund = f"refund:{settle.request_id.hex()}"
            await self.post(credit(refund, settle.account_id, owed, code="refund", actor="gateway", memo=memo))
        return owed

    async def apply(self, batch: Sequence[Command], lane: int) -> list[Answer | Exception]:
        """Hand a batch to the store, and keep count of the calls that are let in. Raises StoreUnavailable."""
        self.batches += 1
        self.commands += len(batch)
        answers = await self._store.apply(batch, lane)
        for command, answer in zip(batch, answers, strict=True):
            if type(command) is Admit:
                if isinstance(answer, Admission) and answer.verdict is Verdict.ADMITTED and not command.standing:
                    self.live.add(command.request_id)
            elif type(command) is Settle and not isinstance(answer, StoreUnavailable):
                self.live.discard(command.request_id)
        return answers

    async def drained(self) -> None:
        """Wait until everything handed in has been answered."""
        while flushers := [queue.flusher for queue in self._queues if queue.flusher is not None]:
            await asyncio.wait(flushers)

    def disown(self, command: Command, answer: Answer | Exception) -> None:
        """End the hold of a call whose caller waits no more. If that fails, it is left to be found as a stray one."""
        if isinstance(command, Admit) and isinstance(answer, Admission) and answer.verdict is Verdict.ADMITTED:
            end = Settle(
                request_id=command.request_id,
                account_id=command.account_id,
                kind="waived",
                model=command.model,
                outcome="gateway_broke",
                status=0,
            )
            self.settle(end).add_done_callback(lambda ended: self._leave_to_strays(end.request_id, ended))

    def _leave_to_strays(self, request_id: bytes, ended: "asyncio.Future[Settled]") -> None:
        if not ended.cancelled() and ended.exception() is not None:
            self.live.discard(request_id)

    def _hand_in(self, command: Command, account_id: int) -> "asyncio.Future[Answer]":
        return self._queues[account_id % len(self._queues)].hand_in(command)


class _Queue:
    """Commands about some of the accounts, gathered into batches of which one is under way at a time."""

    def __init__(self, ledger: Ledger, number: int) -> None:
        self._ledger = ledger
        self._number = number
        self._waiting: list[tuple[Command, asyncio.Future[Answer]]] = []
        self._last_batch = 0
        self.flusher: asyncio.Task[None] | None = None

    def hand_in(self, command: Command) -> "asyncio.Future[Answer]":
        """Take a command into the next batch."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((command, answer))
        if self.flusher is None:
            self.flusher = loop.create_task(self._flush())
        return answer

    async def _flush(self) -> None:
        try:
            while self._waiting:
                if len(self._waiting) < _CROWD <= self._last_batch:
                    await asyncio.sleep(_COMPANY_S)
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                self._last_batch = len(batch)
                await self._apply(batch)
        finally:
            self.flusher = None

    async def _apply(self, batch: list[tuple[Command, "asyncio.Future[Answer]"]]) -> None:
        try:
            answers = await self._ledger.apply([command for command, _ in batch], self._number)
        except Exception as error:  # noqa: BLE001  every waiting caller gets it
            answers = [error] * len(batch)
            if isinstance(error, StoreUnavailable):
                self._ledger.trouble = error
                self._turn_away(error)
        for (command, future), answer in zip(batch, answers, strict=True):
            if future.done():
                self._ledger.disown(command, answer)
            elif isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _turn_away(self, error: StoreUnavailable) -> None:
        """Let no new call wait for books that cannot be written: it would wait twice as long for the same answer."""
        waiting, self._waiting = self._waiting, []
        for command, future in waiting:
            if not isinstance(command, Admit):
                self._waiting.append((command, future))
            elif not future.done():
                future.set_exception(StoreUnavailable(str(error)))


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
