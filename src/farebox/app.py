"""The composition root: everything that lives long is made here, given what it needs, and ended here in turn."""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

import prometheus_client
from msgspec.structs import asdict, replace
from prometheus_client.registry import CollectorRegistry

from farebox.accounts.announcements import Announcements
from farebox.accounts.keyring import KeyRing
from farebox.accounts.mail import Postman
from farebox.accounts.sealing import Seals
from farebox.accounts.signing import Signing
from farebox.accounts.stopped_sessions import StoppedSessions
from farebox.backstage import Gatehouse
from farebox.books.call_receipts import Issuer
from farebox.books.keeping import Bookkeeping, open_books
from farebox.books.ledger import Ledger
from farebox.books.prices import Prices, pin_prices
from farebox.clock import steady_clock
from farebox.config import Config
from farebox.config.show import settings_in_force
from farebox.errors import ConfigError
from farebox.events.herald import Herald
from farebox.gateway.bodies import Bodies
from farebox.gateway.counting import CountLimit
from farebox.gateway.customer import Customer
from farebox.gateway.levels import Levels
from farebox.gateway.listing import Listing
from farebox.gateway.messages import Messages
from farebox.gateway.metrics import Metrics, metrics_server
from farebox.gateway.quote import Quotes
from farebox.gateway.routes import Handler, Routes
from farebox.gateway.settling import Settler
from farebox.gateway.spending import SpendWords
from farebox.gateway.streaming import Streams
from farebox.http.doors import open_doors
from farebox.http.server import HttpServer
from farebox.jobs import Jobs
from farebox.logs import CallLines, Logger, make_logger
from farebox.payments.simulated import SimulatedRail
from farebox.payments.topups import Topups
from farebox.store.protocol import Store
from farebox.upstreams.pool import Pool, Upstream
from farebox.upstreams.settings import UpstreamSettings
from farebox.upstreams.simulator import Simulator
from farebox.upstreams.switches import Switches
from farebox.web.asgi import AsgiDoor
from farebox.web.hub import Hub
from farebox.web.kit import House
from farebox.web.offer import Limits, Offer
from farebox.web.site import make_site

_COLLECT_AFTER: Final = 20_000
"""New objects that outlive the old ones by so many start a round of the garbage collector; 700 by default."""
_TEND_S: Final = 2.0
"""How often top-ups are looked after; on the simulated rail each look is a confirmation."""
_LOOK_OUT_S: Final = 15.0
_END_S: Final = 5.0
"""How long tasks get to end their calls once streams have been stopped."""


async def serve(config: Config) -> int:
    """Serve until SIGTERM or SIGINT, then let calls in flight end. Answers the exit code."""
    await run_until_told(await start_gateway(config))
    return 0


async def run_until_told(gateway: "Gateway", told: asyncio.Event | None = None) -> None:
    """Wait for SIGTERM or SIGINT, or for `told`, then stop the gateway.

    A second signal ends the calls that are still in flight. One that comes with `told` is no second one: who stops all
    processes of a service signals each, and their supervisor as well.
    """
    told = told or asyncio.Event()
    signals = 0

    def tell() -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            gateway.hurry()
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, tell)
    _calm_collector()
    await told.wait()
    await gateway.stop()


async def start_gateway(
    config: Config,
    *,
    simulator: Simulator | None = None,
    logger: Logger | None = None,
    doors: Sequence[socket.socket] = (),
    worker: str = "",
) -> "Gateway":
    """Open the books, resolve what an earlier process left, then open the doors.

    Upstreams of kind "simulator" are served by `simulator`, or by one of their own. A `worker` names itself in its log
    lines, and serves at `doors` that are open already. Raises StoreUnavailable or ConfigError; nothing is left open
    then.
    """
    gateway = Gateway(config, logger, doors, worker)
    try:
        await gateway.start(simulator)
    except BaseException:
        await gateway.stop()
        raise
    return gateway


