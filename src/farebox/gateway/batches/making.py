"""Making a batch: read, bounded, held in whole or not at all, and only then begun.

Its rows come before its holds, so that whoever finds it half made can undo it (promises 4 and 5).
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from farebox.accounts.keyring import Caller
from farebox.accounts.sealing import Seals
from farebox.billing.ledger import Admission, Admit, Verdict
from farebox.billing.pricing import Catalogue
from farebox.books.ledger import Ledger
from farebox.clock import DAY_US
from farebox.errors import (
    AuthenticationFailed,
    FareboxError,
    InsufficientBalance,
    InvalidRequest,
    PermissionDenied,
    RateLimited,
    Refusal,
    StoreUnavailable,
    Unavailable,
    UpstreamFailed,
)
from farebox.gateway.batches import vault
from farebox.gateway.batches.charges import Charges
from farebox.gateway.batches.counted import Counting
from farebox.gateway.batches.entries import Entry, most_nanos, output_nanos
from farebox.gateway.batches.native import Native, read_id
from farebox.gateway.batches.own import OwnRuns, kept_headers, sealed_body
from farebox.gateway.batches.records import Batch, Item, Records, parts
from farebox.gateway.batches.settings import BatchSettings
from farebox.gateway.whole import operators_own
from farebox.http.exchange import Headers
from farebox.http.failures import UpstreamError
from farebox.ids import new_request_id
from farebox.money import format_usd
from farebox.store.protocol import Store
from farebox.upstreams.upstream import Upstream

_PORTION: Final = 200
_ADMIT_S: Final = 10.0
_BREATH: Final = 1_000
"""After so many items everybody else gets a turn."""
_ANSWER_BYTES: Final = 2**20
_NO_SUCH_THING: Final = frozenset({404, 405, 501})
"""What a server answers that has no batches, though it was taken to have them."""


def too_many(settings: BatchSettings) -> RateLimited:
    """Refuse a batch beside those that an account has under way."""
    words = f"an account may have {settings.open_batches} batches under way; try again when one has ended"
    return RateLimited(words, retry_after_s=60)


class RefusedUpstream(FareboxError):
    """The upstream does not take a batch; what it says is the client's to see, as it came."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__("refused upstream")
        self.status = status
        self.body = body


class Draft(msgspec.Struct):
    """A batch that is being made."""

    batch: Batch
    entries: Sequence[Entry]
    items: list[Item]
    catalogue: Catalogue
    caller: Caller
    upstream: Upstream | None
    key: bytes
    nanos: list[int] = []
    """The most that each of its items can cost."""

    async def price(self) -> None:
        """Work out what items can cost at most."""
        self.nanos = []
        for place, entry in enumerate(self.entries):
            self.nanos.append(most_nanos(entry, self.percent))
            if place % _BREATH == 0:
                await asyncio.sleep(0)

    async def least_nanos(self) -> int:
        """Bound what its outputs alone can cost."""
        least = 0
        for place, entry in enumerate(self.entries):
            least += output_nanos(entry, self.percent)
            if place % _BREATH == 0:
                await asyncio.sleep(0)
        return least

    @property
    def percent(self) -> int | None:
        return self.batch.percent if self.batch.own else None

    @property
    def most_nanos(self) -> int:
        """The most that all of it can cost."""
        return sum(self.nanos)


