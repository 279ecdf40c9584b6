"""Batches that Farebox runs itself: items go up one by one, a few at a time, as calls that nobody waits for.

What is asked and answered is kept sealed (vault.py); a process works on a batch for as long as it knows its key and
keeps its lease. That an item is sent is noted before, its answer with its price before it is settled: after a crash an
answered item is settled as written down, and one that was sent and has no answer is sent once more, and no more.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import msgspec

from farebox.billing.ledger import Settle
from farebox.billing.pricing import Catalogue
from farebox.errors import FareboxError, Refusal, StoreUnavailable
from farebox.gateway.batches import vault
from farebox.gateway.batches.charges import Answered, Charges, Sent
from farebox.gateway.batches.records import Batch, Item, Records
from farebox.gateway.whole import operators_own, read_answer
from farebox.http.exchange import Headers
from farebox.http.failures import BadAnswer, NoUsage, UpstreamError
from farebox.upstreams.kinds.kind import MESSAGES, Ask
from farebox.upstreams.pool import Pool
from farebox.upstreams.tries import Tries

_ANSWER_BYTES: Final = 64 * 2**20
_RENEW_S: Final = 10.0
_SENDS: Final = 2
_ROUNDS: Final = 6
"""Times that all upstreams may fail an item, minutes apart in the end, before that is its result."""
_LONGEST_WAIT_S: Final = 120.0
_PAGE: Final = 50
_PATIENCE_S: Final = 600.0
_message: Final = msgspec.json.Decoder(Answered)
Log = Callable[..., Any]


class OwnRuns:
    """The batches that this process works on."""

    def __init__(
        self,
        pool: Pool,
        records: Records,
        charges: Charges,
        clock: Callable[[], int],
        at_once: int,
        retry_wait_s: float,
        *,
        log: Log,
        alert: Log,
    ) -> None:
        self._pool = pool
        self._records = records
        self._charges = charges
        self._clock = clock
        self._turns = asyncio.Semaphore(at_once)
        self._at_once = at_once
        self._retry_wait_s = retry_wait_s
        self._log = log
        self._alert = alert
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._keys: dict[str, bytes] = {}
        """Of batches under way whose key is known here."""

    def attach(self, batch: Batch, key: bytes) -> None:
        """Work on a batch whose key has come to be known, unless that is being done."""
        if batch.id not in self._tasks and batch.state in {"in_progress", "canceling"}:
            self._keys[batch.id] = key
            task = asyncio.create_task(self._run(batch, key))
            self._tasks[batch.id] = task
            task.add_done_callback(lambda _: self._tasks.pop(batch.id, None))

    def works_on(self, batch: Batch) -> bool:
        return batch.id in self._tasks

    def goes_on(self, batch: Batch) -> bool:
        """Go on with a batch whose key is known here; tells whether it is."""
        key = self._keys.get(batch.id)
        if key is not None:
            self.attach(batch, key)
        return key is not None

    async def stop(self) -> None:
        """Leave everything as it stands."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, batch: Batch, key: bytes) -> None:
        """Work on a batch until it has ended, or until it is another process's."""
        try:
            if not await self._records.take(batch):
                self._keys.pop(batch.id, None)
                return
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep(batch))
                await self._work(batch, key)
                keeper.cancel()
        except* FareboxError as errors:
            self._log("batch_interrupted", batch=batch.id, error=str(errors.exceptions[0]))
        except* Exception as errors:  # noqa: BLE001  the outermost loop of a batch; what it says may quote what was said
            self._alert("batch_failed", batch=batch.id, error=type(errors.exceptions[0]).__name__)

    async def _keep(self, batch: Batch) -> None:
        """Keep the lease. Raises when it is lost, which ends the work."""
        while True:
            await asyncio.sleep(_RENEW_S)
            with contextlib.suppress(StoreUnavailable):  # then nobody else can take it up either
                if not await self._records.take(batch):
                    raise FareboxError("another process has taken it up")

    async def _work(self, batch: Batch, key: bytes) -> None:
        catalogue = await self._charges.catalogue(batch.price_version)
        await self._charges.settle_answered(batch)
        after = -1
        under_way: set[asyncio.Task[None]] = set()
        try:
            while items := await self._records.open_items(batch, _PAGE, after):
                after = items[-1].place
                for item in items:
                    if len(under_way) >= self._at_once:
                        done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            task.result()
                    under_way.add(asyncio.create_task(self._item(batch, item, key, catalogue)))
            while under_way:
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in under_way:
                task.cancel()
            if under_way:
                await asyncio.wait(under_way)
        if await self._records.end(batch, self._clock()):
            self._keys.pop(batch.id, None)
            self._log("batch_ended", batch=batch.id, account_id=batch.account_id, items=batch.items)

    async def _item(self, batch: Batch, item: Item, key: bytes, catalogue: Catalogue) -> None:
        """See one item through: sent, answered, settled."""
        async with self._turns:
            if self._clock() >= batch.expires_us:
                await self._charges.end_free(batch, [item], "expired", "expired")
                return
            if item.sends >= _SENDS:
                await self._charges.end_free(batch, [item], "errored", "gateway_died")
                return
            if not await self._records.send(item):
                await self._charges.end_free(batch, [item], "canceled", "canceled")
                return
            content = await self._records.content(item)
            if content.body is None:
                return
            body = vault.open_sealed(content.body, key, _about(item, "body"))
            result, settle = await self._ask(batch, item, body, catalogue)
            await self._insist(item, vault.seal(result, key, _about(item, "result")), settle)

    async def _insist(self, item: Item, result: bytes, settle: Settle) -> None:
        """Keep an answer and settle it, again and again while the books are away: asking anew would cost anew."""
        give_up_at = asyncio.get_running_loop().time() + _PATIENCE_S
        while True:
            try:
                await self._records.answer(item, result, msgspec.json.encode(settle).decode())
                await self._charges.settle([settle])
                await self._charges.note([item], "errored")
            except StoreUnavailable:
                if asyncio.get_running_loop().time() > give_up_at:
                    raise
                await asyncio.sleep(1.0)
            else:
                return

    async def _ask(self, batch: Batch, item: Item, body: bytes, catalogue: Catalogue) -> tuple[bytes, Settle]:
        """Send an item until it has a result; answers that, and what ends its hold."""
        refusal: Refusal | None = None
        sent = Sent(None)
        for number in range(_ROUNDS):
            if number:
                await asyncio.sleep(min(_LONGEST_WAIT_S, self._retry_wait_s * 3**number))
            tries = Tries()
            began = asyncio.get_running_loop().time()
            try:
                status, data, theirs = await self._send(batch, item, body, tries)
            except Refusal as error:
                refusal = error
                if isinstance(tries.last, NoUsage):
                    break  # each round is paid for, and the next would be as this one
                continue
            upstream = tries.upstream.name if tries.upstream is not None else None
            took_us = round((asyncio.get_running_loop().time() - began) * 1_000_000)
            sent = Sent(upstream, theirs, tries.count, status, took_us)
            if status >= 400:
                return _errored(_error(data)), self._charges.free(batch, item, "refused_upstream", sent)
            settle = self._paid(batch, item, catalogue, data, sent, tries)
            if settle is not None:
                return b'{"type":"succeeded","message":%b}' % _one_line(data), settle
        words = refusal.message if refusal is not None else "the upstream gave no usable answer; nothing was charged"
        return _errored(_api_error(words)), self._charges.free(batch, item, "upstream_broke", sent)

    def _paid(
        self, batch: Batch, item: Item, catalogue: Catalogue, data: bytes, sent: Sent, tries: Tries
    ) -> Settle | None:
        try:
            message = _message.decode(data)
        except msgspec.DecodeError:
            return None
        if tries.upstream is not None:
            message = msgspec.structs.replace(message, model=tries.upstream.sold_as(message.model))
        return self._charges.paid(batch, item, catalogue, message, sent)

    async def _send(self, batch: Batch, item: Item, body: bytes, tries: Tries) -> tuple[int, bytes, str | None]:
        """Send it once, with the retries that every call has. Raises Refusal when no upstream answered."""
        ask = Ask(
            path=MESSAGES,
            headers=read_headers(batch.headers),
            body=body,
            model=item.model,
            said=_said(body),
            known_as=_said(body),
        )
        while True:
            answer = await self._pool.send(tries, ask, conversation=batch.id.encode())
            try:
                data = await answer.read(_ANSWER_BYTES)
                if answer.status >= 400 and (matter := operators_own(data)):
                    self._pool.note_refused(tries, matter)
                    await self._pool.prepare_retry(tries)
                    continue
                if answer.status < 400:
                    with contextlib.suppress(msgspec.DecodeError):
                        _message.decode(data)
                        self._pool.note_success(tries)
                        theirs = answer.header(b"request-id")
                        return answer.status, data, theirs.decode("latin-1") if theirs else None
                    raise _unusable(data)
            except UpstreamError as error:
                self._pool.note_failure(tries, error)
                await self._pool.prepare_retry(tries)
            else:
                return answer.status, data, None


