"""The audit: everything the books say about themselves, worked out again from their entries (promise 7).

Reads only, in pages, beside a server that is running: figures that must agree are read in one statement, which is one
snapshot of the database, so that a call that ends meanwhile raises no false alarm.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from farebox.billing.pricing import Catalogue
from farebox.billing.usage import Line, Usage
from farebox.books.credits import compare_payments
from farebox.books.days import FIRST, digest_day
from farebox.books.prices import price_lists
from farebox.books.retention import digest_dropped, first_kept
from farebox.books.sums import HOURS, first_open, wrong_in_day, wrong_in_hours, wrong_in_house
from farebox.clock import DAY_US, HOUR_US, day_of, day_start_us
from farebox.errors import StoreUnavailable
from farebox.ids import show_request_id
from farebox.store.protocol import Reading, Row

Progress = Callable[[str, int, int], None]
"""Told the check, how far it has come and how far it has to go."""

_PAGE: Final = 2_000
_ACCOUNTS_PAGE: Final = 200
_SHOWN: Final = 3
_usage: Final = msgspec.json.Decoder(Usage)
_SETTLE_S: Final = 2.0
"""A server that is starting ends the holds of the one before it in less time than this."""


class Check(msgspec.Struct, frozen=True):
    """What one check came to: whether it holds, in words, and how many rows it looked at."""

    name: str
    ok: bool
    detail: str
    rows: int = 0


class _Breaks:
    """What a check found broken, counted; the first few in words."""

    def __init__(self, name: str, noun: str) -> None:
        self.name = name
        self.noun = noun
        self.count = 0
        self.rows = 0
        self.words: list[str] = []

    def add(self, words: str) -> None:
        self.count += 1
        if len(self.words) < _SHOWN:
            self.words.append(words)

    def check(self) -> Check:
        if not self.count:
            return Check(self.name, ok=True, detail=f"{self.rows:,} {self.noun}", rows=self.rows)
        more = f"; and {self.count - len(self.words):,} more" if self.count > len(self.words) else ""
        return Check(self.name, ok=False, detail="; ".join(self.words) + more, rows=self.rows)


async def audit(store: Reading, *, on_progress: Progress | None = None, sample: int = 1) -> list[Check]:
    """Check the books; every check is answered, whatever the others find.

    `sample` re-prices one call in so many, chosen anew each time; everything else is always checked in full.
    """
    tell = on_progress or _tell_nobody
    checks: list[Check] = []
    parts: tuple[tuple[str, Callable[[], Awaitable[list[Check]]]], ...] = (
        ("database", lambda: _database(store)),
        ("balances", lambda: _accounts(store, tell)),
        ("spend limits", lambda: _spend_limits(store)),
        ("zero sum", lambda: _zero_sum(store)),
        ("live holds", lambda: _holds(store)),
        ("settled once", lambda: _settled_once(store)),
        ("who pays", lambda: _who_pays(store)),
        ("price lists", lambda: _price_lists(store)),
        ("prices", lambda: _prices(store, tell, sample)),
        ("day digests", lambda: _days(store, tell)),
        ("dropped days", lambda: _dropped(store)),
        ("day sums", lambda: _sums(store, tell)),
        ("payments", lambda: _payments(store)),
    )
    for name, part in parts:
        try:
            checks += await part()
        except (StoreUnavailable, msgspec.MsgspecError) as error:
            checks.append(Check(name, ok=False, detail=f"could not be checked: {error}"))
    return checks


async def _database(store: Reading) -> list[Check]:
    """Let the database check itself: its file, its references, and what makes the books append-only."""
    checks = []
    for name, looked_at, faults in await store.check_itself():
        breaks = _Breaks(name, "problems" if not looked_at else "in force")
        breaks.rows = looked_at
        for words in faults:
            breaks.add(words)
        checks.append(breaks.check())
    return checks


_ACCOUNTS: Final = """
    SELECT a.id, a.posted_nanos, a.held_nanos, a.open_holds, a.topped_up_nanos,
      (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE credit_account = 'customer:' || a.id)
        - (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE debit_account = 'customer:' || a.id)
        - (SELECT coalesce(sum(charged_nanos), 0) FROM usage WHERE account_id = a.id AND at >= ?)
        - (SELECT coalesce(sum(charged_nanos), 0) FROM usage_day WHERE account_id = a.id AND day < ?),
      coalesce(h.nanos, 0),
      coalesce(h.holds, 0),
      (SELECT coalesce(sum(amount_nanos), 0) FROM transfer
        WHERE credit_account = 'customer:' || a.id AND code = 'deposit')
        - (SELECT coalesce(sum(amount_nanos), 0) FROM transfer
            WHERE debit_account = 'customer:' || a.id AND code = 'deposit')
    FROM account a
    LEFT JOIN (
      SELECT account_id, sum(amount_nanos) AS nanos,
        count(*) FILTER (WHERE expired_at IS NULL AND run_id <> -1) AS holds
      FROM hold GROUP BY account_id
    ) h ON h.account_id = a.id
    WHERE a.id > ? ORDER BY a.id LIMIT ?
