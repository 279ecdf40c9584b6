"""The composition root: everything that lives long is made here, given what it needs, and ended here in turn."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

import prometheus_client
from msgspec import Struct
from msgspec.structs import replace
from prometheus_client.registry import Collector, CollectorRegistry

from farebox.backstage import Gatehouse
from farebox.books.call_receipts import Issuer
from farebox.books.keeping import Bookkeeping, open_books
from farebox.books.ledger import Ledger
from farebox.chores import begin_chores
from farebox.clock import steady_clock
from farebox.config import Config
from farebox.errors import ConfigError, StoreUnavailable
from farebox.frontage import make_frontage
from farebox.gateway.batches.open import Batching, open_batches
from farebox.gateway.bodies import Bodies
from farebox.gateway.chat import front as chat
from farebox.gateway.chat.answer import refusal_of
from farebox.gateway.checkup import Checkup
from farebox.gateway.counting import CountLimit
from farebox.gateway.customer import Customer
from farebox.gateway.fallbacks import Fallbacks
from farebox.gateway.files.desk import Files
from farebox.gateway.levels import Levels
from farebox.gateway.listing import Listing
from farebox.gateway.messages import Messages
from farebox.gateway.metrics import Metrics, metrics_server
from farebox.gateway.quote import Quotes
from farebox.gateway.recount import Recount
from farebox.gateway.routes import Routes
from farebox.gateway.settling import Settler
from farebox.gateway.spending import SpendWords
from farebox.gateway.streaming import Streams
from farebox.gateway.upstream_metrics import upstream_metrics
from farebox.http.doors import close_doors, doors_at
from farebox.http.server import HttpServer
from farebox.jobs import Jobs
from farebox.logs import CallLines, Logger, make_logger
from farebox.parts import Parts, make_parts
from farebox.store.protocol import Store
from farebox.upstreams.pool import Pool
from farebox.upstreams.settings import UpstreamSettings
from farebox.upstreams.simulator import Simulator
from farebox.upstreams.upstream import Upstream

_END_S: Final = 5.0
"""How long tasks get to end their calls once streams have been stopped."""
_SWEEP_S: Final = 60.0


class Inheritance(Struct, frozen=True):
    """What a gateway takes over from the process that served before it, which may still be ending its calls."""

    doors: Sequence[socket.socket] = ()
    """Listening already; none: it opens its own."""
    metrics_doors: Sequence[socket.socket] = ()
    books_lock: int | None = None
    """The lock of books that one process serves."""
    adding: Callable[[Collector], Collector] = lambda own: own
    """Adds to what this process counts what others have counted."""


async def start_gateway(
    config: Config,
    *,
    simulator: Simulator | None = None,
    logger: Logger | None = None,
    inheritance: Inheritance | None = None,
    worker: str = "",
) -> "Gateway":
    """Open the books, resolve what an earlier process left, then open the doors.

    Upstreams of kind "simulator" are served by `simulator`, or by one of their own. A `worker` names itself in its log
    lines. Raises StoreUnavailable or ConfigError; nothing is left open
    then.
    """
    gateway = Gateway(config, logger, inheritance or Inheritance(), worker)
    try:
        await gateway.start(simulator)
    except BaseException:
        await gateway.stop()
        raise
    return gateway


class Gateway:
    """A running gateway. `port` and `metrics_port` are those it listens on."""

    def __init__(self, config: Config, logger: Logger | None, inheritance: Inheritance, worker: str = "") -> None:
        self.config = config
        self._always = {"worker": worker} if worker else {}
        self.log = (logger or make_logger(config.log.level, config.log.format)).bind(**self._always)
        self._own_logger = logger is None
        self._inheritance = inheritance
        self.doors = list(inheritance.doors)
        self.metrics_doors = list(inheritance.metrics_doors)
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
        self._simulator: Simulator | None = None
        self._simulators: dict[float | None, Simulator] = {}
        self._server: HttpServer | None = None
        self._metrics_server: HttpServer | None = None
        self._settler: Settler | None = None
        self._streams: Streams | None = None
        self._batching: Batching | None = None
        self.files: Files | None = None
        self.parts: Parts | None = None
        self.gatehouse: Gatehouse

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
            inherited_lock=self._inheritance.books_lock,
        )
        ledger, self.clock = books.ledger, books.clock
        self._simulator = simulator
        pool = self.pool = await self._make_pool()
        parts = self.parts = await make_parts(config, books, pool, self.log, self._make_upstream)
        if not pool.upstreams:
            self.log.warning("no_upstreams", add_one_at=f"{config.public_url}/admin/upstreams")
        settler = self._settler = Settler(
            ledger, books.spool, self.metrics, log_call=self._call_log(), alert=self.log.error
        )
        top_up_words = f"top up at {config.public_url}/dashboard/topup"
        spend_words = SpendWords(f"{config.public_url}/dashboard/keys")
        streams = self._streams = Streams(ledger, config.limits, top_up_words, spend_words, self.clock)
        levels = Levels(config.plans)
        bodies = Bodies(config.limits.bodies_bytes, config.limits.body_bytes)
        counts = CountLimit(config.limits.count_tokens_per_minute, self.clock)
        fallbacks = Fallbacks(parts.keys, ledger, pool, config.features, config.limits)
        files = self.files = self._make_files(parts, levels)
        messages = Messages(
            keys=parts.keys,
            ledger=ledger,
            pool=pool,
            streams=streams,
            settler=settler,
            recount=Recount(pool, config.limits.recount_s),
            fallbacks=fallbacks,
            levels=levels,
            counts=counts,
            bodies=bodies,
            prices=parts.prices,
            features=config.features,
            limits=config.limits,
            clock=self.clock,
            top_up_words=top_up_words,
            spend_words=spend_words,
            stopped=parts.stopped,
            files=files,
        )
        listing = Listing(
            keys=parts.keys,
            pool=pool,
            prices=parts.prices,
            levels=levels,
            counts=counts,
            bodies=bodies,
            features=config.features,
            limits=config.limits,
            clock=self.clock,
            files=files,
        )
        customer, quotes, checkup = self._make_desk(parts, bodies, top_up_words, spend_words)
        batching = self._batching = self._make_batching(parts, levels, counts, top_up_words)
        begin_chores(parts, self.jobs, settler, messages, streams, batching.upkeep, self._flush_lines)
        self._gauge(parts, settler, messages, streams)
        if files is not None:
            self.jobs.every(_SWEEP_S, "files", files.tick)
        await self._open_doors(parts, messages, listing, customer, quotes, checkup, batching, files)

    async def retire(self) -> None:
        """Let the process that has taken over do what is new, and end what is under way, for `handover_s` at most.

        Until then all goes on but what one process does for all. `stop` must follow.
        """
        assert self.parts is not None
        assert self._server is not None
        self.log.info("retiring", for_s=self.config.server.handover_s)
        with contextlib.suppress(StoreUnavailable):  # then the lead lapses
            await self.parts.books.runs.follow()
        self._server.close_doors()
        close_doors(self.doors)
        self.parts.hub.close()  # browsers come back at once, to the other process
        await self._server.hand_over(self.config.server.handover_s)

    async def close_metrics(self) -> None:
        """Let another process serve the metrics from now on."""
        if self._metrics_server is not None:
            await self._metrics_server.close(0)
            close_doors(self.metrics_doors)
            await self._metrics_server.shut()
            self._metrics_server = None

    async def open_metrics(self) -> None:
        """Serve the metrics, where they are to be served."""
        if not self.metrics_doors:
            return
        self._metrics_server = metrics_server(self._inheritance.adding(self.registry()), self.log.error)
        self.metrics_port = await self._metrics_server.listen_at(self.metrics_doors)

    async def stop(self) -> None:
        """Stop accepting, let calls in flight end for `shutdown_s`, end and settle the rest, close the books."""
        self._ready = False
        if self.parts is not None:
            self.parts.hub.close()
        if self._server is not None:
            self._server.close_doors()
        close_doors(self.doors)
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
        if self._batching is not None:
            await self._batching.upkeep.stop()
        if self.parts is not None:
            await self.parts.herald.courier.close()
            await self.parts.till.close()
        for server in (self._server, self._metrics_server):
            if server is not None:
                await server.shut()
        if self.parts is not None:
            await self.parts.roster.close()
        if self.pool is not None:
            await self.pool.close()
        for simulator in self._simulators.values():
            await simulator.close()
        if self.books is not None:
            await self.books.close()
            self.books = None
        self._flush_lines()
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

    def _gauge(self, parts: Parts, settler: Settler, messages: Messages, streams: Streams) -> None:
        """Name what is counted elsewhere, for whoever looks at the metrics."""
        spool = parts.books.spool
        self.metrics.gauges += [
            ("farebox_calls_in_flight", "Calls being served", lambda: messages.in_flight),
            ("farebox_requests_waiting", "In the queue", lambda: self._server.turnstile.waiting if self._server else 0),
            ("farebox_streams_open", "Streams being relayed", lambda: len(streams)),
            ("farebox_unsettled", "Holds whose end could not be written yet", lambda: len(settler.unsettled)),
            (
                "farebox_spooled",
                "Settles on disk that are not in the books yet",
                lambda: len(spool.waiting),
            ),
            ("farebox_ledger_commands", "Commands given to the ledger", lambda: parts.ledger.commands),
            ("farebox_ledger_batches", "Batches those were written in", lambda: parts.ledger.batches),
            ("farebox_fallbacks", "Calls turned to another model", lambda: messages.fallbacks.taken),
            ("farebox_upstream_retries", "Calls tried again at an upstream", lambda: parts.pool.retries),
            ("farebox_job_failures", "Failed runs of background jobs", lambda: self.jobs.failures),
        ]
        self.metrics.more.append(lambda: upstream_metrics(parts.pool))

    def _flush_lines(self) -> None:
        if self._call_lines is not None:
            self._call_lines.flush()

    def _call_log(self) -> Callable[..., object]:
        settings = self.config.log
        if not settings.calls or settings.level in {"warning", "error"}:
            return self.log.debug
        if self._own_logger and settings.format == "json":
            self._call_lines = CallLines(_write_stderr, self.clock, self._always)
            return self._call_lines
        return self.log.info

    async def _make_pool(self) -> Pool:
        limits = self.config.limits
        upstreams = []
        for settings in self.config.upstreams:
            try:
                upstreams.append(await self._make_upstream(settings))
            except ValueError as error:
                raise ConfigError(f"upstream {settings.name!r}: {error}") from error
        return Pool(
            upstreams,
            attempts=limits.attempts,
            retry_budget=limits.retry_budget,
            retry_wait_s=limits.retry_wait_s,
            retry_after_max_s=limits.retry_after_max_s,
            first_byte_s=limits.first_byte_s,
            alert=self.log.error,
        )

    async def _make_upstream(self, settings: UpstreamSettings) -> Upstream:
        """Make an upstream; one that is a simulator in this process has it started. Raises ValueError."""
        if settings.kind == "simulator" and not settings.base_url:
            port = self._simulator.port if self._simulator else await self._simulate(settings.speed)
            settings = replace(settings, base_url=f"http://127.0.0.1:{port}")
        limits = self.config.limits
        return Upstream(settings, connect_s=limits.connect_s, stall_s=limits.stall_s)

    async def _simulate(self, speed: float | None) -> int:
        """Have a simulator of that speed, which remembers no request (promise 9). Answers its port."""
        if speed not in self._simulators:
            self._simulators[speed] = Simulator(speed=speed, keep=0)
            await self._simulators[speed].listen()
        return self._simulators[speed].port

    def _make_desk(
        self, parts: Parts, bodies: Bodies, top_up_words: str, spend_words: SpendWords
    ) -> tuple[Customer, Quotes, Checkup]:
        """Make what answers customers' programs about their accounts, and what quotes prices."""
        config = self.config
        questions = CountLimit(config.limits.questions_per_minute, self.clock)
        customer = Customer(
            keys=parts.keys,
            store=self.store,
            plans=config.plans,
            signing=parts.signing,
            issuer=Issuer(config.site.name, config.public_url),
            questions=questions,
            clock=self.clock,
        )
        quotes = Quotes(
            keys=parts.keys,
            store=self.store,
            prices=parts.prices,
            features=config.features,
            limits=config.limits,
            bodies=bodies,
            questions=questions,
            stopped=parts.stopped,
            clock=self.clock,
            top_up_words=top_up_words,
            spend_words=spend_words,
        )
        checkup = Checkup(
            keys=parts.keys,
            store=self.store,
            pool=parts.pool,
            prices=parts.prices,
            questions=questions,
            clock=self.clock,
            public_url=config.public_url,
            base_path=config.server.base_path,
        )
        return customer, quotes, checkup

    def _make_files(self, parts: Parts, levels: Levels) -> Files | None:
        """Make what serves files, where the operator has switched them on."""
        if not self.config.features.files:
            return None
        books, limits = parts.books, self.config.limits
        questions = CountLimit(limits.questions_per_minute, self.clock)
        leads = lambda: books.runs.leads and books.available  # noqa: E731
        return Files(self.store, parts.pool, parts.keys, levels, limits, questions, self.clock, leads, self.log.info)

    def _make_batching(self, parts: Parts, levels: Levels, counts: CountLimit, top_up_words: str) -> Batching:
        """Make what serves message batches and works on them."""
        config = self.config
        return open_batches(
            store=self.store,
            ledger=parts.ledger,
            pool=parts.pool,
            keys=parts.keys,
            seals=parts.seals,
            prices=parts.prices,
            levels=levels,
            counts=counts,
            metrics=self.metrics,
            features=config.features,
            limits=config.limits,
            settings=config.batches,
            clock=self.clock,
            leads=lambda: parts.books.runs.leads and parts.books.available,
            public_url=config.server.public_url,
            base_path=config.server.base_path,
            top_up_words=top_up_words,
            log=self.log.info,
            alert=self.log.error,
        )

    async def _open_doors(
        self,
        parts: Parts,
        messages: Messages,
        listing: Listing,
        customer: Customer,
        quotes: Quotes,
        checkup: Checkup,
        batching: Batching,
        files: Files | None,
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
        routes.add("POST", chat.PATH, chat.Chat(messages, parts.prices, self.clock).serve)
        routes.refuse_as(chat.PATH, refusal_of)
        routes.add("POST", "/messages/count_tokens", listing.count_tokens)
        routes.add("POST", "/messages/batches", batching.desk.create)
        routes.add("GET", "/messages/batches", batching.desk.list)
        routes.add("POST", "/messages/batches/*/cancel", batching.desk.cancel)
        routes.add("GET", "/messages/batches/*/results", batching.desk.results)
        routes.add("GET", "/messages/batches/*", batching.desk.look)
        routes.add("DELETE", "/messages/batches/*", batching.desk.delete)
        if files is not None:
            files.add_to(routes)
        routes.add("GET", "/models", listing.models)
        routes.add("GET", "/models/*", listing.model)
        routes.add("POST", "/messages/quote", quotes.quote)
        routes.add("GET", "/balance", customer.balance)
        routes.add("GET", "/usage", customer.usage)
        routes.add("GET", "/key", customer.key)
        routes.add("GET", "/requests/*/receipt", customer.receipt)
        routes.add("GET", "/requests/*", customer.request)
        routes.add("GET", "/statusline", customer.statusline)
        routes.add("GET", "/doctor", checkup.doctor)
        routes.add("GET", "/doctor/stream", checkup.stream)
        self.gatehouse = Gatehouse(parts, messages, quotes)
        routes.add_pages(make_frontage(parts, self.gatehouse))
        if not self._inheritance.doors:  # else whoever served before closes them first
            address = config.server.metrics_address
            self.metrics_doors = doors_at(*address) if address is not None else []
            await self.open_metrics()
        self.doors = self.doors or doors_at(config.server.host, config.server.port)
        server = HttpServer(
            routes.handle,
            on_bad_request=routes.bad_request,
            limits=config.server_limits,
            proxies=config.server.trusted,
        )
        self.port = await server.listen_at(self.doors)
        self._server = server
        self._ready = True
        self.log.info("listening", host=config.server.host, port=self.port, metrics_port=self.metrics_port)

    def registry(self) -> CollectorRegistry:
        """Collect what this process counts, with what the system says of it (process_*)."""
        registry = CollectorRegistry()
        registry.register(self.metrics)
        prometheus_client.ProcessCollector(registry=registry)
        return registry


def _write_stderr(lines: bytes) -> None:
    sys.stderr.buffer.write(lines)
    sys.stderr.buffer.flush()