class Gateway:
    """A running gateway. `port` and `metrics_port` are those it listens on."""

    def __init__(
        self, config: Config, logger: Logger | None, doors: Sequence[socket.socket] = (), worker: str = ""
    ) -> None:
        self.config = config
        self._always = {"worker": worker} if worker else {}
        self.log = (logger or make_logger(config.log.level, config.log.format)).bind(**self._always)
        self._own_logger = logger is None
        self._doors = doors
        self._call_lines: CallLines | None = None
        self.port = 0
        self.metrics_port: int | None = None
        self.clock = steady_clock()
        self.metrics = Metrics()
        self.jobs = Jobs(self.log.error)
        self._ready = False
        self._stopped = asyncio.Event()
        self.books: Bookkeeping | None = None
        self.pool: Pool | None = None
        self._simulators: list[Simulator] = []
        self._server: HttpServer | None = None
        self._metrics_server: HttpServer | None = None
        self._settler: Settler | None = None
        self._streams: Streams | None = None
        self._seals: Seals
        self._signing: Signing
        self.gatehouse: Gatehouse
        self.herald: Herald | None = None
        self._announcements: Announcements
        self.hub: Hub | None = None
        self._prices: Prices
        self._switches: Switches

    async def start(self, simulator: Simulator | None) -> None:
        """Make everything, from the books up to the doors."""
        config = self.config
        books = self.books = await open_books(
            config.books_url,
            plans=config.plans,
            clock=self.clock,
            spool=config.spool_path,
            lease_s=config.database.lease_s,
            warn=self.log.warning,
            alert=self.log.error,
        )
        store, ledger, self.clock = books.store, books.ledger, books.clock
        self._announcements = Announcements(store)
        await self._announcements.refresh(self.clock())
        self.hub = Hub(store, self.clock)
        prices = self._prices = Prices(store, await pin_prices(store, config.models, self.clock()))
        operator = config.site.support_email or "the operator of this gateway"
        keys = KeyRing(store, config.keys.prefix, operator, f"{config.public_url}/dashboard/keys")
        pool = self.pool = await self._make_pool(simulator)
        self._switches = Switches(store, pool)
        await self._switches.follow()
        settler = self._settler = Settler(
            ledger, books.spool, self.metrics, log_call=self._call_log(), alert=self.log.error
        )
        top_up_words = f"top up at {config.public_url}/dashboard/topup"
        spend_words = SpendWords(f"{config.public_url}/dashboard/keys")
        stopped = StoppedSessions(store, f"{config.public_url}/dashboard/work/of")
        await stopped.refresh()
        streams = self._streams = Streams(ledger, config.limits, top_up_words, spend_words, self.clock)
        levels = Levels(config.plans)
        bodies = Bodies(config.limits.bodies_bytes, config.limits.body_bytes)
        counts = CountLimit(config.limits.count_tokens_per_minute, self.clock)
        messages = Messages(
            keys=keys,
            ledger=ledger,
            pool=pool,
            streams=streams,
            settler=settler,
            levels=levels,
            counts=counts,
            bodies=bodies,
            prices=prices,
            features=config.features,
            limits=config.limits,
            clock=self.clock,
            top_up_words=top_up_words,
            spend_words=spend_words,
            stopped=stopped,
        )
        listing = Listing(
            keys=keys,
            pool=pool,
            prices=prices,
            levels=levels,
            counts=counts,
            bodies=bodies,
            features=config.features,
            limits=config.limits,
            clock=self.clock,
        )
        customer, quotes = await self._make_desk(keys, messages, bodies, top_up_words, spend_words)
        self._watch(books, keys, messages, streams)
        await self._open_doors(keys, messages, listing, customer, quotes)

    async def stop(self) -> None:
        """Stop accepting, let calls in flight end for `shutdown_s`, end and settle the rest, close the books."""
        self._ready = False
        if self.hub is not None:
            self.hub.close()
        if self._server is not None and not await self._server.close(self.config.server.shutdown_s):
            if self._streams is not None:
                self._streams.stop()
            await asyncio.wait(self._server.tasks, timeout=_END_S) if self._server.tasks else None
            for task in list(self._server.tasks):
                task.cancel()
            if self._server.tasks:
                await asyncio.wait(self._server.tasks, timeout=_END_S)
        if self._settler is not None and self.books is not None:
            await self._settler.drained()
            await self._settler.retry()
            await self._settler.leave()
        await self.jobs.stop()
        if self.herald is not None:
            await self.herald.courier.close()
        for server in (self._server, self._metrics_server):
            if server is not None:
                await server.shut()
        if self.pool is not None:
            await self.pool.close()
        for simulator in self._simulators:
            await simulator.close()
        if self.books is not None:
            await self.books.close()
            self.books = None
        if self._call_lines is not None:
            self._call_lines.flush()
        self._stopped.set()
        self.log.info("stopped")

    def hurry(self) -> None:
        """While it stops: wait no longer for calls in flight."""
        if self._server is not None:
            self._server.hurry()

    async def stopped(self) -> None:
        """Wait until the gateway has been stopped."""
        await self._stopped.wait()

    @property
    def store(self) -> Store:
        """The books' store, while they are open."""
        assert self.books is not None
        return self.books.store

    @property
    def ledger(self) -> Ledger:
        assert self.books is not None
        return self.books.ledger

    def _watch(self, books: Bookkeeping, keys: KeyRing, messages: Messages, streams: Streams) -> None:
        store, ledger, settler, pool = books.store, books.ledger, self._settler, self.pool
        assert settler is not None
        assert pool is not None
        loop = asyncio.get_running_loop()

        async def tick() -> None:
            now = loop.time()
            streams.tick(now)
            messages.tick(now)
            pool.tick(now)
            if self._call_lines is not None:
                self._call_lines.flush()

        async def follow_changes() -> None:
            if await store.changed_elsewhere():
                keys.forget()
                messages.stopped.is_stale = self._prices.is_stale = self._switches.is_stale = True

        async def read_anew() -> None:
            for followed in (self._prices, self._switches):
                if followed.is_stale:
                    await followed.follow()
            if messages.stopped.is_stale:
                await messages.stopped.refresh()
                messages.end_stopped()

        async def close_past_days() -> None:
            for day in await books.close_days():
                self.log.info("day_closed", day=day)

        async def tend_topups() -> None:
            if books.runs.leads:
                await self._topups(books).tend(self.clock())

        async def tell_news() -> None:
            if self.hub is not None:
                await self.hub.look(one.id for one in self._announcements.shown(self.clock()))

        async def read_announcements() -> None:
            await self._announcements.refresh(self.clock())

        async def end_strays() -> None:
            await books.runs.end_strays()

        self.jobs.every(1.0, "tick", tick)
        self.jobs.every(0.25, "follow_changes", follow_changes)
        self.jobs.every(0.25, "read_anew", read_anew)  # apart: reading may wait for a connection that has died
        self.jobs.every(5.0, "retry_settlements", settler.retry)
        self.jobs.every(30.0, "end_strays", end_strays)
        self.jobs.every(_TEND_S, "tend_topups", tend_topups)
        self.jobs.every(5.0, "read_announcements", read_announcements)
        self.jobs.every(1.0, "tell_news", tell_news)
        self._tell_of_events(books)
        self.jobs.every(60.0, "close_days", close_past_days)
        self.jobs.every(min(1.0, books.runs.beat_s), "beat", books.beat)
        self.metrics.gauges += [
            ("farebox_calls_in_flight", "Calls being served", lambda: messages.in_flight),
            ("farebox_streams_open", "Streams being relayed", lambda: len(streams)),
            ("farebox_unsettled", "Holds whose end could not be written yet", lambda: len(settler.unsettled)),
            ("farebox_spooled", "Settles on disk that are not in the books yet", lambda: len(books.spool.waiting)),
            ("farebox_ledger_commands", "Commands given to the ledger", lambda: ledger.commands),
            ("farebox_ledger_batches", "Batches those were written in", lambda: ledger.batches),
            ("farebox_upstream_retries", "Calls tried again at an upstream", lambda: pool.retries),
            ("farebox_job_failures", "Failed runs of background jobs", lambda: self.jobs.failures),
        ]

    def _tell_of_events(self, books: Bookkeeping) -> None:
        """Begin the jobs that tell customers what happens: by mail and by webhook."""
        postman = Postman(books.store, self.config.mail, self.log.error)

        async def send_mail() -> None:
            if books.runs.leads:
                await postman.send(self.clock())

        herald = self.herald = Herald(
            books.store,
            self._seals,
            allow_private=self.config.webhooks.allow_private,
            site_name=self.config.site.name,
            public_url=self.config.public_url,
        )

        async def look_out() -> None:
            if books.runs.leads:
                await herald.lookout.look(self.clock())

        async def send_events() -> None:
            if books.runs.leads:
                await herald.courier.send(self.clock())

        self.jobs.every(5.0, "send_mail", send_mail)
        self.jobs.every(_LOOK_OUT_S, "look_out", look_out)
        self.jobs.every(1.0, "send_events", send_events)

    def _call_log(self) -> Callable[..., object]:
        settings = self.config.log
        if not settings.calls or settings.level in {"warning", "error"}:
            return self.log.debug
        if self._own_logger and settings.format == "json":
            self._call_lines = CallLines(_write_stderr, self.clock, self._always)
            return self._call_lines
        return self.log.info

    async def _make_pool(self, simulator: Simulator | None) -> Pool:
        limits = self.config.limits
        upstreams = []
        for settings in self.config.upstreams:
            if settings.kind == "simulator" and not settings.base_url:
                port = simulator.port if simulator else await self._simulate(settings.speed)
                settings = _at(settings, f"http://127.0.0.1:{port}")  # noqa: PLW2901
            try:
                upstreams.append(Upstream(settings, connect_s=limits.connect_s, stall_s=limits.stall_s))
            except ValueError as error:
                raise ConfigError(f"upstream {settings.name!r}: {error}") from error
        return Pool(
            upstreams,
            attempts=limits.attempts,
            retry_budget=limits.retry_budget,
            retry_wait_s=limits.retry_wait_s,
            retry_after_max_s=limits.retry_after_max_s,
            first_byte_s=limits.first_byte_s,
        )

    async def _simulate(self, speed: float | None) -> int:
        """Start a simulator that remembers no request (promise 9). Answers its port."""
        simulator = Simulator(speed=speed, keep=0)
        self._simulators.append(simulator)
        return await simulator.listen()

    async def _make_desk(
        self, keys: KeyRing, messages: Messages, bodies: Bodies, top_up_words: str, spend_words: SpendWords
    ) -> tuple[Customer, Quotes]:
        """Make what answers customers' programs about their accounts, and what quotes prices."""
        config = self.config
        self._seals = await Seals.open(self.store, config.server.secret, self.clock())
        self._signing = await Signing.open(self.store, self._seals, self.clock())
        questions = CountLimit(config.limits.questions_per_minute, self.clock)
        customer = Customer(
            keys=keys,
            store=self.store,
            plans=config.plans,
            signing=self._signing,
            issuer=Issuer(config.site.name, config.public_url),
            questions=questions,
            clock=self.clock,
        )
        quotes = Quotes(
            keys=keys,
            store=self.store,
            prices=self._prices,
            features=config.features,
            limits=config.limits,
            bodies=bodies,
            questions=questions,
            stopped=messages.stopped,
            clock=self.clock,
            top_up_words=top_up_words,
            spend_words=spend_words,
        )
        return customer, quotes

    async def _open_doors(
        self, keys: KeyRing, messages: Messages, listing: Listing, customer: Customer, quotes: Quotes
    ) -> None:
        config = self.config
        routes = Routes(
            base_path=config.server.base_path,
            clock=self.clock,
            metrics=self.metrics,
            log_error=self.log.error,
            is_ready=lambda: self._ready and self.books is not None and self.books.available,
        )
        routes.add("POST", "/messages", messages.serve)
        routes.add("POST", "/messages/count_tokens", listing.count_tokens)
        routes.add("GET", "/models", listing.models)
        routes.add("GET", "/models/*", listing.model)
        routes.add("POST", "/messages/quote", quotes.quote)
        routes.add("GET", "/balance", customer.balance)
        routes.add("GET", "/usage", customer.usage)
        routes.add("GET", "/key", customer.key)
        routes.add("GET", "/requests/*/receipt", customer.receipt)
        routes.add("GET", "/requests/*", customer.request)
        routes.add("GET", "/statusline", customer.statusline)
        routes.add_pages(self._make_site(keys, messages, quotes))
        await self._open_metrics()
        server = HttpServer(
            routes.handle,
            on_bad_request=routes.bad_request,
            limits=config.server_limits,
            proxies=config.server.trusted,
        )
        self.port = await server.listen_at(self._doors or doors_at(config.server.host, config.server.port))
        self._server = server
        self._ready = True
        self.log.info("listening", host=config.server.host, port=self.port, metrics_port=self.metrics_port)

    def _make_site(self, keys: KeyRing, messages: Messages, quotes: Quotes) -> Handler:
        config = self.config
        assert self.pool is not None
        assert self.books is not None
        assert self.herald is not None
        assert self.hub is not None
        self.gatehouse = Gatehouse(
            keys=keys,
            prefix=config.keys.prefix,
            store=self.store,
            pool=self.pool,
            messages=messages,
            quotes=quotes,
            switches=self._switches,
            clock=self.clock,
        )
        site = make_site(
            self.store,
            self.ledger,
            self.gatehouse,
            self._topups(self.books),
            self._announcements,
            self.herald.webhooks,
            self.hub,
            clock=self.clock,
            seals=self._seals,
            signing=self._signing,
            offer=_offer_of(config, self._prices),
            name=config.site.name,
            support_email=config.site.support_email,
            house=House(
                site_name=config.site.name,
                admin_factor=config.site.admin_factor,
                cost_percent=config.site.cost_percent,
                mail_host=config.mail.host,
                settings=settings_in_force(config),
            ),
            providers=config.sign_in,
        )
        return AsgiDoor(site, scheme=config.public_url.partition(":")[0]).serve

    def _topups(self, books: Bookkeeping) -> Topups:
        """Make what opens and credits top-ups, by the rails that are configured."""
        return Topups(
            books.store,
            books.ledger,
            (SimulatedRail(),) if self.config.payments.simulated else (),
            self.config.plans,
            site=self.config.site.name,
            public_url=self.config.public_url,
        )

    async def _open_metrics(self) -> None:
        address = self.config.server.metrics_address
        if address is None:
            return
        self._metrics_server = metrics_server(self.registry(), self.log.error)
        self.metrics_port = await self._metrics_server.listen_at(doors_at(*address))

    def registry(self) -> CollectorRegistry:
        """Collect what this process counts, with what the system says of it (process_*)."""
        registry = CollectorRegistry()
        registry.register(self.metrics)
        prometheus_client.ProcessCollector(registry=registry)
        return registry


