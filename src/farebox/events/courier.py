"""The courier: sends what webhooks are to be told, again and again until it is taken or given up.

One process at a time does, one message to a webhook at a time, the oldest first; so a webhook that is slow or away
holds up nobody else's. The times between tries are those that Standard Webhooks recommends.
"""

import asyncio
import contextlib
from collections import Counter
from functools import partial
from typing import Final

from farebox.accounts.mail import letter
from farebox.clock import US_PER_S
from farebox.errors import FareboxError, StoreUnavailable
from farebox.events.webhooks import KEPT_US, Webhooks, disabling
from farebox.http.errands import Errands
from farebox.http.failures import UpstreamError
from farebox.store.protocol import Row, Statement, Store

PAUSES_S: Final = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""After each failed try: 5 s, 5 and 30 minutes, 2, 5, 10, 14, 20 and 24 hours: ten tries in a good three days."""
TRIES: Final = len(PAUSES_S) + 1
_AT_ONCE: Final = 64
_OF_ONE_ACCOUNT: Final = 4
"""Deliveries under way, in all and of one account: slow servers of one customer hold up nobody else's."""
_WITHIN_S: Final = 15.0
_GONE: Final = 410
_ERROR_CHARS: Final = 300
_SWEEP_EVERY_US: Final = 3600 * US_PER_S
_DUE: Final = (
    "SELECT d.id, d.webhook_id, d.body, d.tries, w.account_id, w.url, w.failures, a.email "
    "FROM delivery d JOIN webhook w ON w.id = d.webhook_id JOIN account a ON a.id = w.account_id "
    "WHERE d.done_at IS NULL AND d.next_at <= ? AND w.disabled_at IS NULL AND NOT EXISTS ("
    "SELECT 1 FROM delivery e WHERE e.webhook_id = d.webhook_id AND e.done_at IS NULL "
    "AND (e.next_at < d.next_at OR (e.next_at = d.next_at AND e.id < d.id))) ORDER BY d.next_at LIMIT ?"
)


class Courier:
    """Owns the deliveries that are under way. `site_name` and `public_url` are for mails about webhooks given up."""

    def __init__(self, store: Store, webhooks: Webhooks, errands: Errands, *, site_name: str, public_url: str) -> None:
        self._store = store
        self._webhooks = webhooks
        self._errands = errands
        self._site_name = site_name
        self._public_url = public_url
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._busy: Counter[int] = Counter()
        """By webhook."""
        self._swept_at = 0

    async def send(self, now_us: int) -> None:
        """Begin to send what is due, to webhooks to which nothing is under way. Called by a job."""
        await self._sweep(now_us)
        if len(self._under_way) >= _AT_ONCE:
            return
        for row in await self._store.fetch(_DUE, (now_us, 2 * _AT_ONCE)):
            webhook_id, account_id = row[1], row[4]
            if (
                webhook_id not in self._under_way
                and len(self._under_way) < _AT_ONCE
                and self._busy[account_id] < _OF_ONE_ACCOUNT
            ):
                task = asyncio.create_task(self._deliver(row, now_us), name=f"webhook {webhook_id}")
                self._under_way[webhook_id] = task
                self._busy[account_id] += 1
                task.add_done_callback(partial(self._end, webhook_id, account_id))

    def _end(self, webhook_id: int, account_id: int, _: asyncio.Task[None]) -> None:
        del self._under_way[webhook_id]
        self._busy[account_id] -= 1
        if not self._busy[account_id]:
            del self._busy[account_id]

    async def drained(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way.values())

    async def close(self) -> None:
        """Give up what is under way; it is sent again, with the same id."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, row: Row, now_us: int) -> None:
        """Try one delivery, and write down what came of it."""
        delivery_id, webhook_id, body, tries, account_id, url, failures, email = row
        status, error = await self._try(delivery_id, webhook_id, account_id, url, body, now_us)
        if error is None:
            done = "UPDATE delivery SET done_at = ?, tries = tries + 1, status = ?, error = NULL WHERE id = ?"
            reset = "UPDATE webhook SET failures = 0 WHERE id = ?"
            await self._note([(done, (now_us, status, delivery_id)), (reset, (webhook_id,))])
            return
        is_last = tries + 1 >= TRIES
        next_at = now_us if is_last else now_us + PAUSES_S[tries] * US_PER_S
        fail = "UPDATE delivery SET tries = tries + 1, next_at = ?, done_at = ?, status = ?, error = ? WHERE id = ?"
        statements: list[Statement] = [
            (fail, (next_at, now_us if is_last else None, status, error[:_ERROR_CHARS], delivery_id)),
            ("UPDATE webhook SET failures = failures + 1 WHERE id = ?", (webhook_id,)),
        ]
        if status == _GONE or (is_last and failures + 1 >= TRIES):
            statements += disabling(webhook_id, now_us)
            statements.append(letter(email, f"A webhook of yours at {self._site_name} is off", self._off(url), now_us))
        await self._note(statements)

    async def _note(self, statements: list[Statement]) -> None:
        """Write down what came of a try; where that fails, the message is sent again: the same id tells."""
        with contextlib.suppress(StoreUnavailable):
            await self._store.write(statements)

    async def _try(
        self, delivery_id: str, webhook_id: int, account_id: int, url: str, body: str, now_us: int
    ) -> tuple[int | None, str | None]:
        """Send a message once; answers the status that came back, and what went wrong, if anything did."""
        headers = {"content-type": "application/json", "user-agent": "Farebox", "connection": "close"}
        try:
            headers |= await self._webhooks.sign(webhook_id, account_id, delivery_id, body, now_us)
            reply = await self._errands.run("POST", url, headers, body.encode(), within_s=_WITHIN_S, most_bytes=0)
        except (UpstreamError, ValueError) as error:
            return None, str(error)
        except FareboxError as error:  # sealed under a secret that is not configured now
            return None, str(error)
        if 200 <= reply.status < 300:
            return reply.status, None
        if 300 <= reply.status < 400:
            return reply.status, f"answered {reply.status}: redirects are not followed"
        return reply.status, f"answered {reply.status}"

    def _off(self, url: str) -> str:
        return (
            f"Nothing has been delivered for days to your webhook\n\n{url}\n\nor its server said that it is gone for "
            f"good, so it was disabled: it is told of nothing more.\n\nWhat was tried, and a button to enable it "
            f"again: {self._public_url}/dashboard/settings/webhooks\n"
        )

    async def _sweep(self, now_us: int) -> None:
        """Forget old deliveries, now and then."""
        if now_us - self._swept_at < _SWEEP_EVERY_US:
            return
        self._swept_at = now_us
        await self._store.write([("DELETE FROM delivery WHERE done_at < ?", (now_us - KEPT_US,))])
