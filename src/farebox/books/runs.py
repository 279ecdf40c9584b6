"""Runs: each serving process's claim to be alive, and what becomes of the holds of one that is not (promise 4).

A run keeps a lease and moves it on with a heartbeat. One that has not moved it, under the eyes of a living process, for
what was left of it and a grace as long again, is given up for good: its money goes back, an empty hold stays behind.
Should the process only have been paused, its settles still find that hold, once; a day later the call is booked as
recovered. Leases are dated by the store's clock, one for all, and waited for by the watcher's own (decision 0012).
"""

import asyncio
import math
import secrets
import socket
from collections.abc import Callable, Collection
from typing import Any, Final

from farebox.billing.ledger import NO_RUN, Expire, Settle
from farebox.books.ledger import Ledger
from farebox.clock import US_PER_S
from farebox.store.protocol import Row, Store

_BEATS_PER_LEASE: Final = 3
_TOMBSTONE_US: Final = 24 * 3600 * US_PER_S
"""How long a settle may come late: a machine that comes back within a day still books what it had spooled."""
_STRAY_US: Final = 30 * US_PER_S
_PATIENCE_S: Final = 3.0
_SHORTEST_PATIENCE_S: Final = 1.0
_LEADER: Final = "leader"
_LONGEST_LEASE_S: Final = 300.0
"""No lease is longer (`[database] lease_s`): the rest of one is, when the store's clock has been set back."""
Log = Callable[..., Any]


