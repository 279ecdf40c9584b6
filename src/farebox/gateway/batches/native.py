"""Batches that an upstream runs: made there, looked after, and settled from their results; contents are never kept.

A batch stays with the upstream that it was made at. Its results are read from there twice: once to settle each item,
whether or not its customer ever asks, and again whenever the customer does.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from farebox.billing.ledger import Settle
from farebox.billing.pricing import Catalogue
from farebox.clock import DAY_US, US_PER_S
from farebox.errors import NotFound, Refusal, UpstreamFailed
from farebox.gateway.batches.charges import Answered, Charges, Sent
from farebox.gateway.batches.entries import Entry
from farebox.gateway.batches.lines import Lines
from farebox.gateway.batches.records import Batch, Item, Records
from farebox.gateway.wire import DEFAULT_VERSION
from farebox.http.exchange import Headers
from farebox.http.failures import BadAnswer, UpstreamError
from farebox.ids import show_request_id
from farebox.logs import Seldom
from farebox.upstreams.kinds.bodies import with_fields
from farebox.upstreams.kinds.kind import Ask, Reply
from farebox.upstreams.pool import Pool
from farebox.upstreams.tries import Tries
from farebox.upstreams.upstream import Upstream

PATH: Final = "/v1/messages/batches"
_ANSWER_BYTES: Final = 2**20
_PORTION: Final = 200
_GRACE_US: Final = 3600 * US_PER_S
"""An upstream's clock may be another; after this beyond its time a batch that runs there still is given up."""
_PATIENCE_US: Final = 24 * _GRACE_US
"""And one whose upstream does not answer, or does not give the results: they are there for weeks."""
_BREATH: Final = 1_000
"""After so many items everybody else gets a turn."""
_HEADERS: Final = [(b"anthropic-version", DEFAULT_VERSION), (b"accept-encoding", b"identity")]
Log = Callable[..., Any]


class Outcome(msgspec.Struct):
    type: str
    message: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class Line(msgspec.Struct):
    """A line of results, as far as it matters here."""

    custom_id: str
    result: Outcome


class _Status(msgspec.Struct):
    id: str
    processing_status: str = ""


read_line: Final = msgspec.json.Decoder(Line)
_status: Final = msgspec.json.Decoder(_Status)
_message: Final = msgspec.json.Decoder(Answered)


