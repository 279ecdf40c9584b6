"""The watcher of a BTCPay Server: asks about invoices when a webhook names them, and again and again without one.

What is open is asked about each minute, what is of the last week each hour, and everything each day for as long as the
server itself watches its invoices. One look asks about a slice; the next goes on where it ended.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from farebox.clock import DAY_US, US_PER_S
from farebox.errors import RailTrouble
from farebox.payments.btcpay import BITCOIN, BY_LIGHTNING, NAME
from farebox.payments.btcpay_api import CHAIN, MONITORED_MINUTES, BtcpayApi, Invoice, OddAnswer, Paid
from farebox.payments.deposits import Deposits
from farebox.payments.incidents import Kind, opened
from farebox.payments.rails import Sighting, Tip
from farebox.payments.records import Payment, Topup, placeholders, select_topups, unfinished
from farebox.store.protocol import Statement, Store

MINUTE_US: Final = 60 * US_PER_S
MONITORED_US: Final = MONITORED_MINUTES * MINUTE_US + DAY_US
_SLICE: Final = 50
"""Invoices of one round in one look."""
_EVENTS: Final = 200
_AT_ONCE: Final = 4
_TRIES_US: Final = 5 * MINUTE_US
"""A webhook whose invoice alone cannot be read for so long is left to the rounds."""
_KEPT_US: Final = 30 * DAY_US
"""How long webhooks are remembered."""
_CURSOR: Final = (
    "INSERT INTO watcher (name, cursor) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET cursor = excluded.cursor"
)
_DONE: Final = "UPDATE processor_event SET done_at = ? WHERE done_at IS NULL AND id = ?"


class Round(msgspec.Struct, frozen=True):
    """Top-ups that are asked about again and again. `where` says which, of those that ended within `within_us`."""

    name: str
    every_us: int
    within_us: int
    where: str = ""


ROUNDS: Final = (
    Round("open", MINUTE_US, MONITORED_US, "AND state IN ('waiting', 'seen', 'confirming') "),
    Round("week", 60 * MINUTE_US, 7 * DAY_US),
    Round("all", DAY_US, MONITORED_US),
)


class Progress(msgspec.Struct, frozen=True):
    """How far a round has come: when it began, and behind which top-up it goes on; None: it is through."""

    began_us: int = 0
    behind: tuple[int, str] | None = None


class _Seen(msgspec.Struct, frozen=True):
    """What was read about one top-up."""

    sightings: list[Sighting]
    problem: tuple[Kind, str] | None = None


class BtcpayWatcher:
    """See Watcher."""

    name: str = NAME
    pause_s: float = 2.0

    def __init__(self, store: Store, deposits: Deposits, api: BtcpayApi) -> None:
        self._store = store
        self._deposits = deposits
        self._api = api
        self._heard_us = 0

    async def look(self, now_us: int) -> Tip:
        events = await self._events()
        topups = {one.reference: one for one in await self._named(ref for _, ref, _ in events)}
        progress, due = await self._due(now_us)
        topups |= {one.reference: one for one in due}
        seen, failed, stopped = await self._ask(list(topups.values()), now_us)
        if not topups:
            await self._probe(now_us)
        await self._deposits.apply([one for answer in seen.values() for one in answer.sightings], now_us)
        statements = await self._incidents(seen, failed, now_us)
        for event_id, ref, received_us in events:
            given_up = stopped is None and now_us - received_us > _TRIES_US
            if ref not in topups or ref in seen or isinstance(failed.get(ref), OddAnswer) or given_up:
                statements.append((_DONE, (now_us, event_id)))
        if stopped is None:
            statements += _moved(await self._progress(), progress)
        if statements:
            await self._store.write(statements)
        silent = [one for one in failed.values() if not isinstance(one, OddAnswer)]
        if stopped is not None or silent:
            raise stopped or silent[0]
        return Tip(0, "", now_us)

    async def close(self) -> None:
        await self._api.close()

    async def _events(self) -> list[tuple[str, str, int]]:
        """Give the webhooks nobody has gone after: id, invoice, when they came."""
        rows = await self._store.fetch(
            "SELECT id, ref, received_at FROM processor_event WHERE done_at IS NULL AND rail = ? "
            "ORDER BY received_at, id LIMIT ?",
            (self.name, _EVENTS),
        )
        return [(str(event_id), str(ref), int(received)) for event_id, ref, received in rows]

    async def _named(self, references: Iterable[str]) -> list[Topup]:
        named = sorted(set(references))
        if not named:
            return []
        return await select_topups(
            self._store, f"WHERE reference IN ({placeholders(named)}) AND rail = ?", (*named, self.name)
        )

    async def _progress(self) -> dict[str, Progress]:
        rows = await self._store.fetch("SELECT cursor FROM watcher WHERE name = ?", (self.name,))
        try:
            return msgspec.json.decode(rows[0][0] if rows else "{}", type=dict[str, Progress])
        except msgspec.DecodeError:  # none yet: everything is due
            return {}

    async def _due(self, now_us: int) -> tuple[dict[str, Progress], list[Topup]]:
        """Give the next slice of every round that is due, and how far each has come after it."""
        before, after, due = await self._progress(), dict[str, Progress](), list[Topup]()
        for one in ROUNDS:
            progress = before.get(one.name, Progress())
            if progress.behind is None:
                if 0 <= now_us - progress.began_us < one.every_us:
                    continue
                progress = Progress(now_us, (now_us - one.within_us, ""))
            assert progress.behind is not None
            at_us, topup_id = progress.behind
            found = await select_topups(
                self._store,
                f"WHERE rail = ? AND reference <> '' {one.where}"
                "AND (ends_at > ? OR (ends_at = ? AND id > ?)) ORDER BY ends_at, id LIMIT ?",
                (self.name, at_us, at_us, topup_id, _SLICE),
            )
            behind = (found[-1].ends_at_us, found[-1].id) if len(found) == _SLICE else None
            after[one.name] = Progress(progress.began_us, behind)
            due += found
        return after, due

    async def _ask(
        self, topups: Sequence[Topup], now_us: int
    ) -> tuple[dict[str, _Seen], dict[str, RailTrouble], RailTrouble | None]:
        """Read the invoices of top-ups. Answers what was read, what could not be, and why it was given up, if it was.

        An invoice that cannot be read holds up no other; a server that answers nothing is not asked any further.
        """
        seen: dict[str, _Seen] = {}
        failed: dict[str, RailTrouble] = {}
        known = await unfinished(self._store, self.name) if topups else []
        for begin in range(0, len(topups), _AT_ONCE):
            some = topups[begin : begin + _AT_ONCE]
            answers = await asyncio.gather(*(self._read(one, known) for one in some), return_exceptions=True)
            for topup, answer in zip(some, answers, strict=True):
                if isinstance(answer, RailTrouble):
                    failed[topup.reference] = answer
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    seen[topup.reference] = answer
            if all(isinstance(one, RailTrouble) and not isinstance(one, OddAnswer) for one in answers):
                try:
                    await self._api.invoices_since(now_us // US_PER_S, most=1)
                except RailTrouble as trouble:
                    return seen, failed, trouble
        self._heard_us = now_us if topups else self._heard_us
        return seen, failed, None

    async def _read(self, topup: Topup, known: Sequence[Payment]) -> _Seen:
        """Read one invoice. Raises RailTrouble."""
        invoice = await self._api.invoice(topup.reference)
        methods = await self._api.methods(topup.reference) if invoice is not None else None
        if invoice is None or methods is None:
            words = (
                f"invoice {topup.reference} is not in store {self._api.store}, though top-up {topup.id} waits for it"
            )
            return _Seen([], ("difference", words))
        paid = [payment for method in methods for payment in method.payments]
        sightings = {one.ident: one for one in (self._sighting(topup, payment) for payment in paid)}
        left_out = [
            _undone(one)
            for one in known
            if one.topup_id == topup.id and one.ident not in sightings and one.state != "gone"
        ]
        return _Seen([*sightings.values(), *left_out], _problem(topup, invoice, paid))

    def _sighting(self, topup: Topup, payment: Paid) -> Sighting:
        confirmations = {"Settled": max(1, topup.needed), "Processing": 0, "Invalid": -1}[payment.status]
        return Sighting(
            rail=self.name,
            ident=f"{self._api.store}:{topup.reference}:{payment.method}:{payment.id}",
            asset=(BITCOIN if payment.method == CHAIN else BY_LIGHTNING).code,
            address=topup.address,
            units=payment.satoshis,
            confirmations=confirmations,
            final=payment.status == "Settled",
            seen_us=payment.received_us,
            tx=payment.tx,
            topup_id=topup.id,
        )

    async def _probe(self, now_us: int) -> None:
        """See once a minute that the server answers, while there is nothing to ask it. Raises RailTrouble."""
        if not 0 <= now_us - self._heard_us < MINUTE_US:
            await self._api.invoices_since(now_us // US_PER_S, most=1)
            self._heard_us = now_us

    async def _incidents(
        self, seen: Mapping[str, _Seen], failed: Mapping[str, RailTrouble], now_us: int
    ) -> list[Statement]:
        """Open an incident for what no rule decides; one that was closed by hand stays closed."""
        problems = {ref: answer.problem for ref, answer in seen.items() if answer.problem is not None}
        for ref, trouble in failed.items():
            if isinstance(trouble, OddAnswer):
                problems[ref] = ("difference", str(trouble))
        statements: list[Statement] = []
        for reference, (kind, words) in problems.items():
            ref = f"{self.name}:{reference}"
            if not await self._store.fetch("SELECT 1 FROM incident WHERE kind = ? AND ref = ?", (kind, ref)):
                statements.append(opened(kind, ref, words, now_us))
        return statements


def _problem(topup: Topup, invoice: Invoice, paid: Sequence[Paid]) -> tuple[Kind, str] | None:
    if invoice.status != "Settled" or (not invoice.by_hand and any(one.status == "Settled" for one in paid)):
        return None
    came = sum(one.satoshis for one in paid if one.status == "Settled")
    words = (
        f"invoice {invoice.id} of top-up {topup.id} was marked as settled at BTCPay Server, where {came} satoshis came "
        "for it: only these are credited; credit the rest by hand, if it was paid in another way"
    )
    return "marked_by_hand", words


def _undone(payment: Payment) -> Sighting:
    """Tell of a payment that its invoice does not list any more."""
    return Sighting(
        rail=payment.rail,
        ident=payment.ident,
        asset=payment.asset,
        address=payment.address,
        units=int(payment.units),
        confirmations=-1,
        seen_us=payment.seen_at_us,
        topup_id=payment.topup_id,
    )


def _moved(before: Mapping[str, Progress], after: Mapping[str, Progress]) -> list[Statement]:
    if not after:
        return []
    statements: list[Statement] = [(_CURSOR, (NAME, msgspec.json.encode({**before, **after}).decode()))]
    began_us = after["all"].began_us if "all" in after else None
    if began_us is not None:  # once a day
        forget = "DELETE FROM processor_event WHERE rail = ? AND done_at < ?"
        statements.append((forget, (NAME, began_us - _KEPT_US)))
    return statements
