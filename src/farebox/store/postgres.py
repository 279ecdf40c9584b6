"""The books in PostgreSQL: many processes on many machines, one round trip a batch.

A batch goes to the database as one call of `apply_batch` (postgres_ledger.sql), which locks the accounts, folds the
commands and writes the rows in one transaction. Each lane has a connection of its own, and sends its next batch when
the last one is durable. A batch whose answer was lost is sent again: ids make that harmless.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import asyncpg
import msgspec

from farebox.billing.ledger import ORDER, Answer, Command, Transfer, customer_id
from farebox.billing.plans import Plan, Plans
from farebox.clock import Clock
from farebox.errors import BrokenInvariant, StoreConflict, StoreUnavailable, StoreUnreachable
from farebox.store.marks import Marks
from farebox.store.postgres_answers import read_answer
from farebox.store.postgres_connections import (
    FAILED,
    LOST,
    SESSION,
    Pool,
    connect,
    is_still_good,
    may_pass,
    shut,
    words,
)
from farebox.store.postgres_schema import check_schema, find_faults, prepare
from farebox.store.protocol import Row, Statement
from farebox.store.urls import without_password

T = TypeVar("T")

_LANES: Final = 2
_POOL: Final = 3
CONNECTIONS: Final = _LANES + _POOL + 1
"""What a serving process may have open at most: the one that listens for changes among them."""
_PATIENCE_S: Final = 1.5
"""How long a serving process tries before it says that the books cannot be written."""
_CONTROL_PATIENCE_S: Final = 10.0
"""The same for what no call waits for."""
_COMMAND_PATIENCE_S: Final = 600.0
"""The command line's: reports of years may take their time."""
_CONNECT_S: Final = 10.0
_OPEN_S: Final = 30.0
"""How long connecting, making the tables where there are none, and looking at the schema may take."""
_PROBE_S: Final = 5.0
"""How often it is seen that the one who listens can still hear."""
_LANE_SESSION: Final = {
    **SESSION,
    "statement_timeout": "2s",
    "lock_timeout": "1s",
    # the ledger's statements look rows up by key. Planned once, for that: a plan made while tables are empty would else
    # read them whole, and planning anew costs more than running (docs/decisions/0011 has the measurement)
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
}
_APPLY: Final = """
SELECT format('SELECT * FROM apply_batch($1, $2, %L, %L, %L, %L, $3, $4)',
              $1::text[], $2::bigint[], $3::bigint[], $4::bigint[])
"""
"""Makes the statement that a lane prepares: what is the same in every batch is part of it, and is not sent again."""
_PLACE: Final = {kind: place for place, kind in enumerate(ORDER)}
_COMMANDS_FAULT: Final = ("22", "23", "54", "P0")
"""Classes of SQLSTATE that speak of the values sent: data, integrity, what is too large, and our own RAISE."""
_CHANGED: Final = "farebox_changed"
_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5
"""A batch is sent again after a pause, each time about twice as long."""


async def open_store(
    url: str, *, plans: Plans | None = None, clock: Clock | None = None, create: bool = True, serving: bool = False
) -> "PostgresStore":
    """Open the books at postgresql://user:password@host:port/name. Raises StoreUnavailable.

    `clock` takes the place of the database's, which all processes share otherwise. See store/open.py for the rest.
    """
    store = PostgresStore(url, plans, clock, serving=serving)
    try:
        await store.open(create=create)
    except BaseException:
        await store.close()
        raise
    return store


