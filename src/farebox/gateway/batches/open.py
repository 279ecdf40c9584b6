"""The parts of message batches, made and wired in one place."""

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from farebox.accounts.keyring import KeyRing
from farebox.accounts.sealing import Seals
from farebox.books.ledger import Ledger
from farebox.books.prices import Prices
from farebox.clock import Clock
from farebox.gateway.batches.charges import Charges
from farebox.gateway.batches.counted import Counting
from farebox.gateway.batches.desk import Desk
from farebox.gateway.batches.entries import Reading
from farebox.gateway.batches.making import Making
from farebox.gateway.batches.native import Log, Native
from farebox.gateway.batches.own import OwnRuns
from farebox.gateway.batches.records import Records
from farebox.gateway.batches.settings import BatchSettings
from farebox.gateway.batches.upkeep import Upkeep
from farebox.gateway.bodies import Bodies
from farebox.gateway.counting import CountLimit
from farebox.gateway.levels import Levels
from farebox.gateway.metrics import Metrics
from farebox.gateway.settings import CallLimits, Features
from farebox.store.protocol import Store
from farebox.upstreams.pool import Pool

_BODIES: Final = 4
"""So many of the largest batches are taken in at a time, one of an account."""


class Batching(Struct, frozen=True):
    """What answers requests about batches, and what works on them."""

    desk: Desk
    upkeep: Upkeep


def open_batches(
    *,
    store: Store,
    ledger: Ledger,
    pool: Pool,
    keys: KeyRing,
    seals: Seals,
    prices: Prices,
    levels: Levels,
    counts: CountLimit,
    metrics: Metrics,
    features: Features,
    limits: CallLimits,
    settings: BatchSettings,
    clock: Clock,
    leads: Callable[[], bool],
    public_url: str,
    base_path: str,
    top_up_words: str,
    log: Log,
    alert: Log,
) -> Batching:
    """Make them. Nothing runs until `upkeep.tick` is called."""
    records, questions = Records(store), CountLimit(limits.questions_per_minute, clock)
    charges = Charges(store, ledger, prices, records, metrics, alert)
    native = Native(pool, records, charges, clock, log, alert)
    own = OwnRuns(pool, records, charges, clock, settings.at_once, limits.retry_wait_s, log=log, alert=alert)
    making = Making(
        store=store,
        ledger=ledger,
        records=records,
        charges=charges,
        native=native,
        own=own,
        counting=Counting(pool, counts),
        seals=seals,
        settings=settings,
        clock=clock,
        top_up_words=top_up_words,
        alert=alert,
    )
    desk = Desk(
        keys=keys,
        prices=prices,
        levels=levels,
        bodies=Bodies(_BODIES * settings.batch_bytes, settings.batch_bytes),
        questions=questions,
        reading=Reading(keys, features, limits, settings),
        making=making,
        native=native,
        own=own,
        records=records,
        seals=seals,
        settings=settings,
        clock=clock,
        public_url=public_url,
        base_path=base_path,
    )
    upkeep = Upkeep(
        making, native, own, records, charges, seals,
        leads=leads, clock=clock, poll_s=settings.poll_s, log=log, alert=alert,
    )  # fmt: skip
    return Batching(desk, upkeep)