class Native:
    """Speaks of batches with upstreams."""

    def __init__(
        self, pool: Pool, records: Records, charges: Charges, clock: Callable[[], int], log: Log, alert: Log
    ) -> None:
        self._pool = pool
        self._records = records
        self._charges = charges
        self._clock = clock
        self._cancelled: set[str] = set()
        """Batches whose upstream knows from this process that they are cancelled."""
        self._log = log
        self._alert = alert
        self._seldom_alert = Seldom(alert, DAY_US / US_PER_S)
        """For what may be so of every item of a batch."""

    def choose(self, entries: Sequence[Entry]) -> Upstream | None:
        """Choose an upstream that has batches and serves all models asked for; None where there is none.

        Raises UpstreamFailed where all of them are drained: no new batch is made there either.
        """
        models = {entry.model.id for entry in entries}
        able = [one for one in self._pool.upstreams if one.has_batches and (not one.models or models <= one.models)]
        now = asyncio.get_running_loop().time()
        taking = [one for one in able if not one.drained]
        if able and not taking:
            words = "no upstream takes batches of these models at the moment; try again shortly"
            raise UpstreamFailed(words, retry_after_s=60)
        ready = [one for one in taking if one.is_healthy(now)] or taking
        return max(ready, key=lambda one: one.weight, default=None)

    def is_offered(self) -> bool:
        return any(upstream.has_batches for upstream in self._pool.upstreams)

    async def create(self, upstream: Upstream, headers: Headers, body: bytes, entries: Sequence[Entry]) -> Reply:
        """Make a batch upstream, once: what became of a try whose answer is lost nobody could tell."""
        body = await _body(upstream, body, entries)
        tries = Tries(only=upstream.name)
        tries.abandoned = True
        return await self._pool.send(tries, Ask(path=PATH, headers=headers, body=body), conversation=b"")

    async def cancel(self, batch: Batch) -> None:
        """Ask for a batch to be cancelled; one that has ended upstream cannot be, and need not."""
        try:
            await self._ask("POST", f"{PATH}/{batch.upstream_id}/cancel", batch)
        except UpstreamFailed:
            if not await self._has_ended(batch):
                raise
        self._cancelled.add(batch.id)

    async def delete(self, batch: Batch) -> None:
        """Let the upstream forget a batch, if it does: it will anyway, in its time."""
        try:
            await self._ask("DELETE", f"{PATH}/{batch.upstream_id}", batch)
        except (Refusal, UpstreamError) as error:
            self._log("batch_not_deleted_upstream", batch=batch.id, error=str(error))

    async def results(self, batch: Batch) -> tuple[Reply, Tries]:
        """Open the results of a batch. Raises Refusal or UpstreamError when they cannot be had now."""
        ask = Ask(method="GET", path=f"{PATH}/{batch.upstream_id}/results", headers=_HEADERS)
        tries = Tries(only=batch.upstream or "")
        answer = await self._pool.send(tries, ask, conversation=b"")
        if answer.status != 200:
            await answer.read(_ANSWER_BYTES)
            raise UpstreamFailed("the upstream does not give the results at the moment; try again", retry_after_s=30)
        return answer, tries

    async def look_after(self, batch: Batch) -> None:
        """See how a batch is, and settle it once it has ended."""
        late_us = self._clock() - batch.expires_us
        try:
            if batch.state == "canceling" and batch.id not in self._cancelled:  # on a page: nobody has told it yet
                await self.cancel(batch)
            ended = await self._has_ended(batch)
            if ended and await self._collect(batch):
                await self._charges.end_all(batch, "errored", "upstream_broke")
                await self._end(batch)
                return
        except NotFound:
            self._alert("batch_lost", batch=batch.id, upstream=batch.upstream)
            await self._charges.end_all(batch, "errored", "upstream_broke")
            await self._end(batch)
            return
        except (UpstreamFailed, UpstreamError):
            if late_us <= _PATIENCE_US:
                raise
            ended = False
        if late_us > (_PATIENCE_US if ended else _GRACE_US):
            await self._give_up(batch)

    async def _give_up(self, batch: Batch) -> None:
        """End a batch without its results, and let it cost no more."""
        self._alert("batch_overdue", batch=batch.id, upstream=batch.upstream)
        with contextlib.suppress(Refusal, UpstreamError):
            await self.cancel(batch)
        await self._charges.end_all(batch, "expired", "expired")
        await self._end(batch)

    async def _end(self, batch: Batch) -> None:
        self._cancelled.discard(batch.id)
        if await self._records.end(batch, self._clock()):
            self._log("batch_ended", batch=batch.id, account_id=batch.account_id, items=batch.items)

    async def _has_ended(self, batch: Batch) -> bool:
        body = await self._ask("GET", f"{PATH}/{batch.upstream_id}", batch)
        try:
            return _status.decode(body).processing_status == "ended"
        except msgspec.DecodeError:
            raise BadAnswer("the upstream's answer is no batch") from None

    async def _collect(self, batch: Batch) -> bool:
        """Read all results and settle each item by its own; tells whether it got to the end."""
        items = await self._records.by_name(batch)
        catalogue = await self._charges.catalogue(batch.price_version)
        answer, tries = await self.results(batch)
        lines = Lines(answer, self._stall_s(batch))
        settles: dict[bytes, tuple[Item, Settle]] = {}
        seen: set[bytes] = set()
        """Of an item that has two lines, the first counts: it is also the one that is delivered."""
        try:
            while (line := await lines.next()) is not None:
                if not line.strip():
                    continue
                found = self._read(batch, items, line)
                if found is None:
                    continue
                item, outcome = found
                if item.id in seen:
                    continue
                seen.add(item.id)
                settles[item.id] = (item, self._charge(batch, item, catalogue, outcome))
                if len(settles) >= _PORTION:
                    await self._settle(settles)
            await self._settle(settles)
        except UpstreamError as error:
            self._pool.note_failure(tries, error)
            return False
        except BaseException:
            answer.abandon()
            raise
        self._pool.note_success(tries)
        return True

    def _read(self, batch: Batch, items: dict[str, Item], data: bytes) -> tuple[Item, Outcome] | None:
        """Read a line about an item that is still open; None for any other."""
        try:
            line = read_line.decode(data)
        except msgspec.DecodeError:
            self._seldom_alert("batch_line_unreadable", batch.id, batch=batch.id, upstream=batch.upstream)
            return None
        item = items.get(line.custom_id)
        if item is None or item.state not in {"waiting", "sent", "answered"}:
            return None
        return item, line.result

    def _charge(self, batch: Batch, item: Item, catalogue: Catalogue, outcome: Outcome) -> Settle:
        """Say what ends the hold of an item."""
        sent = Sent(batch.upstream)
        match outcome.type:
            case "succeeded":
                try:
                    message = _message.decode(outcome.message)
                    message = msgspec.structs.replace(message, model=self._sold_as(batch, message.model))
                    settle = self._charges.paid(batch, item, catalogue, message, sent)
                except msgspec.DecodeError:
                    settle = None
                if settle is not None:
                    return settle
                about = {"request_id": show_request_id(item.id), "batch": batch.id, "upstream": batch.upstream}
                self._seldom_alert("batch_item_without_usage", batch.id, **about)
                return self._charges.free(batch, item, "upstream_broke")
            case "canceled" | "expired":
                return self._charges.free(batch, item, outcome.type)
            case _:
                return self._charges.free(batch, item, "refused_upstream", Sent(batch.upstream, status=400))

    async def _settle(self, settles: dict[bytes, tuple[Item, Settle]]) -> None:
        """Settle first, then note it: a process that dies between does both again, and nothing twice."""
        await self._charges.settle([settle for _, settle in settles.values()])
        await self._charges.note([item for item, _ in settles.values()], "errored")
        settles.clear()

    async def _ask(self, method: str, path: str, batch: Batch) -> bytes:
        """Ask about a batch. Raises NotFound when the upstream does not know it, Refusal or UpstreamError else."""
        tries = Tries(only=batch.upstream or "")
        answer = await self._pool.send(tries, Ask(method=method, path=path, headers=_HEADERS), conversation=b"")
        body = await answer.read(_ANSWER_BYTES)
        self._pool.note_success(tries)
        if answer.status == 404:
            raise NotFound(f"the upstream does not know the batch {batch.id} any more")
        if answer.status >= 400:
            raise UpstreamFailed(
                "the upstream cannot do that with the batch at the moment; try again", retry_after_s=10
            )
        return body

    def _stall_s(self, batch: Batch) -> float:
        return next((one.stall_s for one in self._pool.upstreams if one.name == batch.upstream), 90.0)

    def _sold_as(self, batch: Batch, name: str) -> str:
        return next((one.sold_as(name) for one in self._pool.upstreams if one.name == batch.upstream), name)


def read_id(body: bytes) -> str | None:
    """Read the id of a batch that an upstream has made."""
    try:
        return _status.decode(body).id or None
    except msgspec.DecodeError:
        return None


async def _body(upstream: Upstream, body: bytes, entries: Sequence[Entry]) -> bytes:
    """Give the body that goes up: as it came, unless an item lacks max_tokens or the upstream has names of its own."""
    if not upstream.names and all(isinstance(entry.params, msgspec.Raw) for entry in entries):
        return body
    pieces = [b'{"requests":[']
    for place, entry in enumerate(entries):
        if place % _BREATH == 0:
            await asyncio.sleep(0)
        params: bytes | msgspec.Raw = entry.params
        name = upstream.names.get(entry.model.id, entry.said)
        if name != entry.said:
            params = with_fields(bytes(params), model=name)
        pieces += (b'{"custom_id":"', entry.custom_id.encode(), b'","params":', bytes(params), b"}", b",")
    pieces[-1] = b"]}"
    return b"".join(pieces)
