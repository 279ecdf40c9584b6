"""Closing hours and days: their calls are summed, and a hash over every entry of a day is chained to the day before.

An hour is closed a minute after it ended, a day an hour after, and neither ever gets another entry: the store moves
the clock of late ones on. Whoever keeps one digest elsewhere can prove later that nothing before it was changed
(promise 7).
"""

import hashlib
from typing import Final

import msgspec

from farebox.books.sums import first_open, sum_day, sum_hour
from farebox.clock import DAY_US, HOUR_US, day_of, day_start_us
from farebox.errors import StoreConflict
from farebox.store.protocol import Reading, Row, Store

FIRST: Final = "0" * 64
_GRACE_US: Final = 3_600 * 1_000_000
_HOUR_GRACE_US: Final = 60 * 1_000_000
_PAGE: Final = 2_000
"""Calls are served meanwhile, and wait for no more than a page to be hashed."""
_CLOSE: Final = (
    "INSERT INTO day_close (day, usage_rows, transfer_rows, previous_sha256, sha256, closed_at) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
_USAGE: Final = (
    "SELECT at, request_id, account_id, key_id, kind, model, asked_model, price_version, input_tokens, "
    "cache_write_5m_tokens, cache_write_1h_tokens, cache_read_tokens, output_tokens, web_searches, detail, cost_nanos, "
    "list_nanos, charged_nanos, shortfall_nanos, waived_nanos, status, outcome, stop_reason, message_id, upstream, "
    "upstream_request_id, attempts, streamed, first_byte_us, duration_us FROM usage "
    "WHERE (at, request_id) > (?, ?) AND at < ? ORDER BY at, request_id LIMIT ?"
)
_TRANSFERS: Final = (
    "SELECT at, id, debit_account, credit_account, amount_nanos, code, actor, memo FROM transfer "
    "WHERE (at, id) > (?, ?) AND at < ? ORDER BY at, id LIMIT ?"
)


class Digest(msgspec.Struct, frozen=True):
    """What a day's entries add up to."""

    usage_rows: int
    transfer_rows: int
    sha256: str


async def close_hours(store: Store, now_us: int, until_us: int | None = None) -> int:
    """Close and sum every past hour that is not closed yet, oldest first, or those that end by a moment.

    Answers how many of them had calls.
    """
    hour = (await first_open(store)).hour
    after = (now_us - _HOUR_GRACE_US if until_us is None else until_us) // HOUR_US
    unseen_since_us = (await store.fetch("SELECT unseen_since_us()"))[0][0]
    if unseen_since_us is not None:
        after = min(after, unseen_since_us // HOUR_US)
    summed = 0
    while hour < after:
        first_us = (await store.fetch("SELECT min(at) FROM usage WHERE at >= ?", (hour * HOUR_US,)))[0][0]
        busy = first_us // HOUR_US if first_us is not None else after
        hour = min(busy, after - 1)  # those before it are closed with it: there is nothing in them
        close = ("INSERT INTO hour_close (hour, closed_at) VALUES (?, ?)", (hour, now_us))
        try:
            await store.write([close, *(sum_hour(hour) if hour == busy else [])])
        except StoreConflict:
            return summed  # another process has closed it
        summed += hour == busy
        hour += 1
    return summed


async def close_days(store: Store, now_us: int) -> list[str]:
    """Close every past day that is not closed yet, oldest first; answers their names."""
    rows = await store.fetch("SELECT day, sha256 FROM day_close ORDER BY day DESC LIMIT 1")
    if rows:
        begin_us, previous = day_start_us(rows[0][0]) + DAY_US, str(rows[0][1])
    else:
        first = (
            await store.fetch(
                "SELECT min(at) FROM (SELECT min(at) AS at FROM usage UNION ALL SELECT min(at) FROM transfer) AS firsts"
            )
        )[0][0]
        if first is None:
            return []
        begin_us, previous = day_start_us(day_of(first)), FIRST
    closed: list[str] = []
    while begin_us + DAY_US + _GRACE_US <= now_us:
        day = day_of(begin_us)
        await close_hours(store, now_us, begin_us + DAY_US)
        if (await first_open(store)).begins_us < begin_us + DAY_US:
            return closed  # an entry of it may still show up: a commit can wait for hours, for a standby
        digest = await digest_day(store, day, previous)
        try:
            await store.write(
                [
                    (
                        _CLOSE,
                        (day, digest.usage_rows, digest.transfer_rows, previous, digest.sha256, now_us),
                    ),
                    *sum_day(day),
                ]
            )
        except StoreConflict:
            return closed  # another process has closed it
        closed.append(day)
        previous = digest.sha256
        begin_us += DAY_US
    return closed


async def digest_day(store: Reading, day: str, previous: str) -> Digest:
    """Hash a day's entries in their order, after the digest of the day before."""
    sha = hashlib.sha256(f"{day}\n{previous}\n".encode())
    begin_us = day_start_us(day)
    usage_rows = await _feed(store, _USAGE, (begin_us - 1, b""), sha)
    transfer_rows = await feed_transfers(store, day, sha)
    return Digest(usage_rows, transfer_rows, sha.hexdigest())


async def feed_transfers(store: Reading, day: str, sha: "hashlib._Hash") -> int:
    """Hash a day's transfers in their order; answers how many."""
    return await _feed(store, _TRANSFERS, (day_start_us(day) - 1, ""), sha)


async def _feed(store: Reading, query: str, last: Row, sha: "hashlib._Hash") -> int:
    """Hash what comes within a day after `last`, a JSON array a row; the ids of calls in hexadecimal."""
    end_us = last[0] + 1 + DAY_US
    count = 0
    while rows := await store.fetch(query, (last[0], last[1], end_us, _PAGE)):
        for at, name, *rest in rows:
            shown = name.hex().upper() if isinstance(name, bytes) else name
            sha.update(msgspec.json.encode((at, shown, *rest)))
        count += len(rows)
        last = rows[-1]
    return count