class PostgresStore:
    """Store (see store/protocol.py) in a PostgreSQL database."""

    def __init__(self, url: str, plans: Plans | None, clock: Clock | None, *, serving: bool) -> None:
        self.url = url
        self.run_id = 0
        self.lanes = _LANES if serving else 1
        self.shared = True
        self.marks: Marks | None = None
        self.clock = clock
        self.plans = list(plans or Plans([Plan("default", 60, 1_000_000, 100)]))
        self.apply_patience_s = _PATIENCE_S if serving else _CONTROL_PATIENCE_S
        self.patience_s = _CONTROL_PATIENCE_S if serving else _COMMAND_PATIENCE_S
        self._lanes = [_Lane(self) for _ in range(self.lanes)]
        self._pool = Pool(url, {**SESSION, "statement_timeout": f"{self.patience_s:g}s"}, _POOL)
        self._listener: asyncpg.Connection | None = None
        self._heard_at = 0.0
        self._changed = True
        self._texts: dict[str, str] = {}

    async def open(self, *, create: bool) -> None:
        """Connect, and look at the schema."""
        try:
            async with asyncio.timeout(_OPEN_S), one_connection(self.url) as connection:
                if create:
                    await prepare(connection)
                await check_schema(connection, self.where)
        except TimeoutError as error:
            raise StoreUnreachable(f"the database {self.where} does not answer") from error

    @property
    def where(self) -> str:
        """The database, for people."""
        return without_password(self.url)

    async def apply(self, batch: Sequence[Command], lane: int = 0) -> list[Answer | Exception]:
        if len(batch) == 1:
            return await self._lanes[lane].apply(batch)
        answers: dict[int, Answer | Exception] = {}
        order = sorted(range(len(batch)), key=lambda index: _PLACE[type(batch[index])])
        for part in _without_repeats(batch, order):
            part_answers = await self._lanes[lane].apply([batch[index] for index in part])
            answers.update(zip(part, part_answers, strict=True))
        return [answers[index] for index in range(len(batch))]

    async def fetch(self, sql: str, params: tuple[Any, ...] = (), *, patience_s: float | None = None) -> list[Row]:
        text = self._text(sql)

        async def read(connection: asyncpg.Connection) -> list[Row]:
            return [tuple(record) for record in await connection.fetch(text, *params)]

        return await self._read(read, patience_s or self.patience_s)

    async def write(self, statements: Sequence[Statement], *, patience_s: float | None = None) -> list[int]:
        patience_s = patience_s or self.patience_s
        try:
            async with self._pool.lend(timeout_s=patience_s) as connection:
                if len(statements) == 1:
                    (sql, params), *_ = statements
                    return [_count(await connection.execute(self._text(sql), *params))]
                return await self._together(connection, statements)
        except asyncpg.IntegrityConstraintViolationError as error:
            raise StoreConflict(words(error)) from error
        except FAILED as error:
            raise StoreUnavailable(f"the database did not take the write: {words(error)}") from error

    async def changed_elsewhere(self) -> bool:
        """See Store. Told by the database; while nobody listens, everything may have changed."""
        now = asyncio.get_running_loop().time()
        if self._listener is None:
            try:
                self._listener = await self._listen()
            except FAILED:
                return True
            self._heard_at, self._changed = now, True
        elif now - self._heard_at > _PROBE_S:
            await self._probe(self._listener)
            self._heard_at = now
        changed, self._changed = self._changed, False
        return changed

    async def is_served(self) -> bool:
        rows = await self.fetch("SELECT count(*) FROM run WHERE stopped_at IS NULL AND lease_until > now_us()")
        return bool(rows[0][0])

    async def check_itself(self) -> list[tuple[str, int, list[str]]]:
        return await self._read(find_faults, self.patience_s)

    def copy_lock(self) -> int | None:
        return None

    async def close(self) -> None:
        listener, self._listener = self._listener, None
        await asyncio.gather(
            *(lane.close() for lane in self._lanes), self._pool.close(), *(map(shut, [listener] if listener else []))
        )

    async def _read(self, task: Callable[[asyncpg.Connection], Awaitable[T]], patience_s: float) -> T:
        """Run a reading task, again on a new connection when the one it had was lost."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + patience_s
        again = False
        while True:
            try:
                async with self._pool.lend(timeout_s=give_up_at - loop.time()) as connection:
                    return await task(connection)
            except FAILED as error:
                lost = may_pass(error)
                if lost:
                    self._pool.forget()
                if again or not lost or loop.time() >= give_up_at:
                    raise StoreUnavailable(f"the database did not answer: {words(error)}") from error
                again = True

    async def _together(self, connection: asyncpg.Connection, statements: Sequence[Statement]) -> list[int]:
        """Run statements in one transaction. One that fails otherwise than by conflict ends with its connection."""
        await connection.execute("BEGIN")
        try:
            changed = [_count(await connection.execute(self._text(sql), *params)) for sql, params in statements]
        except asyncpg.PostgresError:
            await connection.execute("ROLLBACK")
            raise
        await connection.execute("COMMIT")
        return changed

    async def _listen(self) -> asyncpg.Connection:
        listener = await connect(self.url, SESSION, timeout_s=self.patience_s)
        try:
            listener.add_termination_listener(self._deafened)
            async with asyncio.timeout(self.patience_s):
                await listener.add_listener(_CHANGED, self._told)
        except BaseException:
            listener.terminate()
            raise
        return listener

    async def _probe(self, listener: asyncpg.Connection) -> None:
        """Cut a listener that can no longer hear: a connection may be dead without a word."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await listener.execute("SELECT 1")
        except FAILED:
            listener.terminate()
            self._listener, self._changed = None, True

    def _text(self, sql: str) -> str:
        text = self._texts.get(sql)
        if text is None:
            text = self._texts[sql] = numbered(sql)
        return text

    def _told(self, *_: object) -> None:
        self._changed = True

    def _deafened(self, listener: object) -> None:
        if listener is self._listener:
            self._listener, self._changed = None, True