class Runs:
    """The run of this process, and its view of the others. `lease_s` is how long it may miss its heartbeats."""

    def __init__(self, store: Store, ledger: Ledger, *, lease_s: float, warn: Log) -> None:
        self._store = store
        self._ledger = ledger
        self._lease_s = lease_s
        self._lease_us = round(lease_s * US_PER_S)
        self.beat_s = lease_s / _BEATS_PER_LEASE
        self._patience_s = min(max(_SHORTEST_PATIENCE_S, self.beat_s), _PATIENCE_S)
        self._warn = warn
        self._watched: dict[int, tuple[int, float]] = {}
        """Of each run the lease it was last seen with, and when by our own clock it is to be given up."""
        self._watched_at = 0.0
        self._leads_until = 0.0
        self._follows = False
        self.predecessors: set[int] = set()
        """Runs whose processes still end their calls, as far as their marks tell, or whose holds are still to end."""

    @property
    def leads(self) -> bool:
        """Whether this process does the work that one does for all."""
        return asyncio.get_running_loop().time() < self._leads_until

    async def begin(self, now_us: int) -> None:
        """Begin a run. Its id is chosen here, so that a lost answer does no harm. Raises StoreUnavailable."""
        run_id = now_us << 10 | secrets.randbits(10)
        insert = "INSERT INTO run (id, started_at, node, lease_until) VALUES (?, ?, ?, now_us() + ?)"
        if self._store.marks is not None:
            self._store.marks.live(run_id)  # first: whoever sees the row finds its process alive
        await self._store.write([(insert, (run_id, now_us, socket.gethostname(), self._lease_us))])
        self._store.run_id = run_id
        self.claim()

    async def beat(self, now_us: int) -> None:
        """Move the lease on, ask for the lead, and look after the runs that have missed their heartbeats."""
        beat = "UPDATE run SET lease_until = now_us() + ? WHERE id = ? AND reaped_at IS NULL"
        if not await self._write(beat, self._lease_us, self._store.run_id):
            self._warn("run_given_up", run=self._store.run_id)
            await self.begin(now_us)
        if self._store.shared:
            await self._ask_for_the_lead()
            await self._watch()

    async def look_back(self, now_us: int) -> set[int]:
        """See by their marks which other runs live; the others are marked as given up, and named. For one machine.

        All stay among the predecessors: once what the named ones left has ended, the caller takes them out.
        """
        marks = self._store.marks
        rows = await self._store.fetch(
            "SELECT id FROM run WHERE stopped_at IS NULL AND reaped_at IS NULL AND id <> ? "
            "UNION SELECT run_id FROM hold WHERE run_id NOT IN (?, ?)",
            (self._store.run_id, self._store.run_id, NO_RUN),
        )
        self.predecessors = {row[0] for row in rows} | self.predecessors
        gone = {run_id for run_id in self.predecessors if marks is None or not marks.lives(run_id)}
        reap = "UPDATE run SET reaped_at = ? WHERE id = ? AND stopped_at IS NULL AND reaped_at IS NULL"
        if gone:
            await self._store.write([(reap, (now_us, run_id)) for run_id in sorted(gone)])
        return gone

    def claim(self) -> None:
        """Take the lead of one machine, once nobody else has it."""
        if not self._store.shared and not self._follows:
            marks = self._store.marks
            self._leads_until = math.inf if marks is None or marks.lead() else 0.0

    async def follow(self) -> None:
        """Give the lead away for good: another process takes over. Raises StoreUnavailable."""
        self._follows, self._leads_until = True, 0.0
        if self._store.marks is not None:
            self._store.marks.follow()
        if self._store.shared:
            give = "UPDATE lease SET until = 0 WHERE name = ? AND run_id = ?"
            await self._write(give, _LEADER, self._store.run_id)

    async def end(self, now_us: int) -> None:
        """End the run and give the lead away. Raises StoreUnavailable."""
        self._leads_until = 0.0
        run_id = self._store.run_id
        await self._store.write(
            [
                ("UPDATE run SET stopped_at = ? WHERE id = ?", (now_us, run_id)),
                ("UPDATE lease SET until = 0 WHERE name = ? AND run_id = ?", (_LEADER, run_id)),
            ],
            patience_s=self._patience_s,
        )

    async def recover(self) -> int:
        """Expire the holds of runs that have ended, and book those that expired long ago. Answers how many expired.

        For the leader. Every step can be done again, or by two at once, without harm.
        """
        left = await self._store.fetch(
            "SELECT h.request_id, h.account_id FROM hold h LEFT JOIN run r ON r.id = h.run_id "
            "WHERE h.expired_at IS NULL AND h.run_id <> ? "
            "AND (r.id IS NULL OR r.stopped_at IS NOT NULL OR r.reaped_at IS NOT NULL)",
            (NO_RUN,),
        )
        answers = await asyncio.gather(*(self._ledger.expire(Expire(*row)) for row in left))
        expired = sum(answer.now for answer in answers)
        if expired:
            self._warn("holds_expired", count=expired)
        old = await self._store.fetch(
            "SELECT request_id, account_id, model FROM hold WHERE expired_at < now_us() - ?", (_TOMBSTONE_US,)
        )
        await _book_as_recovered(self._ledger, old)
        return expired

    async def end_strays(self) -> int:
        """End holds of this process that it knows nothing of: their admission's answer was lost. Answers how many."""
        rows = await self._store.fetch(
            "SELECT request_id, account_id, model FROM hold "
            "WHERE run_id = ? AND expired_at IS NULL AND created_at < now_us() - ?",
            (self._store.run_id, _STRAY_US),
        )
        strays = [row for row in rows if row[0] not in self._ledger.live]
        if strays:
            self._warn("stray_holds_ended", count=len(strays))
            await _book_as_recovered(self._ledger, strays)
        return len(strays)

    async def _ask_for_the_lead(self) -> None:
        if self._follows:
            return
        asked_at = asyncio.get_running_loop().time()
        ask = (
            "UPDATE lease SET run_id = ?, until = now_us() + ? "
            "WHERE name = ? AND (run_id = ? OR until < now_us() OR run_id IN "
            "(SELECT id FROM run WHERE stopped_at IS NOT NULL OR reaped_at IS NOT NULL))"
        )
        run_id = self._store.run_id
        got = await self._write(ask, run_id, self._lease_us, _LEADER, run_id)
        self._leads_until = asked_at + self._lease_s if got else 0.0

    async def _watch(self) -> None:
        """Note which runs move their leases on, and give up those that did not for too long.

        Only what was seen without a gap counts: after a pause of our own, or of the database, all begins anew.
        """
        rows = await self._store.fetch(
            "SELECT id, lease_until, lease_until - now_us() FROM run WHERE stopped_at IS NULL AND reaped_at IS NULL",
            patience_s=self._patience_s,
        )
        now = asyncio.get_running_loop().time()
        if now - self._watched_at > self._lease_s:
            self._watched.clear()
        self._watched_at = now
        before, self._watched = self._watched, {}
        for run_id, lease_until, left_us in rows:
            seen = before.get(run_id)
            if seen is None or seen[0] != lease_until:
                left_s = min(max(left_us / US_PER_S, 0.0), _LONGEST_LEASE_S)
                seen = (lease_until, now + left_s + self._lease_s)
            self._watched[run_id] = seen
            if now >= seen[1] and run_id != self._store.run_id:
                await self._give_up(run_id, lease_until)

    async def _give_up(self, run_id: int, lease_until: int) -> None:
        """Give a run up, unless it has come back this very moment. There is no way back: it has to begin a new one."""
        give_up = "UPDATE run SET reaped_at = now_us() WHERE id = ? AND lease_until = ? AND reaped_at IS NULL"
        if await self._write(give_up, run_id, lease_until):
            self._warn("run_lost", run=run_id)

    async def _write(self, statement: str, *values: Any) -> bool:
        """Run a statement about one row; tells whether it was there."""
        return bool((await self._store.write([(statement, values)], patience_s=self._patience_s))[0])


async def resolve_orphans(store: Store, ledger: Ledger, gone: Collection[int] | None = None) -> int:
    """End every hold that an earlier process left: free for the customer, since nobody can tell what came of the call.

    For a store with one serving process, before its doors open (promises 4 and 5). Answers how many there were.
    Standing holds go on waiting for their batches. Where an older process still ends its calls, only `gone` runs count.
    """
    found = await store.fetch("SELECT request_id, account_id, model, run_id FROM hold WHERE run_id <> ?", (NO_RUN,))
    rows = [row[:3] for row in found if gone is None or row[3] in gone]
    await _book_as_recovered(ledger, rows)
    return len(rows)


async def _book_as_recovered(ledger: Ledger, rows: list[Row]) -> None:
    settles = [
        ledger.settle(
            Settle(
                request_id=request_id,
                account_id=account_id,
                kind="recovered",
                model=model,
                outcome="gateway_died",
                status=0,
            )
        )
        for request_id, account_id, model in rows
    ]
    await asyncio.gather(*settles)