class Making:
    """Makes batches."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        records: Records,
        charges: Charges,
        native: Native,
        own: OwnRuns,
        counting: Counting,
        seals: Seals,
        settings: BatchSettings,
        clock: Callable[[], int],
        top_up_words: str,
        alert: Callable[..., Any],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._records = records
        self._charges = charges
        self._native = native
        self._own = own
        self._counting = counting
        self._seals = seals
        self._settings = settings
        self._clock = clock
        self._top_up_words = top_up_words
        self._alert = alert
        self._left: dict[str, Batch] = {}
        """Batches that could not be undone, since the books were away."""

    async def undo_left(self) -> None:
        """Undo what could not be at its time. May raise StoreUnavailable: then it is left again."""
        for batch in list(self._left.values()):
            await self._charges.end_all(batch, "canceled", "gateway_broke")
            await self._records.delete(batch)
            del self._left[batch.id]

    async def make(
        self,
        body: bytes,
        headers: Headers,
        entries: Sequence[Entry],
        caller: Caller,
        catalogue: Catalogue,
        api_key: bytes,
    ) -> Batch:
        """Make a batch and let it begin. Raises Refusal; then nothing of it stays."""
        upstream = self._way(entries)
        draft = await self._draft(headers, entries, caller, catalogue, api_key, upstream)
        await self._check_balance(draft, headers)
        upstream_id = None
        try:
            await self._records.add(draft.batch, draft.items, self._bodies(draft), draft.most_nanos)
            if await self._records.stands_behind(draft.batch, self._settings.open_batches):
                raise too_many(self._settings)  # others were made while this one was read
            await self._hold(draft)
            upstream_id = await self._begin_upstream(draft, headers, body)
            if not await self._records.begin(draft.batch, upstream_id):
                raise Unavailable("the gateway was held up for too long; nothing was charged: send it again")
        except BaseException as error:
            await asyncio.shield(self._undo(draft, error, upstream_id))
            if isinstance(error, StoreUnavailable):
                raise Unavailable(
                    "the books cannot be written at the moment; try again shortly", retry_after_s=2
                ) from error
            raise
        begun = await self._records.find(draft.batch.id, caller.account_id)
        assert begun is not None
        if begun.own:
            self._own.attach(begun, draft.key)
        return begun

    def _way(self, entries: Sequence[Entry]) -> Upstream | None:
        """Choose who runs it: an upstream, or none, which is Farebox itself.

        Raises InvalidRequest when nobody can, UpstreamFailed when nobody can at the moment.
        """
        run = self._settings.run
        try:
            upstream = self._native.choose(entries) if run in {"native", "any"} else None
        except UpstreamFailed:
            if run == "native":
                raise
            upstream = None
        if upstream is None and run == "native":
            raise InvalidRequest(
                "no upstream of this gateway runs batches of these models; send them as calls, or in batches by model"
            )
        return upstream

    async def _draft(
        self,
        headers: Headers,
        entries: Sequence[Entry],
        caller: Caller,
        catalogue: Catalogue,
        api_key: bytes,
        upstream: Upstream | None,
    ) -> Draft:
        now_us = self._clock()
        batch_id = "msgbatch_" + new_request_id(now_us).hex()
        own, key = upstream is None, vault.new_key()
        sealed = self._seals.seal(key, f"batch {batch_id}") if own and self._settings.unattended else None
        batch = Batch(
            id=batch_id,
            account_id=caller.account_id,
            key_id=caller.key_id,
            way="own" if own else "native",
            state="creating",
            price_version=catalogue.version,
            percent=self._settings.percent if own else 100,
            upstream=upstream.name if upstream is not None else None,
            upstream_id=None,
            headers=kept_headers(headers) if own else "[]",
            wrapped_key=vault.wrap(key, api_key, batch_id) if own else None,
            sealed_key=sealed,
            run_id=self._records.run_id,
            created_us=now_us,
            expires_us=now_us + DAY_US,
            cancel_us=None,
            ended_us=None,
            archived_us=None,
            items=len(entries),
        )
        items: list[Item] = []
        for place, entry in enumerate(entries):
            items.append(
                Item(
                    new_request_id(now_us), place, entry.custom_id, entry.model.id, entry.demand.caches_long, "waiting"
                )
            )
            if place % _BREATH == 0:
                await asyncio.sleep(0)
        draft = Draft(batch, entries, items, catalogue, caller, upstream, key)
        await draft.price()
        return draft

    def _bodies(self, draft: Draft) -> Iterator[bytes | None]:
        for item, entry in zip(draft.items, draft.entries, strict=True):
            yield sealed_body(item, bytes(entry.params), draft.key) if draft.batch.own else None

    async def _check_balance(self, draft: Draft, headers: Headers) -> None:
        """Refuse what the balance cannot cover before anything is written: holding tells for sure."""
        sql = "SELECT posted_nanos - held_nanos FROM account WHERE id = ?"
        free = int((await self._store.fetch(sql, (draft.caller.account_id,)))[0][0])
        if draft.most_nanos > free >= await draft.least_nanos():
            await self._counting.refine(draft.entries, headers, draft.caller.account_id)
            await draft.price()
        if draft.most_nanos > free:
            raise self._insufficient(draft, free)

    async def _hold(self, draft: Draft) -> None:
        """Hold the most that each item can cost: all of them, or none."""
        for portion in parts(range(len(draft.items)), _PORTION):
            admits = [self._ledger.hold(self._admit(draft, place), _ADMIT_S) for place in portion]
            answers = await asyncio.gather(*admits, return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
                if answer.verdict is not Verdict.ADMITTED:
                    raise await self._refusal(draft, answer)

    def _admit(self, draft: Draft, place: int) -> Admit:
        nanos = draft.nanos[place]
        return Admit(
            request_id=draft.items[place].id,
            account_id=draft.caller.account_id,
            key_id=draft.caller.key_id,
            model=draft.items[place].model,
            amount_nanos=nanos,
            least_nanos=nanos,
            tokens=0,
            price_version=draft.catalogue.version,
            standing=True,
        )

    async def _refusal(self, draft: Draft, admission: Admission) -> Refusal:
        match admission.verdict:
            case Verdict.INSUFFICIENT:
                sql = "SELECT coalesce(sum(amount_nanos), 0) FROM hold h JOIN batch_item i ON i.id = h.request_id "
                held = await self._store.fetch(f"{sql} WHERE i.batch_id = ?", (draft.batch.id,))
                return self._insufficient(draft, admission.free_nanos + int(held[0][0]))
            case Verdict.KEY_LIMITED:
                return InsufficientBalance(
                    f"the spend limit of this key does not leave {self._needed(draft)} for this batch of "
                    f"{len(draft.items)} items; raise it, or send fewer"
                )
            case Verdict.SUSPENDED:
                return PermissionDenied("this account is suspended")
            case _:
                return AuthenticationFailed("this API key has just been revoked or disabled; use another")

    def _insufficient(self, draft: Draft, free_nanos: int) -> InsufficientBalance:
        missing = draft.most_nanos - free_nanos
        return InsufficientBalance(
            f"your free balance is {format_usd(free_nanos)} and this batch of {len(draft.items)} items needs "
            f"{self._needed(draft)} held: {format_usd(max(1, missing))} short; {self._top_up_words}, or send fewer"
        )

    def _needed(self, draft: Draft) -> str:
        return format_usd(draft.most_nanos)

    async def _begin_upstream(self, draft: Draft, headers: Headers, body: bytes) -> str | None:
        if draft.upstream is None:
            return None
        try:
            answer = await self._native.create(draft.upstream, headers, body, draft.entries)
            said = await answer.read(_ANSWER_BYTES)
        except UpstreamError as error:
            raise UpstreamFailed("the upstream broke off; nothing was charged: send the batch again") from error
        if answer.status in _NO_SUCH_THING:
            draft.upstream.has_batches = False
            raise InvalidRequest("no upstream of this gateway runs batches of these models; send them as calls")
        if answer.status >= 400:
            if operators_own(said):
                raise UpstreamFailed("the upstream does not accept this gateway at the moment", retry_after_s=30)
            raise RefusedUpstream(answer.status, said)
        upstream_id = read_id(said)
        if upstream_id is None:
            raise UpstreamFailed("the upstream's answer is no batch; nothing was charged")
        return upstream_id

    async def _forget_upstream(self, draft: Draft, upstream_id: str | None) -> None:
        if upstream_id is not None:
            with contextlib.suppress(Refusal, UpstreamError):
                await self._native.cancel(msgspec.structs.replace(draft.batch, upstream_id=upstream_id))

    async def _undo(self, draft: Draft, error: BaseException, upstream_id: str | None) -> None:
        """Give everything back. What cannot be undone now is undone by Upkeep, here or where this process has gone."""
        await self._forget_upstream(draft, upstream_id)
        outcome = "gateway_broke"
        if isinstance(error, RefusedUpstream):
            outcome = "refused_upstream"
        elif isinstance(error, UpstreamFailed):
            outcome = "upstream_broke"
        elif isinstance(error, InsufficientBalance | InvalidRequest):
            outcome = "canceled"
        try:
            await self._charges.end_free(draft.batch, draft.items, "canceled", outcome)
            await self._records.delete(draft.batch)
        except StoreUnavailable as trouble:
            self._left[draft.batch.id] = draft.batch
            self._alert("batch_not_undone", batch=draft.batch.id, error=str(trouble))
