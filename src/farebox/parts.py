"""The parts of a running gateway that calls, pages and jobs share, made in one place."""

from collections.abc import Awaitable, Callable

from msgspec import Struct

from farebox.accounts.announcements import Announcements
from farebox.accounts.keyring import KeyRing
from farebox.accounts.sealing import Seals
from farebox.accounts.signing import Signing
from farebox.accounts.stopped_sessions import StoppedSessions
from farebox.bills.reports import Bills
from farebox.bills.watch import BillWatch
from farebox.books.keeping import Bookkeeping
from farebox.books.ledger import Ledger
from farebox.books.prices import Prices, pin_prices
from farebox.clock import Clock
from farebox.config import Config
from farebox.events.herald import Herald
from farebox.http.errands import Errands
from farebox.logs import Logger
from farebox.payments.till import Till, TillSettings, make_till
from farebox.store.protocol import Store
from farebox.upstreams.pool import Pool
from farebox.upstreams.roster import Roster
from farebox.upstreams.settings import UpstreamSettings
from farebox.upstreams.switches import Switches
from farebox.upstreams.upstream import Upstream
from farebox.web.hub import Hub


class Parts(Struct, frozen=True, kw_only=True):
    """Everything that lives as long as the gateway and is used in more than one place."""

    config: Config
    log: Logger
    books: Bookkeeping
    pool: Pool
    keys: KeyRing
    seals: Seals
    signing: Signing
    prices: Prices
    roster: Roster
    switches: Switches
    stopped: StoppedSessions
    announcements: Announcements
    hub: Hub
    herald: Herald
    till: Till
    bills: BillWatch

    @property
    def store(self) -> Store:
        return self.books.store

    @property
    def ledger(self) -> Ledger:
        return self.books.ledger

    @property
    def clock(self) -> Clock:
        return self.books.clock


async def make_parts(
    config: Config,
    books: Bookkeeping,
    pool: Pool,
    log: Logger,
    make_upstream: Callable[[UpstreamSettings], Awaitable[Upstream]],
) -> Parts:
    """Make them, and read what they go by. Raises StoreUnavailable."""
    store, clock, site = books.store, books.clock, config.site
    seals = await Seals.open(store, config.server.secret, clock())
    operator = site.support_email or "the operator of this gateway"
    prices = Prices(store, await pin_prices(store, config.models, clock()))
    parts = Parts(
        config=config,
        log=log,
        books=books,
        pool=pool,
        keys=KeyRing(store, config.keys.prefix, operator, f"{config.public_url}/dashboard/keys"),
        seals=seals,
        signing=await Signing.open(store, seals, clock()),
        prices=prices,
        roster=Roster(store, pool, seals, make_upstream, log.error),
        switches=Switches(store, pool),
        stopped=StoppedSessions(store, f"{config.public_url}/dashboard/agents/of"),
        announcements=Announcements(store),
        hub=Hub(store, clock),
        herald=Herald(
            store,
            seals,
            allow_private=config.webhooks.allow_private,
            site_name=site.name,
            public_url=config.public_url,
        ),
        till=make_till(
            TillSettings(payments=config.payments, bitcoin=config.bitcoin, evm=config.evm, btcpay=config.btcpay),
            store,
            books.ledger,
            config.plans,
            site=site.name,
            public_url=config.public_url,
            warn=log.warning,
        ),
        bills=BillWatch(config.bills, Bills(Errands(allow_private=True)), store, prices, clock, log.error),
    )
    await parts.announcements.refresh(clock())
    await parts.roster.follow()
    await parts.switches.follow()
    await parts.stopped.refresh()
    return parts
