"""Message batches as the simulator plays them: answers are made at once, and come to light as their time has come.

Nothing runs in the background: what has become of a batch is worked out from the clock whenever somebody asks.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import msgspec

from farebox.clock import DAY_US, US_PER_S, iso
from farebox.errors import InvalidRequest, NotFound, Refusal
from farebox.upstreams.simulator.answer import message, plan
from farebox.upstreams.simulator.ask import read_ask
from farebox.upstreams.simulator.cache import PromptCache
from farebox.upstreams.simulator.catalogue import Model
from farebox.upstreams.simulator.knobs import Knobs, magic_in, read_knobs
from farebox.upstreams.simulator.prose import hex_of

BATCH_BYTES: Final = 256 * 1024 * 1024
_MOST_ITEMS: Final = 100_000
_MOST_BATCHES: Final = 1_000
_BREATH: Final = 100
"""Items answered between two moments for everybody else."""
_NOT_IN_BATCHES: Final = ("stream", "speed", "fallbacks")
KINDS: Final = ("succeeded", "errored", "canceled", "expired")


class Item(msgspec.Struct):
    """One request of a batch: what its result is, and from when on."""

    custom_id: str
    kind: str
    result: dict[str, Any]
    ready_us: int


class Batch(msgspec.Struct):
    id: str
    created_us: int
    items: list[Item]
    cancel_us: int | None = None

    @property
    def expires_us(self) -> int:
        return self.created_us + DAY_US

    @property
    def stops_us(self) -> int:
        """When what is not ready by then never will be."""
        return self.expires_us if self.cancel_us is None else min(self.cancel_us, self.expires_us)

    @property
    def ends_us(self) -> int:
        """When all of it is over."""
        return min(max((item.ready_us for item in self.items), default=self.created_us), self.stops_us)

    def result(self, item: Item) -> dict[str, Any]:
        """Give what became of an item of a batch that has ended."""
        if item.ready_us <= self.stops_us:
            return {"type": item.kind} | item.result
        return {"type": "expired" if self.stops_us == self.expires_us else "canceled"}

    def shown(self, now_us: int, base: str) -> dict[str, Any]:
        """Give it as the API shows it: counts are told once all of it is over."""
        ended = now_us >= self.ends_us
        counts = {"processing": 0 if ended else len(self.items)} | dict.fromkeys(KINDS, 0)
        for item in self.items if ended else ():
            counts[self.result(item)["type"]] += 1
        state = "ended" if ended else "in_progress" if self.cancel_us is None else "canceling"
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": state,
            "request_counts": counts,
            "created_at": iso(self.created_us),
            "expires_at": iso(self.expires_us),
            "ended_at": iso(self.ends_us) if ended else None,
            "archived_at": None,
            "cancel_initiated_at": iso(self.cancel_us) if self.cancel_us is not None else None,
            "results_url": f"{base}/v1/messages/batches/{self.id}/results" if ended else None,
        }


class Batches:
    """All batches of one simulator, in memory; the oldest are forgotten."""

    def __init__(self, clock: Callable[[], int], models: dict[str, Model], cache: PromptCache, start: bytes) -> None:
        self._clock = clock
        self._models = models
        self._cache = cache
        self._start = start
        self._count = 0
        self._batches: OrderedDict[str, Batch] = OrderedDict()
        self._random = random.Random(start)  # noqa: S311  the order of results

    async def create(self, body: bytes, version: str, *spoken: str) -> Batch:
        """Take in a batch. Raises InvalidRequest in the API's manner; what is wrong within an item is its result."""
        try:
            requests = msgspec.json.decode(body)["requests"]
        except (msgspec.DecodeError, KeyError, TypeError):
            raise InvalidRequest("requests: Field required") from None
        if not isinstance(requests, list) or not 1 <= len(requests) <= _MOST_ITEMS:
            raise InvalidRequest(f"requests: List should have between 1 and {_MOST_ITEMS} items")
        self._count += 1
        number = self._count.to_bytes(6, "big")
        batch = Batch(f"msgbatch_sim_{number.hex()}{hex_of(self._start, number, size=12)}", self._clock(), [])
        seen: set[str] = set()
        for place, request in enumerate(requests):
            _check(place, request, seen)
            batch.items.append(self._answered(batch, place, request, version, spoken))
            if place % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
        self._batches[batch.id] = batch
        if len(self._batches) > _MOST_BATCHES:
            self._batches.popitem(last=False)
        return batch

    def newest_first(self) -> list[Batch]:
        return list(reversed(self._batches.values()))

    def find(self, batch_id: str) -> Batch:
        """Find a batch. Raises NotFound."""
        batch = self._batches.get(batch_id)
        if batch is None:
            raise NotFound(f"batch: {batch_id}")
        return batch

    def cancel(self, batch: Batch) -> None:
        """Cancel what is not ready yet."""
        if batch.cancel_us is None and self._clock() < batch.ends_us:
            batch.cancel_us = self._clock()

    def delete(self, batch: Batch) -> None:
        """Forget a batch. Raises InvalidRequest while it runs."""
        if self._clock() < batch.ends_us:
            raise InvalidRequest(f"batch {batch.id} cannot be deleted while it is in progress; cancel it first")
        del self._batches[batch.id]

    def results(self, batch: Batch) -> bytes:
        """Give the results as JSON lines, in no particular order. Raises NotFound while it runs."""
        if self._clock() < batch.ends_us:
            raise NotFound(f"batch {batch.id} has no results yet")
        items = list(batch.items)
        self._random.shuffle(items)
        lines = [msgspec.json.encode({"custom_id": item.custom_id, "result": batch.result(item)}) for item in items]
        return b"\n".join(lines) + b"\n"

    def _answered(
        self, batch: Batch, place: int, request: dict[str, Any], version: str, spoken: tuple[str, ...]
    ) -> Item:
        """Work out the result of one item, as a call of its own would have been answered."""
        custom_id, knobs = request["custom_id"], read_knobs(*spoken)
        try:
            ask = read_ask(msgspec.json.encode(request["params"]), version, self._models, counting=False)
            knobs = read_knobs(*spoken, magic_in(ask.last_text))
            if knobs.error is not None:
                raise _injected(knobs)
        except Refusal as refusal:
            error = {"type": refusal.wire_type, "message": refusal.message}
            body = {"type": "error", "error": error, "request_id": f"req_sim_{batch.id[-12:]}_{place}"}
            return Item(custom_id, "errored", {"error": body}, batch.created_us + _delay_us(knobs))
        ready_us = batch.created_us + _delay_us(knobs)
        if knobs.batch == "expired":
            return Item(custom_id, "expired", {}, ready_us)
        if knobs.batch == "canceled":
            return Item(custom_id, "canceled", {}, ready_us)
        knobs = msgspec.structs.replace(knobs, tier=knobs.tier or "batch")
        message_id = f"msg_sim_{batch.id[-12:]}_{place:06d}"
        answer = plan(ask, knobs, self._cache.classify(ask, self._clock()), message_id)
        return Item(custom_id, "succeeded", {"message": message(answer)}, ready_us)


def _check(place: int, request: Any, seen: set[str]) -> None:
    if not isinstance(request, dict) or not isinstance(request.get("params"), dict):
        raise InvalidRequest(f"requests.{place}.params: Field required")
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= 64:
        raise InvalidRequest(f"requests.{place}.custom_id: String should have at least 1 and at most 64 characters")
    if custom_id in seen:
        raise InvalidRequest(f"requests.{place}.custom_id: {custom_id} is given twice")
    seen.add(custom_id)
    for name in _NOT_IN_BATCHES:
        if request["params"].get(name):
            raise InvalidRequest(f"requests.{place}.params.{name}: Extra inputs are not permitted")
    if request["params"].get("max_tokens") == 0:
        raise InvalidRequest(f"requests.{place}.params.max_tokens: Input should be greater than or equal to 1")


def _delay_us(knobs: Knobs) -> int:
    return (knobs.delay or 0) * US_PER_S // 1000


def _injected(knobs: Knobs) -> Refusal:
    kind = (knobs.error or "").partition(":")[2] or "api_error"
    refusal = Refusal(f"Simulated {kind}")
    refusal.wire_type = kind
    return refusal
