"""Retention: months whose calls are let go, once their sums stand for them. By default none ever is.

A month goes as a whole, and only when all its days are closed, hold against their digests, and are summed as their
calls say. What was proved of each day then is written down and chained (`day_drop`): a digest over the day's own, its
sums by account, key, model and outcome, and its transfers. From there on balances begin with those sums
(docs/decisions/0020).
"""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

from farebox.books.days import FIRST, digest_day, feed_transfers
from farebox.books.sums import FOREVER, first_open, sold_between, wrong_in_day
from farebox.clock import DAY_US, US_PER_S, day_of, day_start_us
from farebox.errors import FareboxError, StoreConflict
from farebox.ids import began_at_us
from farebox.store.growth import drop_calls
from farebox.store.protocol import Reading, Store

Tell = Callable[[str], None]
_SUMS: Final = (
    "SELECT account_id, key_id, model, outcome, requests, tokens, charged_nanos, list_nanos, waived_nanos, "
    "shortfall_nanos, last_at FROM usage_day WHERE day = ?"
)
_DROP: Final = "INSERT INTO day_drop (day, usage_rows, previous_sha256, sha256, dropped_at) VALUES (?, ?, ?, ?, ?)"


class Kept(msgspec.Struct, frozen=True):
    """Which calls there are one by one: how many, since when, and how many were let go before."""

    calls: int
    first_us: int | None
    dropped_days: int
    dropped_calls: int
    kept_us: int
    """The first moment whose calls were not let go; 0: none ever was."""


async def first_kept(store: Reading) -> int:
    """Give the first moment whose calls were not let go; 0: none ever was."""
    last = (await store.fetch("SELECT max(day) FROM day_drop"))[0][0]
    return day_start_us(last) + DAY_US if last else 0


async def let_go_before(store: Reading, request_id: bytes) -> str | None:
    """Give the day since when calls are kept, to be told for a call that is not there; None: hers would be.

    A call that ended in a month that was kept is there, so that of a missing one of before nobody can tell any more.
    """
    kept_us = await first_kept(store)
    return day_of(kept_us) if began_at_us(request_id) < kept_us else None


async def kept(store: Reading) -> Kept:
    """Tell which calls there are."""
    kept_us = await first_kept(store)
    sold, values = sold_between(await first_open(store), kept_us, FOREVER)
    counted = f"SELECT coalesce(sum(requests), 0) FROM ({sold}) AS calls"  # noqa: S608  fixed texts
    calls = int((await store.fetch(counted, values))[0][0])
    ((first_us,),) = await store.fetch("SELECT min(at) FROM usage WHERE at >= ?", (kept_us,))
    ((days, gone),) = await store.fetch("SELECT count(*), coalesce(sum(usage_rows), 0) FROM day_drop")
    return Kept(calls, first_us, days, int(gone), kept_us)


def month_begin_us(now_us: int, months_back: int) -> int:
    """Give the first moment of the month so many before the present one, UTC."""
    now = datetime.fromtimestamp(now_us // US_PER_S, UTC)
    months = now.year * 12 + now.month - 1 - months_back
    return int(datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC).timestamp()) * US_PER_S if months >= 12 else 0


async def drop_months(store: Store, keep_months: int, now_us: int, tell: Tell = lambda _: None) -> int:
    """Let go of the calls of all months but the present one and so many before it; answers how many calls went.

    `tell` hears of each day that was proved. Raises FareboxError, with nothing dropped, for a day that is not closed or
    does not hold; what has been dropped already and is still there goes in any case.
    """
    if keep_months < 1:
        raise FareboxError(f"at least one whole month of calls is kept, got {keep_months}")
    gone = 0
    while True:
        kept_us = await first_kept(store)
        if kept_us:
            await drop_calls(store, kept_us)
        first = (await store.fetch("SELECT min(day) FROM day_close"))[0][0]
        if first is None:
            return gone
        begin_us = kept_us or day_start_us(first)
        end_us = month_begin_us(begin_us, -1)
        if end_us > month_begin_us(now_us, keep_months):
            return gone
        gone += await _drop(store, begin_us, end_us, now_us, tell)


async def _drop(store: Store, begin_us: int, end_us: int, now_us: int, tell: Tell) -> int:
    """Prove the days of one month, then say that they are dropped, in one transaction."""
    rows = await store.fetch("SELECT sha256 FROM day_drop ORDER BY day DESC LIMIT 1")
    previous = rows[0][0] if rows else FIRST
    drops, calls = [], 0
    for at_us in range(begin_us, end_us, DAY_US):
        day = day_of(at_us)
        count = await _prove(store, day)
        sha256 = await digest_dropped(store, day, previous)
        drops.append((_DROP, (day, count, previous, sha256, now_us)))
        previous, calls = sha256, calls + count
        tell(day)
    try:
        await store.write(drops)
    except StoreConflict:
        return 0  # another process has dropped them
    return calls


async def _prove(store: Store, day: str) -> int:
    """See that a day's calls are what its digest and its sums say; answers how many. Raises FareboxError."""
    rows = await store.fetch(
        "SELECT usage_rows, transfer_rows, previous_sha256, sha256 FROM day_close WHERE day = ?", (day,)
    )
    if not rows:
        raise FareboxError(f"the calls of {day} cannot go yet: the day is not closed; nothing more was dropped")
    digest = await digest_day(store, day, rows[0][2])
    wrong = [
        max(count)
        for question in wrong_in_day(day_start_us(day) // DAY_US, has_calls=True)
        for count in await store.fetch(*question)
    ]
    if (digest.usage_rows, digest.transfer_rows, digest.sha256) != (rows[0][0], rows[0][1], rows[0][3]) or any(wrong):
        raise FareboxError(
            f"the calls of {day} cannot go: they are not what the day's digest or its sums say. "
            "Nothing more was dropped; run `farebox audit`, and keep a copy of the books"
        )
    return digest.usage_rows


async def digest_dropped(store: Reading, day: str, previous: str) -> str:
    """Hash what stays of a day whose calls are let go, after the digest of the day dropped before it."""
    rows = await store.fetch("SELECT sha256 FROM day_close WHERE day = ?", (day,))
    own = rows[0][0] if rows else ""
    sha = hashlib.sha256(f"{day}\n{previous}\n{own}\n".encode())
    for row in sorted(await store.fetch(_SUMS, (day_start_us(day) // DAY_US,))):
        sha.update(msgspec.json.encode(row))
    await feed_transfers(store, day, sha)
    return sha.hexdigest()
