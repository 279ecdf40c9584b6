"""The pool: which upstream gets a call, and when a failed try may be repeated.

A try is repeated only before its first byte has reached the client, at another upstream or the same one, within a
retry budget. Everything after that is the relay's and the client's to know.
"""

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Final

from farebox.errors import Refusal
from farebox.http.failures import NoUsage, UpstreamError
from farebox.logs import Seldom
from farebox.upstreams.budgets import RetryBudget, retry_after
from farebox.upstreams.kinds.kind import COUNT_TOKENS, MESSAGES, Ask, Reply
from farebox.upstreams.places import Place, Places, is_bound, is_cold
from farebox.upstreams.refusals import OPERATORS_OWN, Matter, no_room, no_usage, nobody_serves, nobody_there, refusal_of
from farebox.upstreams.tries import Tries, Turn
from farebox.upstreams.upstream import Failure, Upstream

_RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_ERROR_BODY_BYTES: Final = 2**20
_LONGEST_WAIT_S: Final = 8.0
_QUEUE_S: Final = 5.0
_QUEUE_CALLS: Final = 1_000
"""How long, and how many, calls wait for an upstream that takes no more at once."""
_ERROR_BODY_S: Final = 5.0
"""How long the words of a failure are waited for: nobody reads them, only the connection is kept by it."""
_MODEL_BARRED_S: Final = 60.0
"""How long a 403 keeps a model's calls elsewhere: a key may have the right to other models."""
_FULL: Final = (1 << 30, 0, 0, 0)


