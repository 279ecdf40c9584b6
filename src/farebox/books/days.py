"""Day digests: a hash over every entry of each past day, chained to the day before (promise 7).

A day is closed an hour after it ended, and never gets another entry: the store moves the clock of late ones on. Whoever
keeps one digest elsewhere can prove later that nothing before it was changed.
"""

import hashlib
from typing import Final

import msgspec

from farebox.books.figures import sum_day
from farebox.clock import DAY_US, day_of, day_start_us
from farebox.errors import StoreConflict
from farebox.store.protocol import Reading, Row, Store

FIRST: Final = "0" * 64
_GRACE_US: Final = 3_600 * 1_000_000
_PAGE: Final = 20_000
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
        unseen_since_us = (await store.fetch("SELECT unseen_since_us()"))[0][0]
        if unseen_since_us is not None and unseen_since_us < begin_us + DAY_US:
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
    transfer_rows = await _feed(store, _TRANSFERS, (begin_us - 1, ""), sha)
    return Digest(usage_rows, transfer_rows, sha.hexdigest())


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