"""


async def _accounts(store: Reading, tell: Progress) -> list[Check]:
    """Work out every account's figures from its entries and holds."""
    posted, held, count, topped, above = (
        _Breaks(name, "accounts") for name in ("balances", "held amounts", "open holds", "top-ups", "above zero")
    )
    total = int((await store.fetch("SELECT count(*) FROM account"))[0][0])
    last = done = 0
    kept_us = await first_kept(store)  # what was before is in the sums of its days, which are digested
    while rows := await store.fetch(_ACCOUNTS, (kept_us, kept_us // DAY_US, last, _ACCOUNTS_PAGE)):
        for row in rows:
            _account(row, posted, held, count, topped, above)
        done += len(rows)
        last = rows[-1][0]
        tell("accounts", done, max(done, total))
    breaks = (posted, held, count, topped, above)
    for one in breaks:
        one.rows = done
    return [one.check() for one in breaks]


def _account(row: Row, posted: _Breaks, held: _Breaks, count: _Breaks, topped: _Breaks, above: _Breaks) -> None:
    account_id, balance, on_hold, open_holds, topped_up, entries, holds, hold_count, deposits = row
    if balance != entries:
        posted.add(f"account {account_id} has {balance}, its entries say {entries}")
    if on_hold != holds:
        held.add(f"account {account_id} holds {on_hold}, its holds say {holds}")
    if open_holds != hold_count:
        count.add(f"account {account_id} counts {open_holds} holds, there are {hold_count}")
    if topped_up != deposits:
        topped.add(f"account {account_id} has topped up {topped_up}, its deposits say {deposits}")
    if not 0 <= on_hold <= balance:
        above.add(f"account {account_id} has {balance} and holds {on_hold}")


_USED: Final = f"""
    SELECT b.key_id, b.used_nanos,
      (SELECT coalesce(sum(charged_nanos), 0) FROM usage u
        WHERE u.account_id = k.account_id AND u.key_id = b.key_id AND u.at >= b.since AND u.at >= ?)
      + (SELECT coalesce(sum(charged_nanos), 0) FROM usage_hour s WHERE s.account_id = k.account_id
        AND s.key_id = b.key_id AND s.hour * {HOUR_US} >= b.since AND s.hour < ?)
      + (SELECT coalesce(sum(amount_nanos), 0) FROM hold h WHERE h.key_id = b.key_id AND h.created_at >= b.since),
      (SELECT coalesce(sum(charged_nanos), 0) FROM usage_hour s WHERE s.account_id = k.account_id
        AND s.key_id = b.key_id AND s.hour * {HOUR_US} < b.since AND (s.hour + 1) * {HOUR_US} > b.since AND s.hour < ?)
    FROM key_budget b JOIN api_key k ON k.id = b.key_id WHERE b.key_id > ? ORDER BY b.key_id LIMIT ?
"""  # noqa: S608  fixed texts


async def _spend_limits(store: Reading) -> list[Check]:
    """Work out again what each key with a spend limit has used of it: charged and held in its period."""
    breaks = _Breaks("spend limits", "keys")
    last = 0
    kept_us = await first_kept(store)
    dropped = kept_us // HOUR_US
    while rows := await store.fetch(_USED, (kept_us, dropped, dropped, last, _ACCOUNTS_PAGE)):
        for key_id, used, entries, unsure in rows:  # the hour that its period began in, where its calls were let go
            if not entries <= used <= entries + unsure:
                breaks.add(f"key {key_id} has used {used}, its entries and holds say {entries}")
        breaks.rows += len(rows)
        last = rows[-1][0]
    return [breaks.check()]


_OF_ALL_CALLS: Final = (
    "(SELECT coalesce(sum({0}), 0) FROM usage WHERE at >= ?) "
    "+ (SELECT coalesce(sum({1}), 0) FROM usage_day WHERE day < ?)"
)
_ZERO: Final = f"""
    SELECT (SELECT coalesce(sum(posted_nanos), 0) FROM account),
      {_OF_ALL_CALLS.format("cost_nanos", "charged_nanos + shortfall_nanos + waived_nanos")},
      -({_OF_ALL_CALLS.format("shortfall_nanos", "shortfall_nanos")}),
      -({_OF_ALL_CALLS.format("waived_nanos", "waived_nanos")}),
      (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE credit_account LIKE 'house:%')
        - (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE debit_account LIKE 'house:%'),
      (SELECT count(*) FROM usage) + (SELECT count(*) FROM transfer)
"""  # noqa: S608  fixed texts


async def _zero_sum(store: Reading) -> list[Check]:
    """Add up all balances and the house's accounts: earned, given away, taken in. They cancel out."""
    kept_us = await first_kept(store)
    *sums, rows = (await store.fetch(_ZERO, (kept_us, kept_us // DAY_US) * 3))[0]
    names = ("customers", "revenue", "shortfall", "waived", "other house accounts")
    off = sum(sums)
    detail = f"{rows:,} entries"
    if off:
        told = ", ".join(f"{name} {nanos}" for name, nanos in zip(names, sums, strict=True))
        detail = f"off by {off} nano-dollars: {told}"
    return [Check("zero sum", ok=off == 0, detail=detail, rows=rows)]


_HELD: Final = "SELECT request_id, account_id, amount_nanos FROM hold WHERE expired_at IS NULL AND run_id <> -1"
_LEFT: Final = f"{_HELD} AND run_id NOT IN "
_STANDING: Final = (
    "SELECT request_id, account_id, amount_nanos FROM hold WHERE run_id = -1 AND (expired_at IS NOT NULL OR NOT EXISTS "
    "(SELECT 1 FROM batch_item i JOIN batch b ON b.id = i.batch_id WHERE i.id = hold.request_id AND b.state <> 'ended' "
    "AND b.account_id = hold.account_id))"
)
"""Holds of no process (billing.ledger.NO_RUN) whose batch is not there, or has ended without them."""
_KNOWN_RUNS: Final = "(SELECT id FROM run WHERE stopped_at IS NULL AND reaped_at IS NULL)"
"""Where one process serves, and others may still end their calls: each start, and each end of those, marks the dead."""
_LIVE_RUNS: Final = "(SELECT id FROM run WHERE stopped_at IS NULL AND lease_until > now_us() - 60000000)"
"""Where several processes serve: a run may be given up a minute after its lease has lapsed."""


async def _holds(store: Reading) -> list[Check]:
    """See that every hold belongs to a process that serves now, or to a batch under way; any other is stuck money."""
    breaks = _Breaks("live holds", "holds")
    for request_id, account_id, nanos in await store.fetch(_STANDING):
        breaks.add(f"{show_request_id(request_id)} holds {nanos} of account {account_id} for no batch under way")
    breaks.rows = int((await store.fetch("SELECT count(*) FROM hold"))[0][0])
    found = await _stuck(store)
    if found:
        await asyncio.sleep(_SETTLE_S)
    still = {row[0] for row in await _stuck(store)} if found else set()
    for request_id, account_id, nanos in found:
        if request_id in still:
            breaks.add(
                f"{show_request_id(request_id)} holds {nanos} of account {account_id} for a process that is gone: "
                f"{'another one gives it up within 90 s' if store.shared else '`farebox serve` ends it as it starts'}"
            )
    return [breaks.check()]


async def _stuck(store: Reading) -> list[Row]:
    rows = await store.fetch(_HELD)
    if not rows or not await store.is_served():
        return rows
    return await store.fetch(_LEFT + (_LIVE_RUNS if store.shared else _KNOWN_RUNS))


async def _settled_once(store: Reading) -> list[Check]:
    """See that no call is settled and held at once: the one deletes the other, in one transaction."""
    breaks = _Breaks("settled once", "calls")
    breaks.rows = await _count_calls(store)
    for (request_id,) in await store.fetch("SELECT request_id FROM hold JOIN usage USING (request_id)"):
        breaks.add(f"{show_request_id(request_id)} is settled, and held still")
    return [breaks.check()]


async def _count_calls(store: Reading) -> int:
    return int((await store.fetch("SELECT count(*) FROM usage"))[0][0])


_PAYS: Final = """
    SELECT request_id, kind, cost_nanos, charged_nanos, shortfall_nanos, waived_nanos FROM usage
    WHERE cost_nanos <> charged_nanos + shortfall_nanos + waived_nanos
      OR charged_nanos < 0 OR shortfall_nanos < 0 OR waived_nanos < 0
      OR (kind IN ('exact', 'estimated', 'late') AND waived_nanos <> 0)
      OR (kind IN ('waived', 'failed', 'recovered') AND charged_nanos + shortfall_nanos <> 0)
    LIMIT 1000
"""


async def _who_pays(store: Reading) -> list[Check]:
    """See that each cost was charged, short or waived to the last nano-dollar, and that nothing free was charged."""
    breaks = _Breaks("who pays", "calls")
    for request_id, kind, cost, charged, shortfall, waived in await store.fetch(_PAYS):
        parts = f"{charged} charged, {shortfall} short, {waived} waived"
        breaks.add(f"{show_request_id(request_id)} ({kind}) cost {cost}: {parts}")
    breaks.rows = await _count_calls(store)
    return [breaks.check()]


async def _price_lists(store: Reading) -> list[Check]:
    """See that each version of the prices is still what it was when it came into force."""
    breaks = _Breaks("price lists", "versions")
    rows = await store.fetch("SELECT version, sha256 FROM price_list ORDER BY version")
    lists = await price_lists(store)  # after them: one that comes into force meanwhile is here, and not asked for
    for version, sha256 in rows:
        breaks.rows += 1
        if lists[version][0] != sha256:
            breaks.add(f"version {version} has been changed")
    return [breaks.check()]


class _Call(msgspec.Struct, frozen=True):
    """What a usage row says about its price."""

    request_id: bytes
    kind: str
    model: str
    asked_model: str
    price_version: int
    input_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int
    output_tokens: int
    web_searches: int
    detail: str | None
    stop_reason: str | None
    cost_nanos: int
    list_nanos: int

    @property
    def usage(self) -> Usage:
        """Give the usage as it was priced: the whole of it where it was kept, else what the columns say."""
        return self.plain if self.detail is None else _usage.decode(self.detail)

    @property
    def plain(self) -> Usage:
        line = Line(
            self.model,
            self.input_tokens,
            self.cache_write_5m_tokens,
            self.cache_write_1h_tokens,
            self.cache_read_tokens,
            self.output_tokens,
        )
        return Usage((line,), self.web_searches)


_CALLS: Final = (
    f"SELECT {', '.join(_Call.__struct_fields__)} FROM usage WHERE request_id > ? ORDER BY request_id LIMIT ?"  # noqa: S608
)
_CLASSES: Final = ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output")


async def _prices(store: Reading, tell: Progress, sample: int) -> list[Check]:
    """Price calls again: from the tokens of their rows, under the version pinned when they were admitted."""
    breaks = _Breaks("prices", "calls")
    catalogues: dict[int, Catalogue] = {}
    total = await _count_calls(store)
    last, done, turn = b"", 0, secrets.randbelow(sample)
    while rows := await store.fetch(_CALLS, (last, _PAGE)):
        calls = [_Call(*row) for row in rows[(turn - done) % sample :: sample]]
        if any(call.price_version not in catalogues for call in calls):  # a server may bring new ones at any time
            catalogues = {version: catalogue for version, (_, catalogue) in (await price_lists(store)).items()}
        for call in calls:
            breaks.rows += 1
            if wrong := _wrong_price(call, catalogues):
                breaks.add(f"{show_request_id(call.request_id)} {wrong}")
        done += len(rows)
        last = rows[-1][0]
        tell("prices", done, max(done, total))
    return [breaks.check()]


def _wrong_price(call: _Call, catalogues: dict[int, Catalogue]) -> str | None:
    """Say what is wrong with the price of a call; None when it is right."""
    catalogue = catalogues.get(call.price_version)
    asked = catalogue.find(call.asked_model) if catalogue else None
    if catalogue is None or asked is None:
        return f"was priced under version {call.price_version}, which has no price for {call.asked_model!r}"
    try:
        usage = call.usage
    except msgspec.MsgspecError as error:
        return f"has a usage that cannot be read: {error}"
    columns = call.plain
    if any(usage.total(name) != columns.total(name) for name in _CLASSES):
        return "has columns that differ from its usage in detail"
    priced = catalogue.price(usage, asked)
    right = [(priced.cost_nanos, priced.list_nanos)]
    if call.stop_reason == "refusal" and (not call.output_tokens or call.detail):
        right.append((0, 0))  # the upstream does not bill a refusal without output; one that broke was priced in full
        if call.kind == "exact" and not call.output_tokens:
            right.pop(0)
    if (call.cost_nanos, call.list_nanos) in right:
        return None
    return f"cost {call.cost_nanos} (list {call.list_nanos}), its tokens say {right[0][0]} (list {right[0][1]})"


async def _days(store: Reading, tell: Progress) -> list[Check]:
    """Work out the digest of each closed day again, and see that the chain has no gap and no end before its start."""
    breaks = _Breaks("day digests", "days")
    rows = await store.fetch(
        "SELECT day, usage_rows, transfer_rows, previous_sha256, sha256 FROM day_close ORDER BY day"
    )
    expected_day, previous = rows[0][0] if rows else "", FIRST
    kept_us = await first_kept(store)
    if rows:
        early = await store.fetch(
            "SELECT (SELECT count(*) FROM usage WHERE at < ?) + (SELECT count(*) FROM transfer WHERE at < ?)",
            (day_start_us(rows[0][0]),) * 2,
        )
        if early[0][0]:
            breaks.add(f"{early[0][0]} entries are older than the first closed day, {rows[0][0]}")
    for day, usage_rows, transfer_rows, chained_to, sha256 in rows:
        breaks.rows += 1
        if day != expected_day:
            breaks.add(f"{expected_day} is missing")
        if chained_to != previous:
            breaks.add(f"{day} is not chained to the day before it")
        if day_start_us(day) < kept_us:
            expected_day, previous = day_of(day_start_us(day) + DAY_US), sha256
            continue  # `_dropped` proves what stays of it
        digest = await digest_day(store, day, chained_to)
        if (digest.usage_rows, digest.transfer_rows) != (usage_rows, transfer_rows):
            breaks.add(
                f"{day} had {usage_rows} calls and {transfer_rows} transfers, "
                f"now {digest.usage_rows} and {digest.transfer_rows}"
            )
        elif digest.sha256 != sha256:
            breaks.add(f"an entry of {day} has been changed")
        expected_day, previous = day_of(day_start_us(day) + DAY_US), sha256
        tell("day digests", breaks.rows, len(rows))
    return [breaks.check()]


async def _dropped(store: Reading) -> list[Check]:
    """Prove what stays of the days whose calls were let go: their digests, sums and transfers, day after day."""
    breaks = _Breaks("dropped days", "days")
    rows = await store.fetch("SELECT day, previous_sha256, sha256 FROM day_drop ORDER BY day")
    first = (await store.fetch("SELECT min(day) FROM day_close"))[0][0]
    expected_day, previous = first or "", FIRST
    for day, chained_to, sha256 in rows:
        breaks.rows += 1
        if day != expected_day:
            breaks.add(f"{expected_day} is missing")
        if chained_to != previous:
            breaks.add(f"{day} is not chained to the day before it")
        if await digest_dropped(store, day, chained_to) != sha256:
            breaks.add(f"a sum or a transfer of {day} has been changed")
        expected_day, previous = day_of(day_start_us(day) + DAY_US), sha256
    return [breaks.check()]


_SUMMED: Final = "SELECT day FROM usage_day UNION SELECT day FROM session_day"


async def _sums(store: Reading, tell: Progress) -> list[Check]:
    """Sum each closed day again: statements and charts are made from its sums, and no longer from its calls."""
    breaks = _Breaks("day sums", "days")
    summed = {day for (day,) in await store.fetch(_SUMMED)}  # before the closed ones: sums are written with a close
    kept_day = await first_kept(store) // DAY_US
    closed = {day_start_us(day) // DAY_US for (day,) in await store.fetch("SELECT day FROM day_close")}
    for day in sorted(summed | closed):
        breaks.rows += 1
        if day not in closed:
            breaks.add(f"{day_of(day * DAY_US)} has sums, and is not closed")
            continue
        counts = [(await store.fetch(*question))[0] for question in wrong_in_day(day, has_calls=day >= kept_day)]
        if off := sum(max(missing, wrong) for missing, wrong in counts):
            breaks.add(f"{off} sums of {day_of(day * DAY_US)} are not what its calls come to")
        tell("day sums", breaks.rows, len(summed | closed))
    opened = await first_open(store)
    young = (opened.day * HOURS, opened.hour)
    counts = [(await store.fetch(*question))[0] for question in (wrong_in_hours(*young), wrong_in_house(*young))]
    if off := sum(max(missing, wrong) for missing, wrong in counts):
        breaks.add(f"{off} sums of hours since {day_of(opened.day * DAY_US)} are not what their calls come to")
    early = (await store.fetch("SELECT count(*) FROM usage_hour WHERE hour >= ?", (opened.hour,)))[0][0]
    if early and await first_open(store) == opened:
        breaks.add(f"{early} sums are of hours that are not closed")
    return [breaks.check()]


async def _payments(store: Reading) -> list[Check]:
    """See that what came was credited once, to whom it belongs, and that nothing else was credited so."""
    breaks = _Breaks("payments", "payments")
    breaks.rows = await compare_payments(store, breaks.add)
    return [breaks.check()]


def _tell_nobody(_name: str, _done: int, _total: int) -> None:
    pass