class Pool:
    """All upstreams of this process."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        attempts: int,
        retry_budget: float,
        retry_wait_s: float,
        retry_after_max_s: float,
        first_byte_s: float,
        chance: Callable[[], float] = random.random,
        alert: Callable[..., object] | None = None,
    ) -> None:
        self._attempts = attempts
        self._budget = RetryBudget(retry_budget)
        self._retry_wait_s = retry_wait_s
        self._retry_after_max_s = retry_after_max_s
        self._first_byte_s = first_byte_s
        self._chance = chance
        self._alert = Seldom(alert) if alert is not None else None
        self.retries = 0
        self.places = Places()
        self.waiting: deque[Turn] = deque()
        """Calls that every upstream for them has no room for, in the order they came."""
        self.upstreams: Sequence[Upstream] = ()
        self.replace(upstreams)

    async def send(self, tries: Tries, ask: Ask, *, conversation: bytes) -> Reply:
        """Send a request until an upstream answers it, in success or with an error that is the client's to see.

        How the answer ends is for the caller to note, by `note_success` or `note_failure`.

        Raises UpstreamFailed or Overloaded when no try is left, and InvalidRequest for what no upstream can be asked:
        one that cannot is passed over, which is no try. `tries` carries on from call to call, so that an answer that
        breaks before its first byte was passed on can be tried again by calling this again.
        """
        tries.path, tries.model = ask.path, ask.model
        tries.conversation = conversation
        if tries.count == 0:
            self._budget.call()
        loop = asyncio.get_running_loop()
        while True:
            upstream = self._choose(tries, conversation, ask.body) or await self._wait(tries, conversation, ask.body)
            tries.count += 1
            tries.upstream = upstream
            tries.sent_at = loop.time()
            probes = upstream.takes(tries.sent_at)
            try:
                answer = await upstream.request(ask, first_byte_s=self._first_byte_s)
            except UpstreamError as error:
                self.note_failure(tries, error)
            except (Refusal, asyncio.CancelledError) as left:
                if probes:
                    upstream.unprobed()
                if not isinstance(left, Refusal):
                    raise
                upstream.calls, tries.count = upstream.calls - 1, tries.count - 1
                tries.unable[upstream.name] = left
                if not self._able(tries):
                    raise next(iter(tries.unable.values())) from None
                continue
            else:
                now = loop.time()
                upstream.began(now - tries.sent_at)
                upstream.rate.learn(ask.model, answer.headers, now)
                if (
                    answer.status not in _RETRIED
                    and answer.status not in OPERATORS_OWN
                    and not 300 <= answer.status < 400
                ):
                    if answer.status >= 400:  # of others the end will tell
                        upstream.ended_well(now)
                    return answer
                await self._note_status(tries, answer)
            await self.prepare_retry(tries)

    def note_success(self, tries: Tries) -> None:
        """Remember that the try's upstream gave a whole, usable answer: its head alone proves little."""
        assert tries.upstream is not None
        now = asyncio.get_running_loop().time()
        tries.upstream.ended_well(now)
        if tries.conversation and len(self.upstreams) > 1 and not tries.only and tries.path != COUNT_TOKENS:
            self.places.keep(tries.conversation, Place(tries.upstream.name, tries.upstream.organization, now))

    def note_failure(self, tries: Tries, error: UpstreamError) -> None:
        """Remember that the try's upstream broke it."""
        assert tries.upstream is not None
        tries.last = error
        tries.status = None
        tries.retry_after_s = None
        self._note(tries, tries.upstream, type(error).__name__).failed(asyncio.get_running_loop().time())

    def note_refused(self, tries: Tries, matter: Matter) -> None:
        """Remember that the try's upstream refuses the operator, in whatever words.

        A model that was not set up there is asked for elsewhere: its name bars the upstream for no other call.
        """
        assert tries.upstream is not None
        now = asyncio.get_running_loop().time()
        tries.last, tries.status, tries.retry_after_s = None, 402 if matter == "account" else 403, None
        upstream = self._note(tries, tries.upstream)
        if matter == "account":
            upstream.barred(now)
        else:
            upstream.failures += 1
            upstream.rate.rest(tries.model, now + _MODEL_BARRED_S)

    async def prepare_retry(self, tries: Tries) -> None:
        """Wait for the next try. Raises what the client gets when there is none."""
        others = any(upstream.name not in tries.failed_at for upstream in self._able(tries))
        if isinstance(tries.last, NoUsage) and not others:
            raise no_usage()
        patient = tries.retry_after_s is None or tries.retry_after_s <= self._retry_after_max_s
        if tries.abandoned or tries.count >= self._attempts or not (others or patient) or not self._budget.take():
            raise refusal_of(tries.status, tries.count, tries.retry_after_s)
        self.retries += 1
        if others:
            return
        wait_s = min(_LONGEST_WAIT_S, self._retry_wait_s * 2 ** (tries.count - 1)) * self._chance()
        await asyncio.sleep(max(wait_s, tries.retry_after_s or 0.0))

    def ways_up(self, model: str) -> tuple[int, int]:
        """Count the upstreams for a model: those that calls go to at the moment, and all there are."""
        now = asyncio.get_running_loop().time()
        able = [upstream for upstream in self.upstreams if not upstream.models or model in upstream.models]
        return sum(upstream.is_healthy(now) and not upstream.drained for upstream in able), len(able)

    def lacks(self, path: str, model: str) -> bool:
        """Tell whether calls to a model find upstreams, and those that ask for `path` find none among them."""
        able = [
            upstream
            for upstream in self.upstreams
            if not upstream.drained and (not upstream.models or model in upstream.models)
        ]
        return bool(able) and not any(upstream.kind.has(path) for upstream in able)

    def drain(self, names: Container[str]) -> None:
        """Send no new call to these, and to all others as ever."""
        for upstream in self.upstreams:
            was, upstream.drained = upstream.drained, upstream.name in names
            if was and not upstream.drained:
                self._wake()

    def replace(self, upstreams: Sequence[Upstream]) -> None:
        """Send new calls to these alone. Those that stay keep all they know; calls under way at others end there."""
        self.upstreams = tuple(upstreams)
        for upstream in upstreams:
            upstream.client.on_free = self._next
        self._wake()

    def tick(self, now: float) -> None:
        """Called about once a second."""
        for upstream in self.upstreams:
            upstream.tick(now)

    async def close(self) -> None:
        for upstream in self.upstreams:
            await upstream.client.close()
            await upstream.kind.close()

    def _able(self, tries: Tries) -> list[Upstream]:
        """Give the upstreams that a call may go to: that serve it and are not drained, or the one it is for."""
        if tries.only:
            return [one for one in self.upstreams if one.name == tries.only and one.name not in tries.unable]
        model = tries.model
        return [
            upstream
            for upstream in self.upstreams
            if not upstream.drained
            and (not upstream.models or model is None or model in upstream.models)
            and (tries.path == MESSAGES or upstream.kind.has(tries.path))
            and upstream.name not in tries.unable
        ]

    def _choose(self, tries: Tries, conversation: bytes, body: bytes = b"", *, waited: bool = False) -> Upstream | None:
        """Choose an upstream: where the conversation is, while that is well; else by health, priority and weight.

        None when none is able, or when those that are best have no room: calls wait for them, unless this one has.
        """
        able = self._able(tries)
        if len(able) == 1:
            return able[0] if able[0].has_room else None
        now = asyncio.get_running_loop().time()
        model = tries.model
        place = self.places.find(conversation)
        if place is not None:
            for upstream in able:
                if upstream.name == place.upstream:
                    if upstream.name in tries.failed_at or not upstream.is_healthy(now):
                        break
                    if upstream.has_room and not upstream.rate.is_spent(model, now) and not is_cold(place, now):
                        return upstream
                    if is_bound(body) and (upstream.has_room or not waited):
                        return upstream if upstream.has_room else None
                    break
        return self._best(able, tries, conversation, now, place.organization if place else "", waited=waited)

    def _best(
        self, able: list[Upstream], tries: Tries, conversation: bytes, now: float, organization: str, *, waited: bool
    ) -> Upstream | None:
        """Choose by rendezvous hashing among the best, so that weights are kept, and few move when one is lost."""
        best = full = _FULL
        found: list[Upstream] = []
        model, failed_at = tries.model, tries.failed_at
        for upstream in able:
            rank = (
                (4 if upstream.name in failed_at else 0)
                + (0 if upstream.is_healthy(now) else 2)
                + (1 if upstream.rate.is_spent(model, now) else 0),
                1 if organization and upstream.organization != organization else 0,
                0 if upstream.weight else 1,
                upstream.priority,
            )
            if not upstream.has_room:
                full = min(full, rank)
            elif rank < best:
                best, found = rank, [upstream]
            elif rank == best:
                found.append(upstream)
        if full[0] < best[0] and not (waited and found):
            return None
        return max(found, key=lambda upstream: _score(upstream, conversation, now), default=None)

    async def _wait(self, tries: Tries, conversation: bytes, body: bytes) -> Upstream:
        """Wait for room, in turn and not for long. Raises what the client gets when there is none."""
        if len(self.waiting) >= _QUEUE_CALLS:
            raise no_room()
        loop, turn = asyncio.get_running_loop(), Turn(tries)
        ends_at = loop.time() + _QUEUE_S
        self.waiting.append(turn)
        try:
            while True:
                if not self._able(tries):
                    raise nobody_serves() if self.upstreams else nobody_there()
                if tries.abandoned or loop.time() >= ends_at:
                    raise no_room()
                await self._come(turn, ends_at)
                upstream = self._choose(tries, conversation, body, waited=loop.time() >= ends_at)
                if turn.promised is not None and upstream is not turn.promised:
                    self._next(turn)
                if upstream is not None:
                    return upstream
                turn.anew()  # where it stands
        finally:
            self.waiting.remove(turn)

    async def _come(self, turn: Turn, ends_at: float) -> None:
        """Wait until its turn has come, or its time is over."""
        timer = asyncio.get_running_loop().call_at(ends_at, turn.come)
        try:
            await turn.future
        except asyncio.CancelledError:
            if turn.promised is not None:
                turn.promised.unclaim()  # its turn is another's
            raise
        finally:
            timer.cancel()
        if turn.promised is not None:
            turn.promised.claimed -= 1

    def _wake(self) -> None:
        """Let all calls that wait look again: there may be somewhere else to go."""
        for turn in self.waiting:
            turn.come()

    def _next(self, but: Turn | None = None) -> None:
        """There is room for one: let the call look again that has waited longest for it, `but` this one."""
        for turn in self.waiting:
            if turn.future.done() or turn is but:
                continue
            for upstream in self._able(turn.tries):
                if upstream.has_room:
                    turn.come(upstream)
                    return

    async def _note_status(self, tries: Tries, answer: Reply) -> None:
        assert tries.upstream is not None
        now = asyncio.get_running_loop().time()
        tries.status = answer.status
        tries.last = None
        tries.retry_after_s = retry_after(answer.header(b"retry-after"), answer.header(b"date"))
        upstream = self._note(tries, tries.upstream)
        if answer.status == 429:
            upstream.limited += 1
            upstream.rate.limited(tries.model, tries.retry_after_s, now)
        elif answer.status == 401:
            upstream.barred(now)
        else:
            upstream.failed(now)
            if answer.status == 403:
                upstream.rate.rest(tries.model, now + _MODEL_BARRED_S)
            elif tries.retry_after_s is not None:
                upstream.rate.limited(tries.model, tries.retry_after_s, now)
        try:
            async with asyncio.timeout(_ERROR_BODY_S):
                await answer.read(_ERROR_BODY_BYTES)
        except UpstreamError as error:
            tries.last = error
        except TimeoutError:
            answer.abandon()

    def _note(self, tries: Tries, upstream: Upstream, error: str | None = None) -> Upstream:
        """Keep what a failed try can be told by."""
        now = asyncio.get_running_loop().time()
        tries.failed_at.add(upstream.name)
        upstream.failed_by[str(tries.status) if error is None else error] += 1
        upstream.last_failure = Failure(upstream.name, tries.sent_at, now, tries.status, error)
        if self._alert is not None and tries.status in OPERATORS_OWN:
            about = f"{upstream.name} {tries.status}"
            self._alert("upstream_refuses_operator", about, upstream=upstream.name, status=tries.status)
        elif self._alert is not None and error == NoUsage.__name__:
            self._alert("upstream_without_usage", upstream.name, upstream=upstream.name, model=tries.model)
        tries.failures.append(upstream.last_failure)
        return upstream


def _score(upstream: Upstream, conversation: bytes, now: float) -> float:
    digest = hashlib.blake2b(conversation + b"\0" + upstream.name.encode(), digest_size=8).digest()
    share = (int.from_bytes(digest, "big") + 1) / 2**64
    return float(share ** (1.0 / (max(upstream.weight, 1) * upstream.ramp(now))))
