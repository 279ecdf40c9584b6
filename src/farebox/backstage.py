"""The running gateway as the site sees it (web/backstage.py): joins pages and calls, which do not know each other."""

import asyncio
from typing import Final

from farebox.accounts.keyring import Caller
from farebox.accounts.keys import playground_key
from farebox.clock import US_PER_S
from farebox.gateway.messages import Messages
from farebox.gateway.quote import Quotes
from farebox.http.exchange import Exchange
from farebox.parts import Parts
from farebox.upstreams.roster import Broken
from farebox.upstreams.trial import Trial, is_free, try_upstream
from farebox.upstreams.upstream import Failure, Upstream
from farebox.web.backstage import Health, Service, UpstreamState

_CALLS_OWN: Final = frozenset({b"content-type", b"content-length", b"anthropic-version", b"anthropic-beta"})


class Gatehouse:
    """What pages ask of the gateway of this process."""

    def __init__(self, parts: Parts, messages: Messages, quotes: Quotes) -> None:
        self._keys = parts.keys
        self._prefix = parts.config.keys.prefix
        self._store = parts.store
        self._quotes = quotes
        self._pool = parts.pool
        self._messages = messages
        self._switches = parts.switches
        self._roster = parts.roster
        self._prices = parts.prices
        self._clock = parts.clock

    def service(self, model_id: str) -> Service:
        healthy, all_ = self._pool.ways_up(model_id)
        return "down" if not healthy else "up" if healthy == all_ else "reduced"

    def forget_keys(self) -> None:
        self._keys.forget()

    async def call(self, exchange: Exchange, request_id: bytes, account_id: int, body: bytes) -> None:
        await self._messages.serve(exchange, request_id, await self._playground(exchange, account_id), body)

    async def quote(self, exchange: Exchange, request_id: bytes, account_id: int, body: bytes) -> None:
        await self._quotes.quote(exchange, request_id, await self._playground(exchange, account_id), body)

    async def _playground(self, exchange: Exchange, account_id: int) -> Caller:
        """Give the caller of the playground, and leave of the browser's headers what a call may have."""
        now_us = self._clock()
        digest = await playground_key(self._store, account_id, self._prefix, now_us)
        exchange.headers = [field for field in exchange.headers if field[0] in _CALLS_OWN]
        return await self._keys.of_key(digest, now_us, exchange.peer)

    async def stop_session(self, account_id: int, session: str) -> None:
        await self._messages.stopped.stop(account_id, session, self._clock())
        self._messages.end_stopped()

    async def resume_session(self, account_id: int, session: str) -> None:
        await self._messages.stopped.resume(account_id, session)

    def upstreams(self) -> list[UpstreamState]:
        return [self._state(upstream, asyncio.get_running_loop().time()) for upstream in self._pool.upstreams]

    def broken_upstreams(self) -> list[Broken]:
        return self._roster.broken

    async def follow_upstreams(self) -> None:
        await self._roster.follow()
        await self._switches.follow()

    async def try_upstream(self, name: str, model_id: str) -> Trial | None:
        upstream = next((one for one in self._pool.upstreams if one.name == name), None)
        return await try_upstream(upstream, model_id, self._clock) if upstream is not None else None

    def _state(self, upstream: Upstream, now: float) -> UpstreamState:
        calls, failures = upstream.lately()
        failure = upstream.last_failure
        served = upstream.models or self._prices.now.models
        spared = tuple(sorted(model for model in served if upstream.rate.is_spent(model, now)))
        return UpstreamState(
            name=upstream.name,
            kind=upstream.kind_name,
            source=self._roster.source(upstream.name),
            health=_health_of(upstream, now, limited=bool(spared)),
            test_is_free=is_free(upstream),
            origin=f"{upstream.client.origin.scheme}://{upstream.client.origin.host}:{upstream.client.origin.port}",
            weight=upstream.weight,
            priority=upstream.priority,
            concurrency=upstream.concurrency,
            organization=upstream.organization,
            ejections=upstream.ejections,
            spared=spared,
            left=tuple(sorted(upstream.rate.told())),
            models=tuple(sorted(upstream.models)),
            drained=upstream.drained,
            resting_s=max(0, round(upstream.rests_until - now)),
            in_flight=upstream.in_flight,
            calls=upstream.calls,
            failures=upstream.failures,
            limited=upstream.limited,
            lately_calls=calls,
            lately_failures=failures,
            last_error=_class_of(failure) if failure else "",
            last_error_at_us=self._clock() - round((now - failure.ended_at) * US_PER_S) if failure else None,
        )


def _health_of(upstream: Upstream, now: float, *, limited: bool) -> Health:
    """Name the state of an upstream, as an operator thinks of it."""
    if upstream.drained:
        return "drained"
    if now < upstream.rests_until:
        return "resting"
    if upstream.rests:
        return "half-open"
    if limited:
        return "limited"
    return "returning" if upstream.ramp(now) < 1 else "healthy"


def _class_of(failure: Failure) -> str:
    """Name what a try failed by: its status, or the kind of error."""
    return str(failure.status) if failure.status is not None else failure.error or "refused the operator's account"