def _unusable(data: bytes) -> BadAnswer:
    """Say what is wrong with an answer that is no message with usage."""
    if read_answer(data) is not None:
        return NoUsage("the upstream's answer reports no usage")
    return BadAnswer("the upstream's answer is no message")


def sealed_body(item: Item, body: bytes, key: bytes) -> bytes:
    """Seal what an item asks."""
    return vault.seal(body, key, _about(item, "body"))


def result_line(item: Item, sealed: bytes | None, key: bytes) -> bytes:
    """Give an item's line of results."""
    result = b'{"type":"%b"}' % item.state.encode()
    if item.state in {"succeeded", "errored"} and sealed is not None:
        result = vault.open_sealed(sealed, key, _about(item, "result"))
    elif item.state == "errored":
        words = "the gateway was stopped while this item was under way; nothing was charged: send it again"
        result = _errored(_api_error(words))
    return b'{"custom_id":"%b","result":%b}\n' % (item.custom_id.encode(), result)


def kept_headers(headers: Headers) -> str:
    """Write down which version of the API, and which betas, a batch was made with."""
    names = (b"anthropic-version", b"anthropic-beta")
    return msgspec.json.encode([[n.decode(), v.decode("latin-1")] for n, v in headers if n in names]).decode()


def read_headers(text: str) -> Headers:
    """Give the headers that a batch's items go up with."""
    kept = [(name.encode(), value.encode("latin-1")) for name, value in msgspec.json.decode(text)]
    return [(b"content-type", b"application/json"), (b"accept-encoding", b"identity"), *kept]


def _about(item: Item, what: str) -> str:
    return f"{item.id.hex()} {what}"


def _said(body: bytes) -> str:
    return str(msgspec.json.decode(body, type=_Named).model)


class _Named(msgspec.Struct):
    model: str


def _errored(error: bytes) -> bytes:
    return b'{"type":"errored","error":%b}' % error


def _error(data: bytes) -> bytes:
    """Give an upstream's error as it came, or one of ours in its place when it is none."""
    try:
        if isinstance(msgspec.json.decode(data)["error"]["message"], str):
            return _one_line(data)
    except (msgspec.DecodeError, KeyError, TypeError):
        pass
    words = "the upstream refused this item without saying why"
    return _api_error(words)


def _api_error(words: str) -> bytes:
    return msgspec.json.encode({"type": "error", "error": {"type": "api_error", "message": words}})


def _one_line(data: bytes) -> bytes:
    """Keep JSON within a line; only what stands between its values can hold an end of line."""
    if b"\n" not in data and b"\r" not in data:
        return data
    return msgspec.json.format(data, indent=-1)