class _Lane:
    """One connection, over which one batch goes at a time."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._connection: asyncpg.Connection | None = None
        self._apply: Any = None
        plans = store.plans
        self._limits = (
            [plan.name for plan in plans],
            [plan.requests_per_minute for plan in plans],
            [plan.tokens_per_minute for plan in plans],
            [plan.concurrent for plan in plans],
        )

    async def apply(self, batch: Sequence[Command]) -> list[Answer | Exception]:
        """Apply a batch that is in order and names no id twice. Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._store.apply_patience_s
        pause_s = _PAUSE_S
        again = collided = False
        while True:
            try:
                return await self._send(batch, give_up_at, again=again)
            except UnicodeError as error:  # text that is none, such as half a surrogate pair
                return await self._one_by_one(batch, error)
            except asyncpg.PostgresError as error:
                if isinstance(error, asyncpg.UniqueViolationError) and not collided:
                    collided = True  # another process has just written one of these ids: now it will be seen
                    continue
                if (error.sqlstate or "").startswith(_COMMANDS_FAULT):
                    return await self._one_by_one(batch, error)
                failure: Exception = error
                if not is_still_good(error):
                    self._drop()
            except LOST as error:
                failure = error
                self._drop()
            except BaseException:
                self._drop()  # cancelled with an answer on its way
                raise
            if loop.time() + pause_s >= give_up_at:
                raise StoreUnavailable(f"the database did not take the batch: {words(failure)}") from failure
            again = True
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311  jitter
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def close(self) -> None:
        if self._connection is not None:
            await shut(self._connection)
            self._connection = None

    async def _send(self, batch: Sequence[Command], give_up_at: float, *, again: bool) -> list[Answer | Exception]:
        loop = asyncio.get_running_loop()
        if self._apply is None or self._connection is None or self._connection.is_closed():
            self._drop()
            async with asyncio.timeout_at(give_up_at):
                self._connection = await connect(self._store.url, _LANE_SESSION, timeout_s=_CONNECT_S)
                self._apply = await self._connection.prepare(await self._connection.fetchval(_APPLY, *self._limits))
        clock = self._store.clock
        records = await self._apply.fetch(
            msgspec.json.encode(batch).decode(),
            _accounts_of(batch),
            self._store.run_id,
            clock() if clock is not None else None,
            timeout=max(0.0, give_up_at - loop.time()),
        )
        return [read_answer(command, record, again=again) for command, record in zip(batch, records, strict=True)]

    async def _one_by_one(self, batch: Sequence[Command], error: Exception) -> list[Answer | Exception]:
        """Find the command whose values spoil the batch: the others must not suffer for it."""
        if len(batch) == 1:
            return [BrokenInvariant(f"{words(error)}: {batch[0]}")]
        return [answer for command in batch for answer in await self.apply([command])]

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
        self._connection = self._apply = None


@contextlib.asynccontextmanager
async def one_connection(url: str, session: dict[str, str] | None = None) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection, beside those of whoever serves. Raises StoreUnreachable, and StoreUnavailable for all else."""
    where = without_password(url)
    try:
        connection = await connect(url, {**SESSION, **(session or {})}, timeout_s=_CONNECT_S)
    except (*FAILED, ValueError) as error:
        kind = StoreUnreachable if may_pass(error) else StoreUnavailable
        raise kind(f"the database {where} cannot be reached: {words(error)}") from error
    try:
        yield connection
    except FAILED as error:
        raise StoreUnavailable(f"the database {where} cannot be used: {words(error)}") from error
    finally:
        await shut(connection)


def numbered(sql: str) -> str:
    """Write `?` placeholders as PostgreSQL does: $1, $2 and so on."""
    first, *rest = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


def _without_repeats(batch: Sequence[Command], order: list[int]) -> list[list[int]]:
    """Cut a batch before every command whose id it has named already: the function looks each id up once."""
    parts: list[list[int]] = []
    seen: set[bytes | str] = set()
    for index in order:
        command = batch[index]
        name = command.id if isinstance(command, Transfer) else command.request_id
        if not parts or name in seen:
            parts.append([])
            seen.clear()
        seen.add(name)
        parts[-1].append(index)
    return parts


def _accounts_of(batch: Sequence[Command]) -> list[int]:
    accounts: set[int] = set()
    for command in batch:
        if isinstance(command, Transfer):
            named = (customer_id(command.debit_account), customer_id(command.credit_account))
            accounts.update(account_id for account_id in named if account_id is not None)
        else:
            accounts.add(command.account_id)
    return list(accounts)


def _count(status: str) -> int:
    """Read the rows changed from a command's status, such as "UPDATE 3"."""
    number = status.rpartition(" ")[2]
    return int(number) if number.isdigit() else 0
