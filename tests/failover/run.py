"""One run: calls at a steady rate to three upstreams, one of which begins to fail and ends it; what customers saw."""

import asyncio
from pathlib import Path
from random import Random
from typing import Final

from msgspec import Struct

from farebox.books.audit import audit
from farebox.upstreams.upstream import Upstream
from tests.failover.faulty import Faulty, Way, three
from tests.gateway.play import Heard, eventually, message, upstream
from tests.stage import Stage, open_stage

_PLAN: Final = """
[[plans]]
name = "all"
requests_per_minute = 1_000_000
tokens_per_minute = 1_000_000_000
concurrent = 1000
top_up = 0
"""
_USD: Final = 1_000
_NEW_CONVERSATIONS: Final = 4
"""One call of so many begins a conversation; the others go on with one."""


class Times(Struct, frozen=True):
    """How a run goes: calls a second, and seconds before, during and at most after the fault."""

    rate: int = 200
    before_s: float = 2.0
    fault_s: float = 3.0
    after_s: float = 10.5
    connect_s: float = 1.0
    silent_s: float = 2.0


class Seen(Struct):
    """One call as its customer saw it."""

    at: float
    first_byte_s: float = 0.0
    status: int = 0
    began: bool = False
    whole: bool = False


class Result(Struct, frozen=True):
    """What came of a run. `failed`: without a byte of an answer; `broken`: after it had begun."""

    way: str
    calls: int
    faulty_calls: int
    failed: int
    broken: int
    calm_p50_ms: float
    calm_p99_ms: float
    fault_p50_ms: float
    fault_p99_ms: float
    ejected_s: float | None
    returned_s: float | None
    books: str


async def run(directory: Path, way: Way, times: Times) -> Result:
    """Play one way to fail, and look at the books after it."""
    async with three() as doors:
        upstreams = "".join(upstream(f"up{number}", door.port) for number, door in enumerate(doors))
        limits = f"connect_s = {times.connect_s}\nfirst_byte_s = {times.silent_s}\nstall_s = {times.silent_s}"
        async with open_stage(directory, _PLAN, upstreams=upstreams, limits=limits, alice_usd=0) as stage:
            stage.alice = await stage.person("carol@example.com", _USD, plan="all")
            return await _Run(stage, doors[0], stage.parts.pool.upstreams[0], way, times).play()


class _Run:
    def __init__(self, stage: Stage, door: Faulty, sick: Upstream, way: Way, times: Times) -> None:
        self.stage, self.door, self.sick, self.way, self.times = stage, door, sick, way, times
        self.seen: list[Seen] = []
        self.ejected_at: float | None = None
        self.returned_at: float | None = None
        self._conversations = 0
        self._chance = Random(7)

    async def play(self) -> Result:
        loop, times = asyncio.get_running_loop(), self.times
        began_at = loop.time()
        fails_at, mended_at = began_at + times.before_s, began_at + times.before_s + times.fault_s
        over_at = mended_at + times.after_s
        calls: list[asyncio.Task[None]] = []
        failing = mended = False
        while (now := loop.time()) < over_at and not (mended and self._is_over(now, mended_at)):
            if not failing and now >= fails_at:
                failing = True
                await self.door.fail(self.way)
            if not mended and now >= mended_at:
                mended = True
                await self.door.mend()
            if failing:
                self._watch(now, mended=mended)
            while len(calls) < (now - began_at) * times.rate:
                calls.append(asyncio.create_task(self._call()))
            await asyncio.sleep(0.005)
        await asyncio.gather(*calls)
        books = await self._books()
        calm = sorted(one.first_byte_s for one in self.seen if one.at < fails_at - 0.2 and one.status == 200)
        ill = [one for one in self.seen if fails_at <= one.at < mended_at]
        fault = sorted(one.first_byte_s for one in ill)
        return Result(
            way=self.way.name,
            calls=len(calls),
            faulty_calls=len(ill),
            failed=sum(not one.began for one in self.seen),
            broken=sum(one.began and not one.whole for one in self.seen),
            calm_p50_ms=_at(calm, 0.5),
            calm_p99_ms=_at(calm, 0.99),
            fault_p50_ms=_at(fault, 0.5),
            fault_p99_ms=_at(fault, 0.99),
            ejected_s=self.ejected_at - fails_at if self.ejected_at else None,
            returned_s=self.returned_at - mended_at if self.returned_at else None,
            books=books,
        )

    def _watch(self, now: float, *, mended: bool) -> None:
        """See when calls go elsewhere, and when they come back."""
        spent = self.sick.rate.is_spent("claude-sonnet-4-6", now)
        if self.ejected_at is None:
            if self.sick.rests or spent:
                self.ejected_at = now
        elif mended and self.returned_at is None and not self.sick.rests and not spent:
            self.returned_at = now

    def _is_over(self, now: float, mended_at: float) -> bool:
        back = self.returned_at is not None or self.ejected_at is None
        return back and now > max(mended_at, self.returned_at or 0.0) + 1

    async def _call(self) -> None:
        loop = asyncio.get_running_loop()
        if self._chance.randrange(_NEW_CONVERSATIONS) == 0 or not self._conversations:
            self._conversations += 1
        number = self._chance.randrange(max(0, self._conversations - 300), self._conversations)
        seen = Seen(loop.time())
        self.seen.append(seen)
        body = message(f"[[sim tokens=20]] {number}", stream=True, max_tokens=100)
        answer = await self.stage.post(self.stage.alice, body)
        heard = Heard(answer)
        await heard.until(lambda: bool(heard.data) or heard.ended, 60)
        seen.first_byte_s = loop.time() - seen.at
        await heard.end(60)
        seen.status = answer.status
        seen.began = answer.status == 200 and b"message_start" in heard.data
        seen.whole = seen.began and heard.error is None and b"message_stop" in heard.data

    async def _books(self) -> str:
        """Prove the books: every hold has ended, and what was charged is what is gone from the balance."""

        async def ended() -> bool:
            return not await self.stage.rows("SELECT 1 FROM hold")

        await eventually(ended)
        ((charged, rows),) = await self.stage.rows("SELECT SUM(charged_nanos), COUNT(*) FROM usage")
        posted, held = await self.stage.balance(self.stage.alice)
        assert (posted, held) == (_USD * 10**9 - charged, 0)
        assert rows == len(self.seen), (rows, len(self.seen))
        whole = sum(one.whole for one in self.seen)
        ((paid,),) = await self.stage.rows("SELECT COUNT(*) FROM usage WHERE charged_nanos > 0")
        assert paid == whole, (paid, whole)
        broken = [check for check in await audit(self.stage.gateway.store) if not check.ok]
        assert not broken, broken
        return "exact"


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 if ordered else 0.0
