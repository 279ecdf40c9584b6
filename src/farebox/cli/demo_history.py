"""Fills the demo's books with ninety days that never were, all of it marked as made up.

Entries are written in bulk, dated back, and by the ledger's rules: every proof of the books holds at every commit.
"""

import os
from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgspec

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key, revoke_key
from farebox.billing.budgets import period_start_us
from farebox.billing.ledger import customer_account
from farebox.billing.plans import Plans
from farebox.billing.pricing import Catalogue, Model, Rates, Tariff
from farebox.billing.usage import Line, Usage
from farebox.books.days import close_days
from farebox.books.prices import pin_prices
from farebox.cli.demo_story import CAST, HISTORY_DAYS, Person, ToldCall, tell
from farebox.clock import DAY_US, US_PER_S
from farebox.ids import new_request_id
from farebox.money import NANOS_PER_USD
from farebox.payments.rails import Quote
from farebox.payments.records import PAYMENT_COLUMNS, TOPUP_COLUMNS, Payment, Pricing, Topup
from farebox.payments.simulated import SimulatedRail
from farebox.store.protocol import Statement, Store

ADMIN: Final = "admin@farebox.example"
OPENING_NANOS: Final = 5 * NANOS_PER_USD
_NEAR_THE_END_NANOS: Final = 30_000_000
_SEED: Final = 90
_CHUNK: Final = 400
_HOUR_US: Final = 3_600 * US_PER_S
_NEW_PRICES_DAYS_AGO: Final = 41
_DEARER: Final = {"claude-haiku-4-5": (450_000_000, 2_250_000_000), "claude-sonnet-4-6": (1_650_000_000, 8_250_000_000)}
"""What two models cost before the present prices: input and output."""
_KINDS: Final = {"finished": "exact", "upstream_broke": "waived", "refused_upstream": "failed"}
_USAGE_COLUMNS: Final = (
    "request_id",
    "at",
    "account_id",
    "key_id",
    "kind",
    "model",
    "asked_model",
    "price_version",
    "input_tokens",
    "cache_write_5m_tokens",
    "cache_read_tokens",
    "output_tokens",
    "cost_nanos",
    "list_nanos",
    "charged_nanos",
    "shortfall_nanos",
    "waived_nanos",
    "status",
    "outcome",
    "stop_reason",
    "message_id",
    "upstream",
    "upstream_request_id",
    "attempts",
    "streamed",
    "first_byte_us",
    "duration_us",
    "session",
    "agent",
    "parent_agent",
    "held_nanos",
)
_USAGE: Final = f"INSERT INTO usage ({', '.join(_USAGE_COLUMNS)}) VALUES ({', '.join('?' * len(_USAGE_COLUMNS))})"  # noqa: S608
_TRANSFER: Final = (
    "INSERT INTO transfer (id, at, debit_account, credit_account, amount_nanos, code, actor, memo) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_TOPUP: Final = f"INSERT INTO topup ({TOPUP_COLUMNS}) VALUES ({', '.join('?' * len(Topup.__struct_fields__))})"  # noqa: S608
_PAYMENT: Final = f"INSERT INTO payment ({PAYMENT_COLUMNS}) VALUES ({', '.join('?' * len(Payment.__struct_fields__))})"  # noqa: S608
_MOVE: Final = (
    "UPDATE account SET posted_nanos = posted_nanos + ?, topped_up_nanos = topped_up_nanos + ?, plan = ? WHERE id = ?"
)

_ACT: Final = (
    "INSERT INTO audit_log (at, actor, address, action, target, before, after, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_BUDGET: Final = (
    "INSERT INTO key_budget (key_id, limit_nanos, resets, since, used_nanos) SELECT ?, ?, 'monthly', ?, "
    "(SELECT coalesce(sum(charged_nanos), 0) FROM usage WHERE account_id = ? AND key_id = ? AND at >= ?)"
)

Progress = Callable[[str, int, int], None]


async def fill(
    store: Store,
    models: tuple[Model, ...],
    plans: Plans,
    key_prefix: str,
    now_us: int,
    *,
    on_progress: Progress,
) -> str:
    """Write the history into books that have no accounts yet; answers the text of the key that the demo shows."""
    begin_us = (now_us // DAY_US - HISTORY_DAYS) * DAY_US
    rng = Random(_SEED)  # noqa: S311  a story, no secret
    stories = [(person, tell(person, begin_us, now_us, rng)) for person in CAST]
    prices = await _price(store, models, begin_us)
    total, done, shown_key = sum(len(calls) for _, calls in stories), 0, ""
    for person, calls in stories:
        joined_us = begin_us + (HISTORY_DAYS - person.joined_days_ago) * DAY_US + 8 * _HOUR_US
        joined_us = min(joined_us, now_us - 2 * _HOUR_US)
        account_id, keys = await _open(store, person, key_prefix, joined_us)
        shown_key = shown_key or next((text for _, text in keys.values()), "")
        key_ids = {name: key_id for name, (key_id, _) in keys.items()}
        writer = _Writer(person, account_id, key_ids, prices, plans, await _quotes(person), rng)
        entries = writer.write(calls, joined_us)
        for first in range(0, len(entries), _CHUNK):
            chunk = entries[first : first + _CHUNK]
            await store.write([one for entry in chunk for one in entry.statements] + [writer.move(chunk)])
            done += sum(entry.is_call for entry in chunk)
            on_progress("calls", done, total)
        await _finish(store, person, account_id, key_ids, now_us)
    await _operate(store, now_us)
    await close_days(store, now_us)
    on_progress("days", HISTORY_DAYS, HISTORY_DAYS)
    return shown_key


class _Entry(msgspec.Struct, frozen=True):
    """One entry of the books, and what it does to its account."""

    statements: tuple[Statement, ...]
    net_nanos: int
    topped_up_nanos: int = 0
    is_call: bool = False


class _Writer:
    """Turns the story of one person into entries, so that the balance never goes below zero."""

    def __init__(
        self,
        person: Person,
        account_id: int,
        key_ids: dict[str, int],
        prices: "_Prices",
        plans: Plans,
        quotes: "list[_Quoted]",
        rng: Random,
    ) -> None:
        self._person = person
        self._account_id = account_id
        self._key_ids = key_ids
        self._prices = prices
        self._plans = plans
        self._quotes = quotes
        self._rng = rng
        self._balance = 0
        self._top_ups = 0
        self._told = 0

    def write(self, calls: list[ToldCall], joined_us: int) -> list[_Entry]:
        """Give the entries of an account in the order of their moments."""
        if not calls:
            return []
        entries = [self._gift(joined_us)] if self._person.gift else []
        entries.append(self._top_up(joined_us + 20 * 60 * US_PER_S))
        for call in calls:
            low = self._balance < self._person.low_usd * NANOS_PER_USD
            if low and not self._person.runs_dry:
                entries.append(self._top_up(call.at_us - call.duration_us - 90 * US_PER_S))
            entry = self._call(call)
            if self._balance + entry.net_nanos < _NEAR_THE_END_NANOS:
                return [*entries, *self._last(call)]
            self._balance += entry.net_nanos
            entries.append(entry)
        return entries

    def move(self, entries: list[_Entry]) -> Statement:
        """Make the statement that moves the account by what entries come to, to be written with them."""
        self._told += sum(entry.topped_up_nanos for entry in entries)
        plan = self._person.plan or self._plans.earned(self._told).name
        net, topped_up = (sum(getattr(entry, name) for entry in entries) for name in ("net_nanos", "topped_up_nanos"))
        return _MOVE, (net, topped_up, plan, self._account_id)

    def _last(self, call: ToldCall) -> list[_Entry]:
        """Let the money run out in the middle of an answer."""
        short = msgspec.structs.replace(
            call, outcome="out_of_money", stop_reason=None, streamed=True, input=400, cache_write=0, cache_read=0
        )
        for output in range(16_000, 0, -10):
            entry = self._call(msgspec.structs.replace(short, output=output))
            if self._balance + entry.net_nanos >= 0:
                return [entry]
        return []

    def _gift(self, at_us: int) -> _Entry:
        self._balance += OPENING_NANOS
        parties = ("house:promotion", customer_account(self._account_id))
        memo = "demo data: to try with"
        gift = ("demo:opening", at_us, *parties, OPENING_NANOS, "promotion", "demo", memo)
        return _Entry(((_TRANSFER, gift),), OPENING_NANOS)

    def _top_up(self, at_us: int) -> _Entry:
        """Top up by the simulated rail: what was asked for, what came, and the entry that credits it."""
        quoted = self._quotes[self._top_ups % len(self._quotes)]
        self._top_ups += 1
        self._balance += quoted.nanos
        topup_id = f"demo{self._account_id:08x}{self._top_ups:08x}"
        quote = quoted.quote
        units, payment_id = str(quote.units), f"{SimulatedRail.name}:{topup_id}"
        transfer_id = f"deposit:{payment_id}:1"
        began_us, ends_us = at_us - 14 * 60 * US_PER_S, at_us + 16 * 60 * US_PER_S
        made = msgspec.structs.replace(quote.rate, at=began_us)
        said = (SimulatedRail.name, quoted.asset)
        topup = (
            *(topup_id, self._account_id, *said, quoted.nanos, units, quote.address, "", made.nanos),
            *(msgspec.json.encode(made).decode(), quote.needed, "credited", began_us, ends_us, at_us),
        )
        payment = (
            *(payment_id, *said, quote.address, units, self._account_id, topup_id, None, None, None, quote.needed),
            *(quote.needed, "credited", 1, 1, began_us + 60 * US_PER_S, at_us, None, quoted.nanos, units),
            *(msgspec.json.encode(Pricing(quote=made)).decode(), None, transfer_id),
        )
        parties = ("house:cash", customer_account(self._account_id))
        memo = f"demo data: {quoted.shown}"
        deposit = (transfer_id, at_us, *parties, quoted.nanos, "deposit", "rail:simulated", memo)
        return _Entry(((_TOPUP, topup), (_PAYMENT, payment), (_TRANSFER, deposit)), quoted.nanos, quoted.nanos)

    def _call(self, call: ToldCall) -> _Entry:
        catalogue = self._prices.at(call.at_us)
        model = catalogue.models[call.model]
        line = Line(call.model, call.input, call.cache_write, 0, call.cache_read, call.output)
        priced = catalogue.price(Usage((line,)), model)
        kind = _KINDS.get(call.outcome, "estimated")
        free = kind in {"waived", "failed"}
        charged = 0 if free else priced.cost_nanos
        begun_us = call.at_us - call.duration_us
        told = call.outcome != "refused_upstream"
        values: dict[str, Any] = {
            "request_id": new_request_id(begun_us),
            "at": call.at_us,
            "account_id": self._account_id,
            "key_id": self._key_ids[call.key],
            "kind": kind,
            "model": call.model,
            "asked_model": call.model,
            "price_version": catalogue.version,
            "input_tokens": call.input,
            "cache_write_5m_tokens": call.cache_write,
            "cache_read_tokens": call.cache_read,
            "output_tokens": call.output,
            "cost_nanos": priced.cost_nanos,
            "list_nanos": priced.list_nanos,
            "charged_nanos": charged,
            "shortfall_nanos": 0,
            "waived_nanos": priced.cost_nanos if free else 0,
            "status": 502 if call.outcome == "upstream_broke" and not call.streamed else call.status,
            "outcome": call.outcome,
            "stop_reason": call.stop_reason,
            "message_id": f"msg_demo{os.urandom(9).hex()}" if told else None,
            "upstream": "simulator",
            "upstream_request_id": f"req_demo{os.urandom(9).hex()}",
            "attempts": call.attempts,
            "streamed": int(call.streamed),
            "first_byte_us": call.first_byte_us,
            "duration_us": call.duration_us,
            "session": call.session,
            "agent": call.agent,
            "parent_agent": call.parent_agent,
            "held_nanos": priced.cost_nanos + self._rng.randint(300, 1_100) * model.rates.sell.output // 1_000_000,
        }
        return _Entry(((_USAGE, tuple(values[name] for name in _USAGE_COLUMNS)),), -charged, is_call=True)


class _Quoted(msgspec.Struct, frozen=True):
    """What a top-up of so much comes to in a coin."""

    nanos: int
    asset: str
    shown: str
    quote: Quote


async def _quotes(person: Person) -> list[_Quoted]:
    """Quote what a person tops up by, each amount in each coin in turn."""
    rail = SimulatedRail()
    quoted = []
    for number in range(len(rail.assets) * len(person.top_ups_usd)):
        asset = rail.assets[number % len(rail.assets)]
        nanos = person.top_ups_usd[number % len(person.top_ups_usd)] * NANOS_PER_USD
        quote = await rail.quote(0, asset, nanos, 0)
        quoted.append(_Quoted(nanos, asset.code, f"{asset.show(quote.units)} {asset.code}", quote))
    return quoted


class _Prices(msgspec.Struct, frozen=True):
    """The prices of the story: there was a version before the present one."""

    before: Catalogue
    now: Catalogue
    since_us: int

    def at(self, at_us: int) -> Catalogue:
        return self.now if at_us >= self.since_us else self.before


async def _price(store: Store, models: tuple[Model, ...], begin_us: int) -> _Prices:
    """Bring two versions of the prices into the books: two models were dearer at first."""
    since_us = begin_us + (HISTORY_DAYS - _NEW_PRICES_DAYS_AGO) * DAY_US + 7 * _HOUR_US
    before = await pin_prices(store, tuple(_dearer(model) for model in models), begin_us)
    return _Prices(before, await pin_prices(store, models, since_us), since_us)


def _dearer(model: Model) -> Model:
    if model.id not in _DEARER:
        return model
    input_price, output_price = _DEARER[model.id]
    sell = Rates(input_price, output_price, input_price * 5 // 4, input_price * 2, input_price // 10)
    return msgspec.structs.replace(model, rates=Tariff(model.rates.list, sell))


async def _open(
    store: Store, person: Person, key_prefix: str, joined_us: int
) -> tuple[int, dict[str, tuple[int, str]]]:
    """Open an account with its keys; answers its id, and id and text of each key by name."""
    account = await create_account(store, person.email, "free", joined_us)
    keys = {}
    for name in dict.fromkeys((*(habit.key for habit in person.habits), *person.revoked_keys)):
        days = next((habit.days_ago[0] for habit in person.habits if habit.key == name), person.joined_days_ago)
        made_us = joined_us + max(0, person.joined_days_ago - days) * DAY_US + 5 * 60 * US_PER_S
        key, text = await create_key(store, account.id, name, key_prefix, made_us)
        keys[name] = (key.id, text)
        if name in person.revoked_keys:
            await revoke_key(store, key.id, made_us + 31 * DAY_US)
    seen_us = joined_us + 3 * 60 * US_PER_S if person.verified else None
    update = "UPDATE account SET verified_at = ?, notes = ? WHERE id = ?"
    await store.write([(update, (seen_us, person.notes, account.id))])
    return account.id, keys


async def _finish(store: Store, person: Person, account_id: int, key_ids: dict[str, int], now_us: int) -> None:
    """Bring an account to the state that the story leaves it in."""
    statements: list[Statement] = []
    if person.suspended_days_ago is not None:
        statements.append(("UPDATE account SET status = 'suspended' WHERE id = ?", (account_id,)))
    for act in person.acts:
        at_us = (now_us // DAY_US - act.days_ago) * DAY_US + 10 * _HOUR_US
        facts = (msgspec.json.encode(act.before).decode(), msgspec.json.encode(act.after).decode())
        target = f"customer:{account_id}"
        statements.append((_ACT, (at_us, ADMIN, "127.0.0.1", act.action, target, *facts, f"demo data: {act.reason}")))
    if person.alert_usd is not None:
        wanted = "INSERT INTO alert (account_id, kind, at_nanos) VALUES (?, 'balance', ?)"
        statements.append((wanted, (account_id, person.alert_usd * NANOS_PER_USD)))
    since_us = period_start_us("monthly", now_us)
    for habit in person.habits:
        if habit.limit_usd is not None:
            key_id = key_ids[habit.key]
            values = (key_id, habit.limit_usd * NANOS_PER_USD, since_us, account_id, key_id, since_us)
            statements.append((_BUDGET, values))
    if statements:
        await store.write(statements)


async def _operate(store: Store, now_us: int) -> None:
    """Say on every page that all this is made up."""
    words = "Demo data: the customers, calls and payments of the last 90 days are made up."
    tell_it = "INSERT INTO announcement (level, words, created_by, begins_at) VALUES ('info', ?, 'demo', ?)"
    await store.write([(tell_it, (words, now_us))])