def _offer_of(config: Config, prices: Prices) -> Offer:
    """Pick what customers are told out of the configuration."""
    limits = config.limits
    return Offer(
        prices=prices,
        plans=tuple(config.plans),
        limits=Limits(
            default_max_tokens=limits.default_max_tokens,
            slice_tokens=limits.slice_tokens,
            drain_s=limits.drain_s,
            call_s=limits.call_s,
            count_tokens_per_minute=limits.count_tokens_per_minute,
            questions_per_minute=limits.questions_per_minute,
            body_bytes=limits.body_bytes,
            header_bytes=config.server_limits.header_bytes,
        ),
        features=asdict(config.features),
        base_url=config.base_url,
        public_url=config.public_url,
        key_prefix=config.keys.prefix,
        sign_up=config.site.sign_up,
        private_webhooks=config.webhooks.allow_private,
        texts=config.site_texts,
    )


def doors_at(host: str, port: int) -> list[socket.socket]:
    """Open doors; says what to do where they cannot be opened. Raises ConfigError."""
    try:
        return open_doors(host, port)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; "
            "choose another port, or stop what uses this one"
        ) from error


def _calm_collector() -> None:
    """Keep the garbage collector off what lives as long as the process, and let calls come and go between its rounds.

    A call leaves no cycles behind; looking for them took 5 % of the time of a busy gateway.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def _write_stderr(lines: bytes) -> None:
    sys.stderr.buffer.write(lines)
    sys.stderr.buffer.flush()


def _at(settings: UpstreamSettings, base_url: str) -> UpstreamSettings:
    return replace(settings, base_url=base_url)
